"""Who says how right a mined passage is: the other signals, one of them, a cross-encoder, or a file of scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from reranker import fusion
from reranker.attention import use_attention
from reranker.compiled import use_backend
from reranker.records import read_scores
from reranker.scoring import load_cross_encoder, score_pairs

SIGNALS = {
    "fused": ("bm25", "static_score", "teacher_score"),
    "biencoder": ("teacher_score",),
    "static": ("static_score",),
    "bm25": ("bm25",),
}
"""Teachers that mining has asked already: their columns."""
FILES = (".parquet", ".csv")


def is_file(teacher: str) -> bool:
    """Whether a name in params.yaml is a file of scores."""
    return Path(teacher).suffix in FILES


def logits(
    teacher: str,
    negatives: pd.DataFrame,
    dev: pd.DataFrame,
    judgments: pd.DataFrame,
    *,
    precision: str,
    attention: str,
    backend: str,
) -> NDArray[np.float64]:
    """A teacher's scores of the mined pairs.

    Args:
        teacher: one of `SIGNALS`, a cross-encoder, or a file of scores.
        negatives: the signals' columns, query and passage (whole texts).
        dev: see `fusion.fit_weights`.
        judgments: see `fusion.fit_weights`.
        precision: float32 or bfloat16.
        attention: see `use_attention`.
        backend: see `from_cross_encoder`.

    Raises:
        UserError: see `from_cross_encoder` and `records.read_scores`.
        ValueError: see `fusion.fit_weights`.
    """
    if is_file(teacher):
        return read_scores(Path(teacher), negatives).to_numpy(float)
    if teacher in SIGNALS:
        return from_signals(teacher, negatives, dev, judgments)
    texts = negatives["query"].tolist(), negatives["passage"].tolist()
    return from_cross_encoder(teacher, *texts, precision=precision, attention=attention, backend=backend)


def from_signals(
    teacher: str, negatives: pd.DataFrame, dev: pd.DataFrame, judgments: pd.DataFrame
) -> NDArray[np.float64]:
    """Logits of signals: a weighted sum, with the weights that suit dev best.

    Args:
        teacher: one of `SIGNALS`.
        negatives: the pairs to be scored; the signals' columns.
        dev: see `fusion.fit_weights`.
        judgments: see `fusion.fit_weights`.

    Raises:
        ValueError: see `fusion.fit_weights`.
    """
    return fusion.fuse(negatives, fusion.fit_weights(dev, judgments, SIGNALS[teacher]))


def from_cross_encoder(
    teacher: str, queries: Sequence[str], passages: Sequence[str], *, precision: str, attention: str, backend: str
) -> NDArray[np.float64]:
    """Logits of a cross-encoder: its scores without its activation.

    Args:
        teacher: a folder or a Hub id.
        queries: as many as passages.
        passages: whole texts, which the teacher cuts as it is used to.
        precision: float32 or bfloat16.
        attention: see `use_attention`.
        backend: what computes in float32 where it is auto or openvino, see `use_backend`; torch does elsewhere.

    Raises:
        UserError: there is no usable model of that name, it has several outputs, or it cannot be computed as asked.
    """
    model = load_cross_encoder(teacher, "params.yaml: teacher:")
    model.activation_fn = nn.Identity()
    use_attention(model, attention, precision)
    # in float32 OpenVINO gives torch's scores to 1e-5; rounded to fewer digits, each library has its own
    if precision == "float32" and backend in ("auto", "openvino"):
        use_backend(model, backend, precision)
    return score_pairs(model, queries, passages, label="train: teacher", precision=precision)
