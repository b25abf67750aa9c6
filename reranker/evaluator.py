"""NDCG@10 of a cross-encoder on dev queries: the same figure before, during and after training."""

import pandas as pd
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from reranker import metrics
from reranker.scoring import score_pairs


class DevRanking(BaseEvaluator):
    """Reranks the candidates of some queries by the model and measures the order with trec_eval's definition.

    Args:
        candidates: columns query_id, passage_id, query and text, what the model reads of both.
        judgments: columns query_id, passage_id, relevance, of the same queries.
        precision: `float32` or `bfloat16`.
    """

    def __init__(self, candidates: pd.DataFrame, judgments: pd.DataFrame, precision: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = "ndcg@10"
        self._candidates, self._judgments, self._precision = candidates, judgments, precision

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The figure, under the name that the trainer looks for."""
        if not isinstance(model, CrossEncoder):
            raise TypeError(f"a cross-encoder is evaluated here, not a {type(model).__name__}")
        return {"ndcg@10": self.ndcg(model)}

    def ndcg(self, model: CrossEncoder) -> float:
        """Mean NDCG@10 over the queries."""
        texts = (self._candidates[column].tolist() for column in ("query", "text"))
        scores = score_pairs(model, *texts, label="train: dev", precision=self._precision)
        return metrics.mean_ndcg(self._judgments, self._candidates, scores)
