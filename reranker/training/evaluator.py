"""NDCG@10 of a cross-encoder on dev queries: the same measure before, during and after training."""

import os
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel
from sentence_transformers.cross_encoder.evaluation import CrossEncoderNanoBEIREvaluator
from sentence_transformers.cross_encoder.evaluation.nano_beir import DATASET_NAME_TO_HUMAN_READABLE

from reranker.common.errors import UserError
from reranker.evaluation import metrics
from reranker.inference.compute import PLAIN, Compute
from reranker.inference.loading import one_output
from reranker.inference.scoring import score_pairs

RETRIEVED, ALL_POSITIVES = "retrieved", "all_positives"
METRIC = "ndcg@10"


class DevRanking(BaseEvaluator):
    """Reranks the candidates of some queries with the model and measures NDCG@10 as trec_eval defines it.

    Args:
        candidates: columns query_id, passage_id, query and text; the model reads the last two.
        judgments: columns query_id, passage_id, relevance; of the same queries.
        compute: how the model computes during training.
    """

    def __init__(self, candidates: pd.DataFrame, judgments: pd.DataFrame, compute: Compute = PLAIN) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = METRIC
        self._candidates, self._judgments, self._compute = candidates, judgments, compute

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metric by the name that the trainer expects."""
        if not isinstance(model, CrossEncoder):
            raise TypeError(f"a cross-encoder is evaluated here, not a {type(model).__name__}")
        return {METRIC: self.ndcg(model)}

    def ndcg(self, model: CrossEncoder) -> float:
        """Mean NDCG@10 over the queries."""
        texts = (self._candidates[column].tolist() for column in ("query", "text"))
        scores = score_pairs(model, *texts, label="train: dev", compute=self._compute)
        return metrics.mean_ndcg(self._judgments, self._candidates, scores)


class EvaluatorSequence(BaseEvaluator):
    """Several evaluators one after the other; the metric of the first decides which checkpoint is best.

    A model that is trained with two outputs is measured with the single output that it will have, see `one_output`.

    Args:
        evaluators: evaluators by name; the primary metric of each is better if it is higher.
    """

    def __init__(self, evaluators: Mapping[str, BaseEvaluator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = METRIC
        self._evaluators = dict(evaluators)

    @property
    def others(self) -> list[str]:
        """The names of the metrics of all evaluators but the first."""
        return [f"{METRIC}_{name}" for name in list(self._evaluators)[1:]]

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metric of the first evaluator as `ndcg@10`, and those of the others as `ndcg@10_NAME`."""
        if isinstance(model, CrossEncoder) and model.num_labels > 1:
            model = one_output(model)
        values = []
        for evaluator in self._evaluators.values():
            figures = evaluator(model, output_path, epoch, steps)
            values.append(figures[str(evaluator.primary_metric)] if isinstance(figures, dict) else figures)
        return dict(zip([METRIC, *self.others], values, strict=True))


def check_evaluators(names: Sequence[str]) -> None:
    """Check the names of evaluators.

    Raises:
        UserError: a name is unknown or occurs twice, or is a data set of the Hub while the Hub is switched off.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"params.yaml: dev.evaluators: '{name}' is there twice; name it once")
        if name in (RETRIEVED, ALL_POSITIVES):
            continue
        if _nano(name) not in DATASET_NAME_TO_HUMAN_READABLE:
            nano = ", ".join(f"Nano{human}" for human in DATASET_NAME_TO_HUMAN_READABLE.values())
            raise UserError(
                f"params.yaml: dev.evaluators: there is no '{name}'; use {RETRIEVED}, {ALL_POSITIVES} or one of {nano}"
            )
        # these are the values that huggingface_hub takes for true
        if os.environ.get("HF_HUB_OFFLINE", "1").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(
                f"params.yaml: dev.evaluators: '{name}' is a data set of the Hub, which is switched off; "
                f"set HF_HUB_OFFLINE=0 to download it"
            )


def make_evaluator(
    names: Sequence[str],
    candidates: pd.DataFrame,
    judgments: pd.DataFrame,
    with_texts: Callable[[pd.DataFrame], pd.DataFrame],
    compute: Compute,
) -> EvaluatorSequence:
    """The evaluators with these names.

    Args:
        names: see `check_evaluators`.
        candidates: see `DevRanking`.
        judgments: see `DevRanking`.
        with_texts: adds the texts that the model reads to a table of query_id and passage_id.
        compute: how the model computes during training.

    Raises:
        UserError: see `nano_beir`.
    """

    def one(name: str) -> BaseEvaluator:
        if name == RETRIEVED:
            return DevRanking(candidates, judgments, compute)
        if name == ALL_POSITIVES:
            return DevRanking(with_texts(with_all_positives(candidates, judgments)), judgments, compute)
        return nano_beir(name)

    return EvaluatorSequence({name: one(name) for name in names})


def nano_beir(name: str) -> BaseEvaluator:
    """NDCG@10 over the first hundred passages that BM25 retrieves for the queries of a NanoBEIR data set.

    Raises:
        UserError: the data set cannot be downloaded.
    """
    try:
        return CrossEncoderNanoBEIREvaluator([_nano(name)], write_csv=False)
    except (ValueError, OSError) as error:
        raise UserError(
            f"params.yaml: dev.evaluators: '{name}' could not be loaded ({error}); is the Hub within reach?"
        ) from None


def _nano(name: str) -> str:
    return name.lower().removeprefix("nano")


def with_all_positives(candidates: pd.DataFrame, judgments: pd.DataFrame) -> pd.DataFrame:
    """The candidates, followed by the relevant passages that the first-stage retriever missed.

    Args:
        candidates: columns query_id, passage_id.
        judgments: columns query_id, passage_id, relevance, of the same queries.

    Returns:
        Columns query_id, passage_id.
    """
    keys = ["query_id", "passage_id"]
    relevant = judgments.loc[judgments["relevance"] > 0, keys].sort_values(keys)
    return pd.concat([candidates[keys], relevant]).drop_duplicates(ignore_index=True)
