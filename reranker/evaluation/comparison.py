"""Compare systems on the same candidates: measures per query in both modes, means and paired differences. No torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.errors import UserError
from reranker.common.progress import track
from reranker.evaluation import metrics
from reranker.evaluation.significance import bootstrap_interval, detectable_errors, holm, randomisation_test

KEYS = ["query_id", "passage_id"]
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
"""The names of the measures in our tables, and their names in ir-measures."""
MEASURE = "ndcg@10"
"""The measure with intervals and tests."""
MODES = ("retrieved", "all_positives")
ALPHA = 0.05
"""The significance level for which the smallest detectable difference is computed."""
COLUMNS = (
    "system", "kind", "mode", "queries", "ndcg@5", "ndcg@10", "ndcg@10_low", "ndcg@10_high", "ndcg@20", "mrr@10", "map",
    "p@1", "recall@10", "recall@30",
    "gain_vs_baseline", "gain_vs_baseline_low", "gain_vs_baseline_high", "p_vs_baseline", "p_vs_baseline_holm",
    "gain_vs_best", "gain_vs_best_low", "gain_vs_best_high", "p_vs_best", "p_vs_best_holm", "detectable",
    "ndcg@10_sd_of_repeats",
)  # fmt: skip
"""Columns of the table of all systems."""
Values = dict[tuple[str, str], pd.DataFrame]
"""A table for each system and mode: one row per query, one column per measure."""


class Difference(NamedTuple):
    """A system's NDCG@10 on the retrieved candidates minus that of another system."""

    gain: float
    """The mean difference over the queries."""
    low: float
    high: float
    """The ends of its 95% bootstrap interval."""
    p: float
    """The p-value of a paired randomisation test."""
    p_holm: float
    """The p-value, corrected for the number of systems that are tested against the same one."""
    detectable: float
    """See `detectable`."""


def align(pairs: pd.DataFrame, scored: pd.DataFrame, system: str) -> pd.Series:
    """Put a system's scores into the order of the pairs.

    Raises:
        UserError: a pair has no score.
    """
    merged = pairs[KEYS].merge(scored, on=KEYS, how="left")
    if merged["score"].isna().any():
        raise UserError(
            f"data/scored/{system}.parquet: {int(merged['score'].isna().sum())} of {len(pairs)} candidates "
            f"have no score; run `dvc repro score@{system}`"
        )
    return merged["score"]


def measure(
    pairs: pd.DataFrame,
    judgments: pd.DataFrame,
    scores: Mapping[str, Sequence[pd.Series]],
    *,
    label: str,
    judged_only: bool = False,
    runs: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[Values, dict[str, float]]:
    """Compute the measures of every system for every query in both modes, from the same scores.

    In the mode `retrieved` a system ranks the candidates of the retriever, and a relevant passage that the retriever
    missed counts against every system alike. In `all_positives` the missed passages are added to the candidates.

    Args:
        pairs: columns query_id, passage_id and retrieved: the candidates, and the relevant passages that were missed.
        judgments: judgments of the same queries.
        scores: scores of each system, in the order of the pairs. A repeated system has several scores, and its measures
            are averaged query by query.
        label: the name of the step, shown beside the progress.
        judged_only: leave out candidates that have no judgment for their query before anything is computed. These are
            the condensed lists of Sakai (SIGIR 2007), for judgments that were collected for other systems.
        runs: the rankings of systems that search by themselves instead of ranking the candidates: columns query_id,
            passage_id, score. They come first, and have the mode `retrieved` alone.

    Returns:
        The measures, and for each repeated system the standard deviation of its NDCG@10 in the mode `retrieved`.
    """
    compared = np.ones(len(pairs), bool)
    if judged_only:
        compared = pd.MultiIndex.from_frame(pairs[KEYS]).isin(pd.MultiIndex.from_frame(judgments[KEYS]))
    rows = {"retrieved": compared & pairs["retrieved"].to_numpy(bool), "all_positives": compared}
    values: Values = {}
    deviations = {}
    for system, run in (runs or {}).items():
        if judged_only:
            run = run[pd.MultiIndex.from_frame(run[KEYS]).isin(pd.MultiIndex.from_frame(judgments[KEYS]))]
        values[system, "retrieved"] = _measured(judgments, run)
    for system, repeats in track(scores.items(), label, "systems", len(scores)):
        for mode in MODES:
            of_mode = (pairs[KEYS].assign(score=each.to_numpy(float))[rows[mode]] for each in repeats)
            tables = [_measured(judgments, run) for run in of_mode]
            values[system, mode] = sum(tables[1:], start=tables[0]) / len(tables)
            if mode == "retrieved" and len(tables) > 1:
                deviations[system] = float(np.std([table[MEASURE].mean() for table in tables], ddof=1))
    return values, deviations


def _measured(judgments: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
    return metrics.per_query(judgments, run, list(MEASURES.values())).set_axis(list(MEASURES), axis=1)


def perfect_ndcg(pairs: pd.DataFrame, judgments: pd.DataFrame) -> float:
    """NDCG@10 of the best possible order of the retrieved candidates: what no reranker can exceed.

    Args:
        pairs: columns query_id, passage_id and retrieved.
        judgments: columns query_id, passage_id, relevance.
    """
    retrieved = pairs.loc[pairs["retrieved"], KEYS]
    relevance = retrieved.merge(judgments[[*KEYS, "relevance"]], on=KEYS, how="left")["relevance"].fillna(0)
    return metrics.mean_ndcg(judgments, retrieved, relevance.to_numpy(float))


def summarise(values: Values, *, seed: int) -> pd.DataFrame:
    """Means over the queries, with the 95% bootstrap interval of NDCG@10.

    Returns:
        Columns system, mode, queries, the measures, ndcg@10_low and ndcg@10_high; one row per system and mode.
    """
    rows = []
    for (system, mode), table in values.items():
        low, high = bootstrap_interval(table[MEASURE].to_numpy(), seed=seed)
        interval = {f"{MEASURE}_low": low, f"{MEASURE}_high": high}
        rows.append({"system": system, "mode": mode, "queries": len(table), **table.mean(), **interval})
    return pd.DataFrame(rows)


def differences(values: Values, systems: Sequence[str], other: str, *, seed: int) -> dict[str, Difference]:
    """Compare each of some systems with another one, query by query, see `Difference`.

    Null hypothesis of each test: the two systems are the same, see `randomisation_test`. Holm's procedure corrects the
    p-values for the number of `systems`.
    """
    theirs = values[other, "retrieved"][MEASURE]
    by_system = {system: (values[system, "retrieved"][MEASURE] - theirs).to_numpy() for system in systems}
    p_values = [randomisation_test(each, seed=seed) for each in by_system.values()]
    return {
        system: Difference(float(each.mean()), *bootstrap_interval(each, seed=seed), p, corrected, detectable(each))
        for (system, each), p, corrected in zip(by_system.items(), p_values, holm(p_values), strict=True)
    }


def detectable(differences: NDArray[np.float64]) -> float:
    """The smallest mean difference that a two-sided test at 5% detects with a power of 80%; NaN for one query.

    It is 2.8 s / √n, with the standard deviation s of the n differences; see `detectable_errors`.
    """
    if len(differences) < 2:
        return float("nan")
    return float(detectable_errors(ALPHA) * differences.std(ddof=1) / np.sqrt(len(differences)))


def compare(
    values: Values, kinds: Mapping[str, str], baseline: str | None, deviations: Mapping[str, float], *, seed: int
) -> pd.DataFrame:
    """Put all systems into one table, with intervals, and with tests against the baseline and the best system.

    Args:
        values: the measures in both modes.
        kinds: the kind of each system.
        baseline: a system; None where it has no values.
        deviations: standard deviations of repeated systems, see `measure`.
        seed: seed of the resampling.

    Returns:
        Columns `COLUMNS`; one row per system and mode, in the order of the values. Differences are in the rows of the
        mode `retrieved`. The best system has the highest NDCG@10 in that mode, and of equals it is the first one.
        `detectable` belongs to the difference to the baseline.
    """
    best = max(kinds, key=lambda system: float(values[system, "retrieved"][MEASURE].mean()))
    figures: dict[str, dict[str, str | float]] = {
        system: {"system": system, "mode": "retrieved", f"{MEASURE}_sd_of_repeats": deviations.get(system, np.nan)}
        for system in kinds
    }
    for name, other in (("baseline", baseline), ("best", best)):
        if other is None:
            continue
        others = [system for system in kinds if system != other]
        for system, difference in differences(values, others, other, seed=seed).items():
            figures[system] |= _figures(difference, name) | {f"p_vs_{name}_holm": difference.p_holm}
            if name == "baseline":
                figures[system]["detectable"] = difference.detectable
    means = summarise(values, seed=seed)
    table = means.assign(kind=means["system"].map(kinds)).merge(
        pd.DataFrame(list(figures.values())), on=["system", "mode"], how="left"
    )
    return table.reindex(columns=list(COLUMNS))


def flatten(means: pd.DataFrame, gains: Mapping[str, Difference], shipped: str) -> dict[str, float | int]:
    """The figures that `dvc exp show` lists, without nesting; only those of the shipped system have no suffix.

    Args:
        means: see `summarise`; the measures among its columns are listed.
        gains: the differences between the shipped system and others.
        shipped: the name of the shipped system.
    """
    rows = means.set_index(["system", "mode"]).to_dict("index")
    figures: dict[str, float | int] = {str(name): value for name, value in rows[shipped, "retrieved"].items()}
    figures[f"{MEASURE}_all_positives"] = rows[shipped, "all_positives"][MEASURE]
    for system in means["system"].unique():
        if system != shipped:
            figures[f"{MEASURE}_{system}"] = rows[system, "retrieved"][MEASURE]
    for other, gain in gains.items():
        figures |= _figures(gain, other)
    return figures


def _figures(difference: Difference, other: str) -> dict[str, float]:
    return {
        f"gain_vs_{other}": difference.gain,
        f"gain_vs_{other}_low": difference.low,
        f"gain_vs_{other}_high": difference.high,
        f"p_vs_{other}": difference.p,
    }


def tuning_figures(difference: Difference) -> dict[str, float]:
    """The figures of the fine-tuned cross-encoder against the untouched one, both alone.

    Args:
        difference: the fine-tuned cross-encoder minus the untouched one.
    """
    return {f"tuning_{name}": getattr(difference, name) for name in ("gain", "low", "high", "p")}


def by_source(values: Values, sources: pd.Series, shipped: str, others: Sequence[str]) -> dict[str, float | int]:
    """For each source, the number of queries and NDCG@10 in the mode `retrieved`; nothing if there is only one source.

    Args:
        values: the measures in both modes.
        sources: the name of the source by query_id; it may contain other queries.
        shipped: the system whose figures carry no name of a system.
        others: further systems.
    """
    figures: dict[str, float | int] = {}
    for system in (shipped, *others):
        table = values[system, "retrieved"]
        parts = table.groupby(sources.reindex(table.index).to_numpy())[MEASURE]
        if parts.ngroups > 1:
            name = MEASURE if system == shipped else f"{MEASURE}_{system}"
            figures |= {f"queries_of_{source}": int(number) for source, number in parts.size().items()}
            figures |= {f"{name}_of_{source}": float(mean) for source, mean in parts.mean().items()}
    return figures


def by_query(values: Values) -> pd.DataFrame:
    """NDCG@10 on the retrieved candidates: one row per query, one column per system."""
    columns = {system: table[MEASURE] for (system, mode), table in values.items() if mode == "retrieved"}
    return pd.DataFrame(columns).reset_index()
