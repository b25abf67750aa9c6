"""Read the parameters, dvc.lock and figures of the run in a commit, an experiment or the workspace."""

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
"""The stage whose figures are compared."""
SYSTEMS = ("reranker", "cross_encoder")
"""The systems whose NDCG@10 compares experiments: the shipped reranker, and the cross-encoder alone."""
FIGURES = {
    "dev_ndcg@10": ("dev", "reranker"),
    "dev_ndcg@10_cross_encoder": ("dev", "cross_encoder"),
    "ndcg@10": ("test", "reranker"),
    "ndcg@10_cross_encoder": ("test", "cross_encoder"),
}
"""The figures by which experiments can be sorted, by their names in `dvc exp show`: split and system."""
DEV = {system: name for name, (split, system) in FIGURES.items() if split == "dev"}
"""The name of NDCG@10 on dev in metrics/train.json, by system."""
HEADLINE = {
    "ndcg@10": ("evaluate", "NDCG@10"),
    "mrr@10": ("evaluate", "MRR@10"),
    "map": ("evaluate", "MAP"),
    "recall@10": ("evaluate", "Recall@10"),
    "recall@30": ("evaluate", "Recall@30"),
    "ndcg@10_all_positives": ("evaluate", "NDCG@10, missed relevant passages added"),
    "ndcg@10_cross_encoder": ("evaluate", "NDCG@10 of the cross-encoder alone"),
    "gain_vs_bm25": ("evaluate", "Gain on BM25 over the whole corpus"),
    "gain_vs_untouched_reranker": ("evaluate", "Gain on the published reranker, untouched"),
    "dev_ndcg@10": ("train", "NDCG@10 on dev"),
}
"""The figures of a review's first table: their file in metrics/ and their label."""
SECONDS = ("mine_seconds", "train_seconds")
"""Keys of metrics/timing.json."""
FILES = ("evaluate", "train", "mine", "prepare", "timing")
"""Files of metrics/; only the first one is required."""


@dataclass(frozen=True)
class Run:
    """The inputs and results of a run."""

    name: str
    commit: str | None
    """None stands for the workspace."""
    params: Mapping[str, Any]
    lock: Lock
    figures: Mapping[str, Mapping[str, Any]]
    """The figures by the stem of their file in metrics/; a missing file has none."""
    per_query: pd.DataFrame
    """NDCG@10 of the test queries: one column per system; the index has the ids of the queries."""
    costs: pd.DataFrame
    """Columns system, megabytes and so on; without rows if costs were not measured."""
    raw: Mapping[str, str]
    """The hash of each file in data/ that the user tracks with DVC, by the path of its `.dvc` file."""

    @cached_property
    def files(self) -> dict[str, str]:
        """The hash of each file or folder of code or data that no stage writes."""
        return self.lock.source_files(STAGE)

    @property
    def dev(self) -> dict[str, float]:
        """NDCG@10 on dev of each system."""
        return {system: self.figures["train"][name] for system, name in DEV.items()}

    @property
    def test(self) -> pd.DataFrame:
        """NDCG@10 of the test queries in the order of their ids, for `SYSTEMS`."""
        return self.per_query[list(SYSTEMS)].sort_index()

    @property
    def dev_queries(self) -> int | None:
        """The number of dev queries; None if the run did not record it."""
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
        UserError: the revision has no figures of `evaluate`, or one of its files cannot be read.
    """
    empty: dict[str, Any] = {}
    figures = {stem: revision.read(PATHS.metrics / f"{stem}.json", _figures, empty) for stem in FILES}
    if "ndcg@10" not in figures["evaluate"]:
        raise UserError(f"{revision.name}: no ndcg@10 in {PATHS.metrics / 'evaluate.json'}; {REMEDY}")
    lock = revision.lock()
    if STAGE not in lock.stages:
        raise UserError(f"{revision.name}: the stage {STAGE} did not run, because it is not in dvc.lock; {REMEDY}")
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
        raise ValueError("a figure is not a number")
    return values


def _per_query(text: str) -> pd.DataFrame:
    table = pd.read_csv(StringIO(text), dtype={"query_id": str}, keep_default_na=False, index_col="query_id")
    if "reranker" not in table:
        raise ValueError("no column reranker")
    if table.index.has_duplicates:
        raise ValueError("a query occurs twice")
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
