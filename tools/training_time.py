"""The minutes of training steps of each system, from the times that the stages record."""

from collections.abc import Mapping

TRAINED = {
    "tuned_biencoder": ("warm", "control"),
    "fusion_without_cross_encoder": ("warm", "static"),
    "cross_encoder": ("warm", "static", "train"),
    "reranker": ("warm", "static", "train"),
}
"""The stages that train each system; the static embedding is one of the cross-encoder's teachers."""


def minutes(seconds: Mapping[str, float], system: str) -> float:
    """The minutes that a system's training steps took.

    Args:
        seconds: the content of metrics/timing.json.
        system: a key of `TRAINED`.
    """
    return sum(seconds[f"{stage}_training_seconds"] for stage in TRAINED[system]) / 60
