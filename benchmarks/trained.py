"""What both sides of `benchmarks.train` are asked for, and how they say how long it took."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from sentence_transformers import CrossEncoder

from benchmarks.measured import Moment
from reranker.inference.compute import Compute
from reranker.inference.scoring import score_pairs
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.trainer import seed_everything

LR, WARMUP = 2e-5, 0.1
"""Of the documentation of Sentence Transformers: its example that trains a reranker on mined negatives."""


class Asked(NamedTuple):
    """A side's task."""

    base: str
    rows: Path
    """Columns query, passage, label: all are read, once."""
    dev: Path
    """Columns query_id, passage_id, query, text: scored after training."""
    out: Path
    max_length: int
    batch_size: int
    precision: str
    documented: bool
    """The model that the documentation trains, with the checkpoint's dropout; else ours, without."""
    seed: int


def asked(description: str | None) -> Asked:
    """The task from the command line: a JSON object."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=json.loads, help="a JSON object with the fields of Asked")
    task = parser.parse_args().task
    return Asked(**task | {name: Path(task[name]) for name in ("rows", "dev", "out")})


def cross_encoder(task: Asked) -> CrossEncoder:
    """The model to train."""
    seed_everything(task.seed)
    if task.documented:
        return CrossEncoder(task.base, num_labels=1, max_length=task.max_length)
    return build_cross_encoder(task.base, task.max_length)


def answer(task: Asked, model: CrossEncoder, taken: Moment) -> None:
    """Write what training took and the scores of the dev pairs."""
    dev = pd.read_parquet(task.dev)
    texts = (dev[column].tolist() for column in ("query", "text"))
    dev["score"] = score_pairs(model, *texts, label="dev", compute=Compute(task.precision))
    dev.to_parquet(task.out, index=False)
    task.out.with_suffix(".json").write_text(json.dumps(taken), encoding="utf-8")
