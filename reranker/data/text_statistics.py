"""How long the texts are in tokens: what a person looks at before training."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tokenizers import Tokenizer

TOGETHER = 1_000
"""Texts that are encoded at a time: an encoding holds far more than its length."""


def token_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int64]:
    """Lengths in tokens of a model, special tokens included."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    runs = (texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER))
    return np.array([len(encoding.ids) for run in runs for encoding in tokenizer.encode_batch(list(run))], np.int64)


def percentiles(lengths: NDArray[np.int64], name: str) -> dict[str, int]:
    """The percentiles 50, 90 and 99 and the longest, as `NAME_p50` and so on.

    Args:
        lengths: one at least.
        name: of the texts.
    """
    values = np.percentile(lengths, [50, 90, 99, 100], method="higher")
    return {f"{name}_{key}": int(value) for key, value in zip(("p50", "p90", "p99", "max"), values, strict=True)}


def histogram(lengths: Mapping[str, NDArray[np.int64]]) -> pd.DataFrame:
    """How many texts have how many tokens; two bars for every doubling of the length.

    Args:
        lengths: by the name of the texts.

    Returns:
        Columns text (the name), from and to (tokens; the first is in the bar, the second is not), share (of the texts).
    """
    tables = [pd.DataFrame({"text": [], "from": [], "to": [], "share": []})]
    for name, values in lengths.items():
        steps = np.arange(2 * np.log2(max(values.max(), 1)) + 3)
        edges = np.unique(np.round(2 ** (steps / 2))).astype(int)
        counts, _ = np.histogram(values, edges)
        bars = pd.DataFrame({"text": name, "from": edges[:-1], "to": edges[1:], "share": counts / len(values)})
        tables.append(bars[np.flatnonzero(counts)[0] : np.flatnonzero(counts)[-1] + 1])
    return pd.concat(tables, ignore_index=True).astype({"from": int, "to": int})
