"""One training step in several passes of pairs of similar length: the same gradient from fewer padding tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PASS_TOKENS = 256
"""Tokens that a further pass has to save: it costs time of its own, for one, to add up the gradient of all weights.

On two cores 128 to 512 are equally fast. With 256 the short pairs of the committed params.yaml stay one pass.
"""


@contextmanager
def in_passes(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model in training mode reads a batch in passes of similar length where that is cheaper.

    A loss that calls the model gets the scores of the whole batch, with a graph over all passes: its value and its
    gradient are those of one padded pass, up to rounding. Dropout, where there is any, draws other numbers. On a GPU,
    where a pass costs more than padding does, and for inputs that are not padded nothing changes.

    Args:
        model: a cross-encoder; it gives `scores` for tokens with an attention mask.
    """
    whole, before = model.forward, vars(model).get("forward")

    def forward(features: dict[str, Any], **others: Any) -> dict[str, Tensor]:
        parts = split(features["attention_mask"].sum(1).numpy()) if model.training and _padded(features) else []
        if len(parts) < 2:
            return cast(dict[str, Tensor], whole(features, **others))
        rows = [torch.from_numpy(part) for part in parts]
        scores = torch.cat([whole(_some(features, some), **others)["scores"] for some in rows])
        return {"scores": scores[torch.cat(rows).argsort()]}

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:  # what the trainer wraps the model's own in
            model.forward = before


def split(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The passes that together cost least: each as many tokens as its rows padded to its longest, and PASS_TOKENS.

    Args:
        lengths: tokens of each row.

    Returns:
        Places of the rows of each pass, the shortest rows first; each place once.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    number = len(ordered)
    cost, begin = np.zeros(number + 1), np.zeros(number + 1, dtype=int)
    for end in range(1, number + 1):
        with_last = cost[:end] + ordered[end - 1] * np.arange(end, 0, -1) + PASS_TOKENS
        begin[end] = with_last.argmin()
        cost[end] = with_last[begin[end]]
    parts: list[NDArray[np.int64]] = []
    end = number
    while end:
        parts.append(order[begin[end] : end])
        end = begin[end]
    return parts[::-1]


def _padded(features: dict[str, Any]) -> bool:
    mask = features.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.device.type != "cpu" or mask.all():
        return False
    return all(value.shape == mask.shape for value in features.values() if isinstance(value, Tensor))


def _some(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    columns = features["attention_mask"][rows].any(0)  # padding may be on either side
    return {key: value[rows][:, columns] if isinstance(value, Tensor) else value for key, value in features.items()}
