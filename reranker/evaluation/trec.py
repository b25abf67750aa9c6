"""Runs and judgments in TREC's format: those that we write, and a run of another system, which is read strictly."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reranker.common.artifacts import PATHS, write_table, write_text
from reranker.common.errors import UserError
from reranker.evaluation.metrics import rank

COLUMNS = 6
SHOWN = 3
"""Ids that an error names."""
STEP = 1e-5
"""Share of the largest score that two scores must be apart: metrics are of scores in single precision."""


def write_scored(scored: pd.DataFrame, retrieved: pd.Series, system: str, folder: Path = PATHS.scored) -> Path:
    """Write a system's scores as a table and, beside it, the retrieved candidates as a TREC run.

    Args:
        scored: columns query_id, passage_id, score; the right passages that the retriever missed included.
        retrieved: which rows of `scored` the retriever found.
        system: the name of both files and of the run.
        folder: of both files.

    Returns:
        The path of the table.
    """
    path = folder / f"{system}.parquet"
    write_run(rank(scored[retrieved]), path.with_suffix(".trec"), system)
    write_table(scored, path)
    return path


def write_qrels(judgments: pd.DataFrame, path: Path) -> None:
    """Write judgments in TREC's format: query_id 0 passage_id relevance.

    Args:
        judgments: columns query_id, passage_id, relevance.
        path: of the file.
    """
    lines = (f"{row.query_id} 0 {row.passage_id} {row.relevance}\n" for row in judgments.itertuples())
    write_text("".join(lines), path)


def write_run(ranked: pd.DataFrame, path: Path, name: str) -> None:
    """Write a run in TREC's format: query_id Q0 passage_id rank score name.

    Args:
        ranked: columns query_id, passage_id, rank, score.
        path: of the file.
        name: of the system, without white space.
    """
    lines = (f"{row.query_id} Q0 {row.passage_id} {row.rank} {row.score!r} {name}\n" for row in ranked.itertuples())
    write_text("".join(lines), path)


def read_run(path: Path) -> pd.DataFrame:
    """The lines of a run: query_id Q0 passage_id rank score name.

    Returns:
        Columns query_id, passage_id, score; the rank is left out, as trec_eval leaves it out.

    Raises:
        UserError: it is not in data/runs, cannot be read or is empty; or a line has not six columns, a score that is no
            finite number, or a passage that the query has already.
    """
    if not path.resolve().is_relative_to(PATHS.runs.resolve()):
        raise UserError(f"{path}: is not in {PATHS.runs}/; move it there, where DVC sees that it changes")
    try:
        with path.open(encoding="utf-8") as lines:
            return _parse(lines, path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a run in TREC's format") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason})") from None


def _parse(lines: Iterable[str], path: Path) -> pd.DataFrame:
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if len(parts) != COLUMNS:
            raise UserError(
                f"{path}: line {number}: {len(parts)} columns in place of {COLUMNS}: "
                "query_id Q0 passage_id rank score name"
            )
        query, _, passage, _, written, _ = parts
        try:
            score = float(written)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{path}: line {number}: the score '{written}' is not a finite number")
        if (query, passage) in found:
            _, first = found[query, passage]
            raise UserError(f"{path}: line {number}: passage '{passage}' of query '{query}' is in line {first} already")
        found[query, passage] = score, number
    if not found:
        raise UserError(f"{path}: is empty")
    rows = [(query, passage, score) for (query, passage), (score, _) in found.items()]
    return pd.DataFrame(rows, columns=["query_id", "passage_id", "score"])


def check_ids(run: pd.DataFrame, path: Path, queries: Collection[str], passages: Collection[str]) -> None:
    """Check that a run is of these test queries and this corpus.

    Raises:
        UserError: it has an id that they do not have; the message names the first of them and how many there are.
    """
    for column, known, what in (("query_id", queries, "test queries"), ("passage_id", passages, "passages")):
        unknown = sorted({*run[column]} - {*known})
        if unknown:
            some = ", ".join(f"'{name}'" for name in unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
            raise UserError(f"{path}: column {column}: {len(unknown):,} ids are none of the {what}: {some}")


def scores_of(run: pd.DataFrame, pairs: pd.DataFrame) -> NDArray[np.float64]:
    """The run's scores of some pairs; a passage that it lacks comes after all of its query, those by their ids.

    Args:
        run: see `read_run`.
        pairs: columns query_id, passage_id.

    Returns:
        A score per pair, in their order.
    """
    keys = ["query_id", "passage_id"]
    scores = pairs[keys].merge(run, on=keys, how="left")["score"].to_numpy(float, copy=True)
    bounds = run.groupby("query_id")["score"].agg(["min", "max", "size"])
    low, high, size = (pairs["query_id"].map(bounds[column]).fillna(0).to_numpy(float) for column in bounds)
    apart = (high - low) / np.maximum(size, 1)
    step = np.maximum(apart, STEP * np.maximum(np.maximum(abs(low), abs(high)), 1))
    lacking = np.isnan(scores)
    missed = pairs[lacking].sort_values(keys)
    place = (missed.groupby("query_id").cumcount() + 1).reindex(pairs.index[lacking]).to_numpy()
    scores[lacking] = low[lacking] - step[lacking] * place
    return scores
