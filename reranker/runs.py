"""Runs: a system's scores in rank order, as a table and in TREC's format."""

from pathlib import Path

import pandas as pd

from reranker.records import PATHS, write_table, write_text


def rank(run: pd.DataFrame) -> pd.DataFrame:
    """The run sorted by query and score, ties in trec_eval's order, with a rank column from 1."""
    ordered = run.sort_values(["query_id", "score", "passage_id"], ascending=[True, False, False]).reset_index(
        drop=True
    )
    return ordered.assign(rank=ordered.groupby("query_id").cumcount() + 1)


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
