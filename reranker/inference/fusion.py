"""Fuse several scores into one: a weighted sum whose weights are fitted on dev.

The sum is over raw scores, not over ranks or per-query z-scores, so that a passage's score does not depend
on the other candidates. This module does not import torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

SIGNALS = ("bm25", "static_score", "biencoder_score")
"""The scores that mining computes, with which the cross-encoder's score is fused."""
PENALTY = 0.01
"""Factor of the squared weights of standardised scores: enough to make the fit unique, too little to move it."""
FOLDS = 5
"""Parts of the queries in cross-validation."""


def fit_weights(table: pd.DataFrame, judgments: pd.DataFrame, features: Sequence[str]) -> dict[str, float]:
    """Non-negative weights that make the relevant candidates most likely in a softmax over each query's candidates.

    This is the conditional logit model (McFadden 1974), which is convex and has one optimum. Queries without a
    relevant candidate carry no information and are left out.

    Args:
        table: candidates; columns query_id, passage_id and the features, all of them numbers.
        judgments: columns query_id, passage_id, relevance.
        features: names of columns whose larger values are better.

    Returns:
        Weight by feature, on the raw scale of the feature.

    Raises:
        ValueError: no query has a relevant candidate.
    """
    relevant = judgments.loc[judgments["relevance"] > 0, ["query_id", "passage_id"]].assign(relevant=1.0)
    rows = table.merge(relevant, on=["query_id", "passage_id"], how="left").fillna({"relevant": 0.0})
    rows = rows[rows.groupby("query_id")["relevant"].transform("sum") > 0].sort_values(["query_id", "passage_id"])
    if rows.empty:
        raise ValueError("no query has a relevant candidate")
    values = rows[list(features)].to_numpy(float)
    spread = values.std(axis=0)
    spread[spread == 0] = 1.0
    starts = np.flatnonzero(~rows.duplicated("query_id").to_numpy())
    sizes = np.diff(np.append(starts, len(rows)))
    relevance = rows["relevant"].to_numpy()
    target = relevance / np.repeat(np.add.reduceat(relevance, starts), sizes)
    optimum = minimize(
        _loss,
        np.ones(len(features)),
        args=(values / spread, target, starts, sizes),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(features),
    )
    return {feature: float(weight) for feature, weight in zip(features, optimum.x / spread, strict=True)}


def cross_validated(table: pd.DataFrame, judgments: pd.DataFrame, features: Sequence[str]) -> NDArray[np.float64]:
    """Fused scores of each query, with weights that are fitted on the other `FOLDS` − 1 folds of the queries.

    Where the other folds have no relevant candidate, the weights are fitted on all queries.

    Args:
        table: see `fit_weights`.
        judgments: see `fit_weights`.
        features: see `fit_weights`.

    Returns:
        A score per row of the table.

    Raises:
        ValueError: no query has a relevant candidate.
    """
    weights_of_all = fit_weights(table, judgments, features)
    fold = pd.factorize(table["query_id"], sort=True)[0] % FOLDS
    scores = np.zeros(len(table))
    for number in range(FOLDS):
        held_out = fold == number
        try:
            weights = fit_weights(table[~held_out], judgments, features)
        except ValueError:
            weights = weights_of_all
        scores[held_out] = fuse(table[held_out], weights)
    return scores


def _loss(
    weights: NDArray[np.float64],
    values: NDArray[np.float64],
    target: NDArray[np.float64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[float, NDArray[np.float64]]:
    """Mean cross-entropy per query and its gradient."""
    logits = values @ weights
    logits -= np.repeat(np.maximum.reduceat(logits, starts), sizes)
    likelihood = np.exp(logits)
    total = np.add.reduceat(likelihood, starts)
    log_probability = logits - np.repeat(np.log(total), sizes)
    probability = likelihood / np.repeat(total, sizes)
    loss = -(target @ log_probability) / len(starts) + PENALTY * weights @ weights
    return float(loss), (probability - target) @ values / len(starts) + 2 * PENALTY * weights


def fuse(
    scores: Mapping[str, NDArray[np.float64] | pd.Series] | pd.DataFrame, weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """The weighted sum of the scores; features without a weight do not count.

    Args:
        scores: one array or column per feature, all of the same length.
        weights: weight by feature.
    """
    parts = [weight * np.asarray(scores[feature], dtype=float) for feature, weight in weights.items()]
    fused: NDArray[np.float64] = np.sum(parts, axis=0)
    return fused
