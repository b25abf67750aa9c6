"""Scores of systems that an earlier run has computed, kept by all that they depend on.

The key of a table is in it, so the two change together.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from reranker.common.artifacts import read_table
from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint
from reranker.common.system_schema import (
    BiencoderSystem,
    CrossEncoderSystem,
    ExperimentSystem,
    RetrieverSystem,
    StaticSystem,
    System,
)
from reranker.evaluation import experiment_models
from reranker.evaluation.systems import BM25, Settings
from reranker.retrieval import bm25

COLUMNS = ("query_id", "passage_id", "score")
KEY = "key"
CODE = (
    "common/model_files", "evaluation/systems", "inference/backends", "inference/excerpts", "inference/export",
    "inference/fusion", "inference/graphs", "inference/loading", "inference/reranker", "inference/scoring",
    "retrieval/bm25", "retrieval/retrievers",
)  # fmt: skip
"""The files of `reranker` that decide a score."""
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "openvino", "nncf", "onnxruntime")


def key(system: System, settings: Settings, pairs: pd.DataFrame) -> str:
    """A hash over all that decides the scores of a system: what is said of it, its model, the texts, the code.

    Args:
        system: of any kind but `fused` and `run`; one experiment at most.
        settings: see `Settings`.
        pairs: columns query_id, passage_id, query, passage and retrieved.

    Raises:
        UserError: a revision is unknown or has no reranker, or there is no such bundled model.
    """
    here = Path(__file__).parents[1]
    decided = {
        "system": system.model_dump(),
        "models": _models(system),
        "settings": {**settings._asdict(), "words": _hash(bm25.dump(settings.words))},
        "pairs": _hash(pairs[[*COLUMNS[:2], "query", "passage", "retrieved"]].to_csv(index=False)),
        "device": torch.cuda.is_available(),
        "code": {name: _hash((here / f"{name}.py").read_text(encoding="utf-8")) for name in CODE},
        "libraries": {each.name: each.version for each in metadata.distributions() if each.name in LIBRARIES},
    }
    return _hash(json.dumps(decided, sort_keys=True))


def kept(path: Path, wanted: str) -> pd.DataFrame | None:
    """The table at a path if it has this key; None if it has another one, is damaged or is not there."""
    try:
        table = read_table(path, COLUMNS)
    except UserError:
        return None
    return table if table.attrs.get(KEY) == wanted else None


def with_key(table: pd.DataFrame, own: str) -> pd.DataFrame:
    """The table with its key, which Parquet keeps."""
    labelled = table.copy()
    labelled.attrs = {KEY: own}
    return labelled


def _models(system: System) -> Mapping[str, str]:
    if isinstance(system, ExperimentSystem):
        return {name: experiment_models.model_hash(name) for name in system.experiment}
    if isinstance(system, RetrieverSystem):
        names = [name for name in system.retriever if name != BM25]
    elif isinstance(system, BiencoderSystem):
        names = [system.biencoder]
    elif isinstance(system, StaticSystem):
        names = [system.static]
    elif isinstance(system, CrossEncoderSystem):
        names = [system.cross_encoder]
    else:
        raise TypeError(f"{type(system).__name__} has no scores of its own")
    return {name: fingerprint(name) for name in names}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
