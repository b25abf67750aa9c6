"""Any systems on the same candidates: measures, intervals, and tests against a baseline and the best. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.progress import track
from reranker.evaluation import metrics
from reranker.evaluation.comparison import MODES, Values
from reranker.evaluation.significance import bootstrap_interval, detected_errors, holm, randomisation_test

MEASURES = {
    "ndcg@5": "nDCG@5",
    "ndcg@10": "nDCG@10",
    "ndcg@20": "nDCG@20",
    "mrr@10": "RR@10",
    "map": "AP",
    "p@1": "P@1",
    "recall@10": "R@10",
    "recall@30": "R@30",
}
"""Our names of the measures and those of ir-measures."""
MEASURE = "ndcg@10"
"""That has intervals and is tested."""
ALPHA = 0.05
"""Of the test whose smallest detectable difference is told."""
COLUMNS = (
    "system", "kind", "mode", "queries", "ndcg@5", "ndcg@10", "ndcg@10_low", "ndcg@10_high", "ndcg@20", "mrr@10", "map",
    "p@1", "recall@10", "recall@30",
    "gain_vs_baseline", "gain_vs_baseline_low", "gain_vs_baseline_high", "p_vs_baseline", "p_vs_baseline_holm",
    "gain_vs_best", "gain_vs_best_low", "gain_vs_best_high", "p_vs_best", "p_vs_best_holm", "detectable",
    "ndcg@10_sd_of_repeats",
)  # fmt: skip
"""Of the table of all systems."""


def judge(
    pairs: pd.DataFrame, judgments: pd.DataFrame, scores: Mapping[str, Sequence[pd.Series]], *, judged_only: bool
) -> tuple[Values, dict[str, float]]:
    """Every query's measures of every system in both modes, see `evaluation.both_modes`.

    Args:
        pairs: columns query_id, passage_id and retrieved: the candidates and the right passages that were missed.
        judgments: of the same queries.
        scores: by system, in the order of the pairs; of a system that was repeated several, whose measures are
            averaged query by query.
        judged_only: leave candidates out that have no judgment for their query, before anything is counted: the
            condensed lists of Sakai (SIGIR 2007), for judgments that were collected for other systems.

    Returns:
        The measures, and for repeated systems the standard deviation over the repeats of their NDCG@10, retrieved.
    """
    keys = ["query_id", "passage_id"]
    counted = np.ones(len(pairs), bool)
    if judged_only:
        counted = (
            pairs[keys].merge(judgments[keys].assign(judged=True), on=keys, how="left")["judged"].notna().to_numpy()
        )
    parts = {"retrieved": counted & pairs["retrieved"].to_numpy(bool), "all_positives": counted}
    values: Values = {}
    deviations = {}
    for system, repeats in track(scores.items(), "compare", "systems", len(scores)):
        for mode in MODES:
            runs = (pairs[keys].assign(score=each.to_numpy(float))[parts[mode]] for each in repeats)
            tables = [metrics.per_query(judgments, run, list(MEASURES.values())) for run in runs]
            tables = [each.set_axis(list(MEASURES), axis=1) for each in tables]
            values[system, mode] = sum(tables[1:], start=tables[0]) / len(tables)
            if mode == "retrieved" and len(tables) > 1:
                deviations[system] = float(np.std([table[MEASURE].mean() for table in tables], ddof=1))
    return values, deviations


def table(
    values: Values, kinds: Mapping[str, str], baseline: str | None, deviations: Mapping[str, float], *, seed: int
) -> pd.DataFrame:
    """All systems beside each other, with intervals over queries and tests.

    Differences are of NDCG@10 over the retrieved candidates, with 95% bootstrap intervals. The p-values are of paired
    randomisation tests, and again corrected by Holm's procedure for as many systems as are tested against the same
    one. `detectable` is the smallest difference to the baseline that so many queries can detect with a power of 80%
    in a two-sided test at 5%, were the differences spread as they are: 2.8 s / √n, see `detected_errors`.

    Args:
        values: of both modes.
        kinds: of each system; their order is that of the rows.
        baseline: a system, or None where it has no values.
        deviations: of repeated systems, see `judge`.
        seed: of the resampling.

    Returns:
        Columns `COLUMNS`; one row a system and mode. The best system is the first of those with the highest NDCG@10.
    """
    best = max(kinds, key=lambda system: float(values[system, "retrieved"][MEASURE].mean()))
    found = {
        name: _against(values, list(kinds), system, name, seed=seed)
        for name, system in (("baseline", baseline), ("best", best))
        if system is not None
    }
    rows = []
    for system, kind in kinds.items():
        for mode in MODES:
            of_queries = values[system, mode]
            low, high = bootstrap_interval(of_queries[MEASURE].to_numpy(), seed=seed)
            row = {"system": system, "kind": kind, "mode": mode, "queries": len(of_queries), **of_queries.mean()}
            row |= {f"{MEASURE}_low": low, f"{MEASURE}_high": high}
            if mode == "retrieved":
                for differences in found.values():
                    row |= differences.get(system, {})
                row[f"{MEASURE}_sd_of_repeats"] = deviations.get(system, np.nan)
            rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def _against(
    values: Values, systems: Sequence[str], other: str, name: str, *, seed: int
) -> dict[str, dict[str, float]]:
    """What the table says of each system beside another one, by system; nothing of the other one itself."""
    theirs = values[other, "retrieved"][MEASURE]
    differences = {
        system: (values[system, "retrieved"][MEASURE] - theirs).to_numpy() for system in systems if system != other
    }
    p_values = [randomisation_test(each, seed=seed) for each in differences.values()]
    found = {}
    for (system, each), p, corrected in zip(differences.items(), p_values, holm(p_values), strict=True):
        low, high = bootstrap_interval(each, seed=seed)
        found[system] = {
            f"gain_vs_{name}": float(each.mean()),
            f"gain_vs_{name}_low": low,
            f"gain_vs_{name}_high": high,
            f"p_vs_{name}": p,
            f"p_vs_{name}_holm": corrected,
        }
        if name == "baseline":
            found[system]["detectable"] = detectable(each)
    return found


def detectable(differences: NDArray[np.float64]) -> float:
    """The smallest mean difference that is found with 80% power in a two-sided test at 5%; NaN for one query."""
    if len(differences) < 2:
        return float("nan")
    return float(detected_errors(ALPHA) * differences.std(ddof=1) / np.sqrt(len(differences)))
