"""The paths of the stages' artifacts, and functions that read and write them.

Every file is written under a temporary name and renamed when it is complete, so an interrupt or a full disk
leaves the earlier file untouched.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from reranker.common.errors import UserError


@dataclass(frozen=True)
class Paths:
    """The path of each artifact, relative to the repository."""

    params: Path = Path("params.yaml")
    raw: Path = Path("data/raw")
    teachers: Path = Path("data/teachers")
    runs: Path = Path("data/runs")
    passages: Path = Path("data/prepared/passages.parquet")
    queries: Path = Path("data/prepared/queries.parquet")
    judgments: Path = Path("data/prepared/judgments.parquet")
    dropped: Path = Path("data/prepared/dropped.parquet")
    leaks: Path = Path("data/prepared/leaks.parquet")
    spool: Path = Path(".prepare.part")
    candidates: Path = Path("data/mined/candidates.parquet")
    negatives: Path = Path("data/mined/negatives.parquet")
    bm25: Path = Path("data/mined/bm25.parquet")
    retriever: Path = Path("data/mined/retriever.json")
    audit: Path = Path("data/mined/audit.csv")
    marked: Path = Path("data/marked.csv")
    vectors: Path = Path(".vectors")
    checkpoints: Path = Path(".checkpoints")
    scored: Path = Path("data/scored")
    evaluated: Path = Path("data/evaluated")
    qrels: Path = Path("data/scored/test.qrels")
    compared: Path = Path("data/compared")
    biencoder: Path = Path("models/biencoder")
    static: Path = Path("models/static")
    control: Path = Path("models/control")
    reranker: Path = Path("models/reranker")
    students: Path = Path("models/students")
    export: Path = Path("models/export")
    metrics: Path = Path("metrics")
    timing: Path = Path("metrics/timing.json")
    report: Path = Path("report/index.html")
    comparison: Path = Path("report/comparison.html")
    figures: Path = Path("report/figures")
    compare_params: Path = Path("compare/params.yaml")
    pair_params: Path = Path("pairs/params.yaml")
    pairs: Path = Path("data/pairs/pairs.parquet")
    pairs_dropped: Path = Path("data/pairs/dropped.parquet")
    pairs_scored: Path = Path("data/pairs_scored.parquet")
    pair_model: Path = Path("models/pairs")
    pair_metrics: Path = Path("metrics/pairs")


PATHS = Paths()
SPLITS = ("train", "dev", "test")


class Tables(NamedTuple):
    """The three tables of a data set. Ids are strings, and rows are sorted by id."""

    passages: pd.DataFrame
    """Columns passage_id, text, group (an id, see `dataset`)."""
    queries: pd.DataFrame
    """Columns query_id, text, group, split (train, dev or test), source (the name of a source in params.yaml)."""
    judgments: pd.DataFrame
    """Columns query_id, passage_id, relevance (an integer; above 0 means relevant)."""


PAIR_COLUMNS = ("pair_id", "first", "second", "label", "class", "split")
"""Columns of the table of labelled pairs. A label is a number from 0 to 1, or the position of the class in the list of
class names."""
SCORE_STAGE_SYSTEMS = ("untouched_reranker", "cross_encoder")
"""The systems that the score stage runs. The stages mine and evaluate write the scores of the other systems."""
SHIPPED, WITHOUT = "reranker", "fusion_without_cross_encoder"
"""The shipped system, and the same without its cross-encoder: the names of their weights in fusion.json."""
PRODUCER = {
    PATHS.passages: "prepare",
    PATHS.queries: "prepare",
    PATHS.judgments: "prepare",
    PATHS.dropped: "prepare",
    PATHS.leaks: "prepare",
    PATHS.candidates: "mine",
    PATHS.negatives: "mine",
    PATHS.bm25: "mine",
    PATHS.retriever: "mine",
    PATHS.audit: "mine",
    PATHS.static: "static",
    PATHS.biencoder: "biencoder",
    PATHS.reranker: "train",
    PATHS.reranker / "fusion.json": "train",
    PATHS.export: "export/dvc.yaml:export",
    **{PATHS.export / name: "export/dvc.yaml:export" for name in ("openvino", "openvino-int8", "onnx-int8")},
    **{PATHS.scored / f"{name}.parquet": f"score@{name}" for name in SCORE_STAGE_SYSTEMS},
    **{PATHS.evaluated / f"{name}.parquet": "evaluate" for name in ("retriever", "reranker")},
    PATHS.metrics / "lengths.csv": "prepare",
    PATHS.metrics / "curve_loss.csv": "train",
    PATHS.metrics / "curve_dev.csv": "train",
    PATHS.metrics / "systems.csv": "evaluate",
    PATHS.metrics / "per_query.csv": "evaluate",
    PATHS.control: "compare/dvc.yaml:control",
    PATHS.students: "compare/dvc.yaml:students",
    PATHS.metrics / "comparison.csv": "compare/dvc.yaml:systems",
    PATHS.metrics / "costs.csv": "compare/dvc.yaml:costs",
    PATHS.pairs: "pairs/dvc.yaml:prepare",
    PATHS.pair_model: "pairs/dvc.yaml:train",
}


def scored_file(system: str) -> Path:
    """The file with the scores of a system, which the score stage or evaluate writes."""
    return (PATHS.scored if system in SCORE_STAGE_SYSTEMS else PATHS.evaluated) / f"{system}.parquet"


def missing_error(path: Path, stage: str = "") -> UserError:
    """The error for an input that no stage has written yet.

    Args:
        path: the file or folder that is missing.
        stage: the stage that writes it, for a file that was moved; otherwise `PRODUCER` tells it.
    """
    if path == PATHS.marked:
        return UserError(f"{path} does not exist; restore it with `git checkout {path}`")
    stage = stage or PRODUCER.get(path, path.stem)
    return UserError(
        f"{path} does not exist: run the stage that makes it with `dvc repro {stage}`, or all with `dvc repro`"
    )


def require(path: Path) -> None:
    """Check that a stage's output exists.

    Raises:
        UserError: it does not exist; the message names the stage to run.
    """
    if not path.exists():
        raise missing_error(path)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a Parquet table with exactly the requested columns.

    Raises:
        UserError: the file is missing, is not Parquet or lacks a column.
    """
    require(path)
    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a Parquet table with the columns {', '.join(columns)} ({reason}); "
            "run `dvc repro --force` for its stage"
        ) from None


def read_tables() -> Tables:
    """Read and check the three tables that prepare writes.

    Raises:
        UserError: see `read_table`; also where a value is missing, an id or a judgment appears twice, or an id or a
            split is unknown.
    """
    tables = Tables(
        read_table(PATHS.passages, ["passage_id", "text", "group"]),
        read_table(PATHS.queries, ["query_id", "text", "group", "split", "source"]),
        read_table(PATHS.judgments, ["query_id", "passage_id", "relevance"]),
    )
    _check(tables)
    return tables


def _check(tables: Tables) -> None:
    paths = PATHS.passages, PATHS.queries, PATHS.judgments
    for path, table in zip(paths, tables, strict=True):
        for column in table.columns[table.isna().any()]:
            raise UserError(f"{path}: column {column}: row {int(table[column].isna().argmax())} has no value")
    for path, table, key in ((paths[0], tables.passages, "passage_id"), (paths[1], tables.queries, "query_id")):
        for repeated in table.loc[table[key].duplicated(), key]:
            raise UserError(f"{path}: column {key}: '{repeated}' appears twice; an id must name one text")
        for unknown in tables.judgments.loc[~tables.judgments[key].isin(table[key]), key]:
            raise UserError(f"{paths[2]}: column {key}: '{unknown}' is not in {path}")
    repeated = tables.judgments.duplicated(["query_id", "passage_id"])
    for row in tables.judgments[repeated].itertuples():
        raise UserError(f"{paths[2]}: query '{row.query_id}' and passage '{row.passage_id}' appear twice; keep one row")
    for unknown in tables.queries.loc[~tables.queries["split"].isin(SPLITS), "split"]:
        raise UserError(f"{paths[1]}: column split: '{unknown}' is none of {', '.join(SPLITS)}")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a Parquet table."""
    _write(path, lambda temporary: table.to_parquet(temporary, index=False))


def write_parts(parts: Iterable[pd.DataFrame], path: Path) -> None:
    """Write a Parquet table that comes in parts, one after the other. There must be at least one part."""

    def write(temporary: Path) -> None:
        writer = None
        for part in parts:
            table = pa.Table.from_pandas(part, preserve_index=False)
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()

    _write(path, write)


def first_texts(path: Path, number: int) -> list[str]:
    """The texts in the first rows of a table of passages or queries."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(number, columns=["text"]))
        return [str(text) for text in batch.column(0).to_pylist()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    require(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); run `dvc repro --force {PRODUCER.get(path, path.stem)}`"
        ) from None


def write_json(values: Mapping[str, object], path: Path) -> None:
    """Write figures as JSON, with sorted keys and unrounded numbers."""
    write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8."""
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(content: bytes, path: Path) -> None:
    """Write a binary file."""
    _write(path, lambda temporary: temporary.write_bytes(content))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or error}); the earlier file, if any, is untouched"
        ) from None
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    earlier = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.replace(earlier)  # an interrupt while it is deleted in place would leave half of it
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: could not be written ({reason}); the earlier folder, if any, is untouched") from None
    finally:
        if earlier.exists() and not path.exists():
            earlier.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def read_csv(path: Path, columns: Sequence[str], *, as_text: bool = False) -> pd.DataFrame:
    """Read a CSV table with exactly the requested columns. Only an empty cell is a missing value.

    Args:
        path: the file.
        columns: names of the columns.
        as_text: whether every cell stays a text, because an id may look like a number.

    Raises:
        UserError: the file is missing, is not CSV or lacks a column.
    """
    require(path)
    try:
        kind = str if as_text else None
        table = pd.read_csv(path, usecols=list(columns), dtype=kind, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        remedy = f"run `dvc repro --force {PRODUCER.get(path, path.stem)}`"
        if path == PATHS.marked:
            remedy = f"mend it, or restore it with `git checkout {path}`"
        raise UserError(f"{path}: not a CSV table with the columns {', '.join(columns)} ({reason}); {remedy}") from None
    return table[list(columns)]


def read_scores(path: Path, pairs: pd.DataFrame) -> pd.Series:
    """Read scores of pairs from a file that the user provides.

    Args:
        path: a `.parquet` or `.csv` file in data/teachers with the columns query_id, passage_id and score.
        pairs: columns query_id, passage_id.

    Returns:
        A score for each pair, with the index of `pairs`.

    Raises:
        UserError: the file does not exist, lacks a column or a pair, has a pair twice, or has a score that is no
            finite number.
    """
    if not path.resolve().is_relative_to(PATHS.teachers.resolve()):
        raise UserError(f"{path}: is not in {PATHS.teachers}/; move it there, where DVC sees that it changes")
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file with the columns query_id, passage_id and score")
    columns = ["query_id", "passage_id", "score"]
    try:
        table = (
            pd.read_parquet(path, columns=columns)
            if path.suffix == ".parquet"
            else pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a table with the columns {', '.join(columns)} ({reason})") from None
    scores = pd.to_numeric(table["score"], errors="coerce")
    for row in np.flatnonzero(~np.isfinite(scores)):
        raise UserError(f"{path}: row {row + 1}: the score {table['score'].iloc[row]!r} is not a finite number")
    keys = columns[:2]
    scored = table[keys].astype(str).assign(score=scores.astype(float))
    for pair in scored[scored.duplicated(keys)].itertuples():
        raise UserError(f"{path}: query '{pair.query_id}' and passage '{pair.passage_id}' appear twice; keep one row")
    joined = pairs[keys].merge(scored, on=keys, how="left")
    for pair in joined[joined["score"].isna()].itertuples():
        raise UserError(f"{path}: no score for query '{pair.query_id}' and passage '{pair.passage_id}'; add the row")
    return joined["score"].set_axis(pairs.index)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV table with unrounded numbers."""
    _write(path, lambda temporary: table.to_csv(temporary, index=False, lineterminator="\n"))


def read_weights(path: Path, *names: str) -> dict[str, dict[str, float]]:
    """Read the weights of the fused scores.

    Args:
        path: the file.
        names: names of fused scores that the file must have.

    Returns:
        For each fused score, the weight of each score that is added.

    Raises:
        UserError: the file is missing or is not what the train stage writes.
    """
    if not path.exists():
        raise missing_error(path, "train")
    weights = read_json(path)
    if not all(isinstance(part, dict) for part in weights.values()) or not weights.keys() >= {*names}:
        raise UserError(f"{path}: not fusion weights; run `dvc repro train`")
    return weights


def record_time(stage: str, seconds: float) -> None:
    """Record a stage's wall-clock seconds in the timing file, which no metrics diff shows."""
    try:
        times = read_json(PATHS.timing)
    except UserError:
        times = {}  # the file does not exist yet or is damaged, which is no reason to stop a stage
    write_json({**times, f"{stage}_seconds": round(seconds, 3)}, PATHS.timing)
