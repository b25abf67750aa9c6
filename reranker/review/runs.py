"""What a commit, an experiment or the workspace holds of a run, read from git or from the workspace."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError
from reranker.common.revisions import REMEDY, Lock, Revision, read_yaml

STAGE = "evaluate"
"""Whose figures are compared."""
SYSTEMS = ("reranker", "cross_encoder")
"""Whose NDCG@10 experiments are compared by: the shipped system's and the cross-encoder's alone."""
FIGURES = {
    "dev_ndcg@10": ("dev", "reranker"),
    "dev_ndcg@10_cross_encoder": ("dev", "cross_encoder"),
    "ndcg@10": ("test", "reranker"),
    "ndcg@10_cross_encoder": ("test", "cross_encoder"),
}
"""What experiments can be sorted by, in the names of `dvc exp show`: split and system."""
DEV = {system: name for name, (split, system) in FIGURES.items() if split == "dev"}
"""NDCG@10 on dev in metrics/train.json, by system."""
HEADLINE = {
    "ndcg@10": ("evaluate", "NDCG@10"),
    "mrr@10": ("evaluate", "MRR@10"),
    "map": ("evaluate", "MAP"),
    "recall@10": ("evaluate", "Recall@10"),
    "recall@30": ("evaluate", "Recall@30"),
    "ndcg@10_all_positives": ("evaluate", "NDCG@10, missed right passages added"),
    "ndcg@10_cross_encoder": ("evaluate", "NDCG@10 of the cross-encoder alone"),
    "gain_vs_tuned_biencoder": ("evaluate", "Gain on the bi-encoder tuned further"),
    "dev_ndcg@10": ("train", "NDCG@10 on dev"),
}
"""Figures of a review's first table: their file in metrics/ and their name for people."""
SECONDS = ("mine_seconds", "train_seconds")
"""Of metrics/timing.json."""
FILES = ("evaluate", "train", "mine", "prepare", "timing")
"""Files of metrics/; only the first must be there."""


@dataclass(frozen=True)
class Run:
    """What went into a run and what came out of it."""

    name: str
    commit: str | None
    """None: the workspace."""
    params: Mapping[str, Any]
    lock: Lock
    figures: Mapping[str, Mapping[str, Any]]
    """By the stem of their file in metrics/; a file that is not there is empty."""
    per_query: pd.DataFrame
    """NDCG@10 of the test queries: one column a system, the index is the query's id."""
    costs: pd.DataFrame
    """Columns system, megabytes and so on; without rows where they were not measured."""
    raw: Mapping[str, str]
    """The hash of each file of the user's in data/ that DVC tracks, by the path of its `.dvc` file."""

    @cached_property
    def files(self) -> dict[str, str]:
        """The hash of each file or folder of code or data that no stage writes."""
        return self.lock.source_files(STAGE)

    @property
    def dev(self) -> dict[str, float]:
        """NDCG@10 on dev by system."""
        return {system: self.figures["train"][name] for system, name in DEV.items()}

    @property
    def test(self) -> pd.DataFrame:
        """NDCG@10 of the test queries in the order of their ids, of the systems that experiments are compared by."""
        return self.per_query[list(SYSTEMS)].sort_index()

    @property
    def dev_queries(self) -> int | None:
        """Their number; None where it was not written."""
        return self.figures["prepare"].get("queries_dev")


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings under keys such as `sources.faq.files`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = dotted(value) if isinstance(value, Mapping) and value else {"": value}
        flat |= {f"{key}.{name}" if name else str(key): each for name, each in inner.items()}
    return flat


def read_run(revision: Revision) -> Run:
    """Read the run of a revision.

    Raises:
        UserError: it has no figures of `evaluate`, or one of its files cannot be read.
    """
    nothing: dict[str, Any] = {}
    figures = {stem: revision.read(PATHS.metrics / f"{stem}.json", _figures, nothing) for stem in FILES}
    if "ndcg@10" not in figures["evaluate"]:
        raise UserError(f"{revision.name}: no ndcg@10 in {PATHS.metrics / 'evaluate.json'}; {REMEDY}")
    lock = revision.lock()
    if STAGE not in lock.stages:
        raise UserError(f"{revision.name}: the stage {STAGE} did not run, as its dvc.lock says; {REMEDY}")
    return Run(
        name=revision.name,
        commit=revision.commit,
        params=revision.read(PATHS.params, read_yaml),
        lock=lock,
        figures=figures,
        per_query=revision.read(PATHS.metrics / "per_query.csv", _per_query),
        costs=revision.read(PATHS.metrics / "costs.csv", _costs, pd.DataFrame(columns=["system"])),
        raw={
            path.as_posix(): revision.read(path, _tracked)
            for path in revision.files(PATHS.raw.parent)
            if path.suffix == ".dvc"
        },
    )


def _figures(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not an object of figures")
    if not all(isinstance(values[key], int | float) for key in (*HEADLINE, *SECONDS, *DEV.values()) if key in values):
        raise ValueError("a figure is no number")
    return values


def _per_query(text: str) -> pd.DataFrame:
    table = pd.read_csv(StringIO(text), dtype={"query_id": str}, keep_default_na=False, index_col="query_id")
    if "reranker" not in table:
        raise ValueError("no column reranker")
    if table.index.has_duplicates:
        raise ValueError("a query is there twice")
    values = table.astype(float)
    if not len(values) or not np.isfinite(values.to_numpy()).all():
        raise ValueError("a query has no figure")
    first = [system for system in SYSTEMS if system in values]
    return values[[*first, *(system for system in values if system not in first)]]


def _costs(text: str) -> pd.DataFrame:
    table = pd.read_csv(StringIO(text), dtype={"system": str}, keep_default_na=False, na_values=[""])
    if "system" not in table:
        raise ValueError("no column system")
    return table


def _tracked(text: str) -> str:
    return " ".join(str(out.get("md5")) for out in read_yaml(text).get("outs", []))
