"""One score from several systems', query by query: their ranks fused, or their z-scores added with weights.

What is taken of a query (ranks, mean, deviation) is taken of the candidates that the retriever found. So the right
passages that are added in the mode `all_positives` have a score, and move none of the others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.first_stage import FUSION_K

Scores = NDArray[np.float64]


def fused_ranks(scores: Sequence[Scores], pairs: pd.DataFrame) -> Scores:
    """Reciprocal-rank fusion over the candidates of each query (Cormack, Clarke and Buettcher, SIGIR 2009).

    Args:
        scores: of each system; shape (pairs,).
        pairs: columns query_id and retrieved, which candidates the retriever found.

    Returns:
        The sum of 1 / (60 + rank); a rank is 1 and the number of retrieved candidates that score higher.
    """
    fused = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        for system in scores:
            found = np.sort(system[rows][retrieved[rows]])
            higher = len(found) - np.searchsorted(found, system[rows], side="right")
            fused[rows] += 1 / (FUSION_K + 1 + higher)
    return fused


def added_z_scores(scores: Mapping[str, Scores], weights: Mapping[str, float], pairs: pd.DataFrame) -> Scores:
    """The weighted sum of z-scores over the candidates of each query, as in `fusion.fuse` of standardised scores.

    Args:
        scores: by system; shape (pairs,). Those without a weight do not count.
        weights: by system.
        pairs: columns query_id and retrieved, which candidates the retriever found.

    Returns:
        One score a pair. A system that scores all retrieved candidates of a query alike says nothing of it.
    """
    added = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        known = retrieved[rows]
        for system, weight in weights.items():
            of_query = scores[system][rows]
            spread = of_query[known].std() if known.any() else 0.0
            if spread > 0:
                added[rows] += weight * (of_query - of_query[known].mean()) / spread
    return added
