"""A cache of the scores that earlier runs computed, keyed by all that the scores depend on.

A table of scores contains its key, so that both are always written together.
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
from reranker.evaluation import experiment_models
from reranker.evaluation.system_schema import SYSTEM_KINDS, ExperimentSystem, System
from reranker.evaluation.systems import BM25, Settings
from reranker.retrieval import bm25

COLUMNS = ("query_id", "passage_id", "score")
KEY = "key"
CODE = ("common/bundled", "common/model_files.py", "evaluation/systems.py", "inference", "retrieval")
"""The files and folders of `reranker` that decide a score."""
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "openvino", "nncf", "onnxruntime")


def cache_key(system: System, settings: Settings, pairs: pd.DataFrame) -> str:
    """A hash of all that decides the scores of a system: its entry, its model, the texts and the code.

    Args:
        system: a system of any kind but `fused` and `run`, with at most one experiment.
        settings: see `Settings`.
        pairs: columns query_id, passage_id, query, passage and retrieved.

    Raises:
        UserError: a revision is unknown or has no reranker, or a bundled model does not exist.
    """
    package = Path(__file__).parents[1]
    code = sorted(path for path in package.rglob("*.py") if any(path.is_relative_to(package / name) for name in CODE))
    inputs = {
        "system": system.model_dump(),
        "models": _models(system),
        # the engine gives the same bytes wherever it computes
        "settings": {**settings._asdict(), "words": _hash(bm25.dump(settings.words)), "compute": settings.compute[:-1]},
        "pairs": _hash(pairs[[*COLUMNS[:2], "query", "passage", "retrieved"]].to_csv(index=False)),
        "device": torch.cuda.is_available(),
        "code": {path.relative_to(package).as_posix(): _hash(path.read_text(encoding="utf-8")) for path in code},
        "libraries": {each.name: each.version for each in metadata.distributions() if each.name in LIBRARIES},
    }
    return _hash(json.dumps(inputs, sort_keys=True))


def cached_scores(path: Path, key: str) -> pd.DataFrame | None:
    """The table at a path if it has this key; None if it has another key, is damaged or does not exist."""
    try:
        table = read_table(path, COLUMNS)
    except UserError:
        return None
    return table if table.attrs.get(KEY) == key else None


def with_key(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """The table with its key as an attribute, which Parquet stores."""
    copy = table.copy()
    copy.attrs = {KEY: key}
    return copy


def _models(system: System) -> Mapping[str, str]:
    """The hash of each model that an entry of `systems` names."""
    kind = next(name for name, schema in SYSTEM_KINDS.items() if isinstance(system, schema))
    names = getattr(system, kind)
    find = experiment_models.model_hash if isinstance(system, ExperimentSystem) else fingerprint
    return {name: find(name) for name in ([names] if isinstance(names, str) else names) if name != BM25}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
