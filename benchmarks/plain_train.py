"""A cross-encoder trained on pairs as the documentation of Sentence Transformers says, without evaluations.

python -m benchmarks.plain_train TASK
"""

import tempfile

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from benchmarks.measured import Moment, now, since
from benchmarks.trained import LR, WARMUP, answer, asked, cross_encoder


def train(model: CrossEncoder, data: Dataset, *, batch_size: int, precision: str, seed: int, steps: int = -1) -> Moment:
    """Train on all pairs once, or for so many steps, and return what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        labels = list(data["label"])
        wrong = labels.count(0.0) / max(1, len(labels) - labels.count(0.0))
        trainer = CrossEncoderTrainer(
            model=model,
            args=CrossEncoderTrainingArguments(
                output_dir=scratch,
                num_train_epochs=1,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                learning_rate=LR,
                warmup_steps=WARMUP,
                bf16=precision == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data,
            loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(wrong)),
        )
        started = now()
        trainer.train()
        return since(started)


def main() -> None:
    """Read, train, score."""
    task = asked(__doc__)
    model = cross_encoder(task)
    data = Dataset.from_pandas(pd.read_parquet(task.rows))
    taken = train(model, data, batch_size=task.batch_size, precision=task.precision, seed=task.seed)
    answer(task, model, taken)


if __name__ == "__main__":
    main()
