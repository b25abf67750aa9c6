"""The model that the pair pipeline ships: it scores similarity by the cross-encoder and the base model together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sentence_transformers import CrossEncoder, SentenceTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression

from reranker.common.artifacts import read_weights
from reranker.common.model_files import loading
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.loading import load_biencoder
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.pairs.params import Task

Values = NDArray[np.float64]
NAME = "fine_tuned"
FEATURES = ("zero_shot", "cross_encoder")


def fit(task: Task, features: Mapping[str, Values], labels: Values) -> dict[str, float]:
    """Fit the weights of the features by linear regression on scores, or by logistic regression on duplicates.

    Args:
        task: score or duplicates.
        features: `FEATURES` of pairs that were not used for training; shape (pairs,) each.
        labels: the labels of these pairs, from 0 to 1.
    """
    model = LinearRegression() if task == "score" else LogisticRegression()
    model.fit(np.column_stack([features[name] for name in FEATURES]), labels)
    weights = dict(zip(FEATURES, map(float, np.ravel(model.coef_)), strict=True))
    return weights | {"constant": float(np.ravel(model.intercept_)[0]), "logistic": float(task == "duplicates")}


def fuse(features: Mapping[str, Values], weights: Mapping[str, float]) -> Values:
    """The fused score, from 0 to 1; shape (pairs,)."""
    total = sum((weights[name] * features[name] for name in FEATURES), start=np.array(weights["constant"]))
    fused: Values = expit(total) if weights["logistic"] else np.clip(total, 0.0, 1.0)
    return fused


def features(
    cross_encoder: CrossEncoder,
    biencoder: SentenceTransformer,
    first: Sequence[str],
    second: Sequence[str],
    compute: Compute,
) -> dict[str, Values]:
    """`FEATURES` of each first text with the second text at the same place; shape (pairs,) each."""
    return {
        "zero_shot": pair_cosines(biencoder, first, second, label="base model", compute=compute),
        "cross_encoder": score_pairs(cross_encoder, first, second, label="cross-encoder", compute=compute),
    }


class PairModel:
    """The model that scores pairs, as the evaluate stage measures it.

    Args:
        path: the folder that the train stage of pairs writes, for the tasks score and duplicates. `CrossEncoder(path)`
            loads the cross-encoder alone, which is all that the task class ships.
        compute: see `choose_compute`; None stands for torch in the precision in which this machine is fast.

    Raises:
        UserError: the folder lacks the weights, or a model in it cannot be loaded.
    """

    def __init__(self, path: str | Path, compute: Compute | None = None) -> None:
        path = Path(path)
        self.weights = read_weights(path / "fusion.json", NAME)[NAME]
        with loading(str(path)):
            self._cross_encoder = CrossEncoder(str(path))
        self._biencoder = load_biencoder(str(path / "biencoder"), self._cross_encoder.max_seq_length)
        self._compute = compute or choose_compute(backend="torch")

    def features(self, first: Sequence[str], second: Sequence[str]) -> dict[str, Values]:
        """The features that are fused, see `features`."""
        return features(self._cross_encoder, self._biencoder, first, second, self._compute)

    def scores(self, first: Sequence[str], second: Sequence[str]) -> Values:
        """Scores from 0 (nothing in common) to 1 (the same), for each first text with the second at the same place."""
        return fuse(self.features(first, second), self.weights)


def dump(weights: Mapping[str, float]) -> str:
    """The weights in the form that `PairModel` reads."""
    return json.dumps({NAME: weights}, indent=2, sort_keys=True) + "\n"
