"""One score from several: a weighted sum whose weights are fitted on dev.

The sum is over raw scores, not over ranks or per-query z-scores, so that a passage's score does not depend
on the other candidates. No torch here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

PENALTY = 0.01
"""Of the squared weights of standardised scores: enough to make the fit unique, too little to move it."""
FOLDS = 5
"""Parts of the queries in cross-validation."""


def fit_weights(table: pd.DataFrame, judgments: pd.DataFrame, features: Sequence[str]) -> dict[str, float]:
    """Weights, none below 0, that make the right candidates most likely under a softmax over each query's candidates.

    This is the conditional logit model (McFadden 1974), convex with one optimum. Queries without a right
    candidate say nothing and are left out.

    Args:
        table: candidates; columns query_id, passage_id and the features, all of them numbers.
        judgments: columns query_id, passage_id, relevance.
        features: names of columns, the larger the better.

    Returns:
        Weight by feature, on the raw scale of the feature.

    Raises:
        ValueError: no query has a right candidate.
    """
    right = judgments.loc[judgments["relevance"] > 0, ["query_id", "passage_id"]].assign(right=1.0)
    rows = table.merge(right, on=["query_id", "passage_id"], how="left").fillna({"right": 0.0})
    rows = rows[rows.groupby("query_id")["right"].transform("sum") > 0].sort_values(["query_id", "passage_id"])
    if rows.empty:
        raise ValueError("no query has a right candidate")
    values = rows[list(features)].to_numpy(float)
    spread = values.std(axis=0)
    spread[spread == 0] = 1.0
    starts = np.flatnonzero(~rows.duplicated("query_id").to_numpy())
    sizes = np.diff(np.append(starts, len(rows)))
    target = rows["right"].to_numpy() / np.repeat(np.add.reduceat(rows["right"].to_numpy(), starts), sizes)
    found = minimize(
        _loss,
        np.ones(len(features)),
        args=(values / spread, target, starts, sizes),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(features),
    )
    return {feature: float(weight) for feature, weight in zip(features, found.x / spread, strict=True)}


def cross_validated(table: pd.DataFrame, judgments: pd.DataFrame, features: Sequence[str]) -> NDArray[np.float64]:
    """Fused scores of each query by weights that are fitted on the other queries' folds, of which there are `FOLDS`.

    Where the other folds have no right candidate, all queries fit the weights.

    Args:
        table: see `fit_weights`.
        judgments: see `fit_weights`.
        features: see `fit_weights`.

    Returns:
        A score per row of the table.

    Raises:
        ValueError: no query has a right candidate.
    """
    everything = fit_weights(table, judgments, features)
    fold = pd.factorize(table["query_id"], sort=True)[0] % FOLDS
    scores = np.zeros(len(table))
    for number in range(FOLDS):
        held_out = fold == number
        try:
            weights = fit_weights(table[~held_out], judgments, features)
        except ValueError:
            weights = everything
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
    log_chance = logits - np.repeat(np.log(total), sizes)
    chance = likelihood / np.repeat(total, sizes)
    loss = -(target @ log_chance) / len(starts) + PENALTY * weights @ weights
    return float(loss), (chance - target) @ values / len(starts) + 2 * PENALTY * weights


def fuse(
    scores: Mapping[str, NDArray[np.float64] | pd.Series] | pd.DataFrame, weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """The weighted sum; features without a weight do not count.

    Args:
        scores: one array or column per feature, all of the same length.
        weights: weight by feature.
    """
    parts = [weight * np.asarray(scores[feature], dtype=float) for feature, weight in weights.items()]
    fused: NDArray[np.float64] = np.sum(parts, axis=0)
    return fused
