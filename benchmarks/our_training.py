"""The same cross-encoder trained on the same pairs by `tune_cross_encoder`, with one checkpoint at the end.

python -m benchmarks.our_training TASK
"""

import pandas as pd
from datasets import Dataset
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from benchmarks.measured import now, since
from benchmarks.trained import LR, WARMUP, answer, asked, cross_encoder
from reranker.training.cross_encoder import tune_cross_encoder
from reranker.training.losses import make_loss
from reranker.training.trainer import Schedule


class _Nothing(BaseEvaluator):
    """In the place of an evaluation on dev: the other side has none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = "none"

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        return {"none": 0.0}


def main() -> None:
    """Read, train, score."""
    task = asked(__doc__)
    model = cross_encoder(task)
    rows = pd.read_parquet(task.rows)
    group_size = len(rows) / rows["label"].sum()
    loss = make_loss("binary_cross_entropy", model, {}, distillation=0.0, group_size=group_size)
    schedule = Schedule(LR, 1, task.batch_size, WARMUP, 0.0, task.precision, task.seed)
    started = now()
    tune_cross_encoder(
        model,
        Dataset.from_pandas(rows),
        loss,
        schedule,
        evaluator=_Nothing(),
        evaluations=1,
        patience=1,
        head_lr=LR,
        label="train",
    )
    answer(task, model, since(started))


if __name__ == "__main__":
    main()
