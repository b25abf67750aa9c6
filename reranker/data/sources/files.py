"""Reads files of rows: CSV, TSV, JSON, JSON Lines, Parquet, Arrow and the folders of `datasets.save_to_disk`.

Every file is streamed, so the memory in use is bounded by the size of a row and not by the size of the file.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import ijson

from reranker.common.errors import UserError
from reranker.data.sources import columnar, streams
from reranker.data.sources.streams import BOM, COMPRESSED, Row, Rows, Stream, Table, chunks, user_errors

__all__ = ["RAW", "Row", "Table", "exists", "find", "inside", "inside_raw", "read"]
RAW = Path("data/raw")
"""The folder that the prepare stage depends on. DVC would not see a change of a file elsewhere."""
IN_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""Paths to which DVC's links lead. They are files of its cache, named by the hash of the content."""
MAGIC = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"SQLite format 3": "SQLite",
}


def inside_raw(name: str) -> Path:
    """Return a path after a check that it leads to something in data/raw.

    Raises:
        UserError: it leads elsewhere.
    """
    parts = Path(name).parts
    if parts[: len(RAW.parts)] != RAW.parts or len(parts) == len(RAW.parts) or ".." in parts:
        raise UserError(
            f"params.yaml: '{name}' is not in {RAW}/; move it there, where DVC sees its changes "
            "(`dvc add`, `dvc import-url`)"
        )
    return Path(name)


def inside(path: Path, folder: Path = RAW) -> Path:
    """Return a path after a check that neither `..` nor a link leads it out of the folder. DVC's own links may.

    Raises:
        UserError: it leads elsewhere.
    """
    try:
        target, root = path.resolve(), folder.resolve()
        of_dvc = path.is_symlink() and path.parent.resolve().is_relative_to(root) and IN_CACHE.search(target.as_posix())
        if of_dvc or target.is_relative_to(root):
            return path
    except (OSError, RuntimeError, ValueError):  # a link to itself, or a name that no file can have
        target = path
    raise UserError(f"{path}: leads out of {folder}/, to {target}; move that file into it, where DVC sees changes")


def find(patterns: Sequence[str]) -> list[Path]:
    """Find the files that paths or patterns such as `data/raw/*.csv` name, each once and in this order.

    A pattern skips names that begin with a dot, .dvc files and README.md.

    Raises:
        UserError: a pattern matches no file, or a file is not in data/raw or is a link that leads elsewhere.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        matches = _matches(inside_raw(pattern))
        if not matches:
            raise UserError(f"params.yaml: '{pattern}' names no file; `dvc checkout` or `dvc pull` brings tracked ones")
        paths |= dict.fromkeys(inside(match) for match in matches)
    return list(paths)


def exists(path: Path) -> bool:
    """Whether a file or folder exists. A name that is too long or that no file can have is not an error."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _matches(path: Path) -> list[Path]:
    if exists(path):
        return [path]
    if any("**" in part and part != "**" for part in path.parts):
        raise UserError(f"params.yaml: '{path}': write ** alone between two slashes, as in {RAW}/**/*.csv")
    try:
        return sorted(match for match in RAW.glob(str(path.relative_to(RAW))) if _may_be_data(match))
    except (OSError, ValueError):
        return []


def _may_be_data(path: Path) -> bool:
    """Whether a pattern may match a file, which excludes the files of git and DVC and README.md beside the data."""
    hidden = any(part.startswith(".") for part in path.relative_to(RAW).parts)
    return not hidden and path.suffix != ".dvc" and path.name != "README.md"


def read(path: Path, column_names: Sequence[str], header: Sequence[str] | None = None, quoted: bool = True) -> Table:
    """Open a file by its ending: .csv, .tsv, .qrels, .json, .jsonl, .ndjson (also with .gz or .zst), .parquet, .arrow.

    A folder must be one that `datasets.save_to_disk` wrote. CSV and TSV files begin with a line of names. A .qrels file
    has judgments in TREC's format, with the columns `QRELS` separated by white space. A .json file has a list of
    objects, or one object per line. An object may lack a key.

    Args:
        path: the file or folder.
        column_names: the columns to read; formats that are not columnar read all.
        header: names of the columns of a CSV or TSV file whose first line is already a row.
        quoted: whether cells of CSV or TSV may be enclosed in quotation marks, as spreadsheets write them. Otherwise
            quotation marks are text, and each line is a row.

    Raises:
        UserError: the ending is unknown, the content is of another format, damaged or not UTF-8, or a compressed file
            expands beyond `MAX_EXPANSION`. It may be raised while the rows are read.
    """
    ending = "" if path.is_dir() else _ending(path)
    if header is not None and ending not in WITH_HEADER:
        raise UserError(f"{path}: names its columns itself; remove `header`, which is for CSV and TSV files")
    if not quoted and ending not in WITH_HEADER:
        raise UserError(f"{path}: has no quotation marks around cells; remove `quoted`, which is for CSV and TSV files")
    if path.is_dir():
        return columnar.arrow(path, column_names, _arrow_files(path))
    if ending in DELIMITERS:
        return _delimited(path, ending, header, quoted)
    return READERS[ending](path, column_names)


def _ending(path: Path) -> str:
    """The ending that tells the format, after a check that the file begins as this format does."""
    endings = [ending.lower() for ending in path.suffixes]
    codec = COMPRESSED.get(endings[-1]) if endings else None
    ending = "".join((endings[:-1] if codec else endings)[-1:])
    if ending not in TEXT_FORMATS | READERS.keys() or (codec and ending not in TEXT_FORMATS):
        formats, codecs = ", ".join([*DELIMITERS, *READERS]), " or ".join(COMPRESSED)
        raise UserError(f"{path}: unknown ending; it must be one of {formats}, with {codecs} behind it if compressed")
    _check_magic(path, codec or ("" if ending in TEXT_FORMATS else ending.removeprefix(".").capitalize()))
    return ending


def _check_magic(path: Path, kind: str) -> None:
    with user_errors(path), path.open("rb") as stream:
        start = stream.read(16)
    actual = next((name for magic, name in MAGIC.items() if start.startswith(magic)), "text")
    # An Arrow stream, which `datasets` writes, has no magic bytes.
    if actual != (kind or "text") and not (kind == "Arrow" and actual == "text"):
        raise UserError(f"{path}: begins like {actual}, not like {kind or 'text'}; correct the ending of its name")


def _delimited(path: Path, ending: str, header: Sequence[str] | None, quoted: bool) -> Table:
    stream = Stream(path)
    split = _quoted if quoted and ending in WITH_HEADER else _unquoted
    lines = split(path, stream.lines(), DELIMITERS[ending])
    names: Sequence[str]
    namer = "the first line"
    if ending not in WITH_HEADER:
        names, namer = QRELS, "the format of TREC"
    elif header is not None:
        names, namer = header, "`header` in params.yaml"
    else:
        names = next(lines, (1, []))[1]
    if not any(names):
        raise UserError(f"{path}: the first line must name the columns; it is empty")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: {namer} names the column '{name}' twice")

    def rows() -> Iterator[Row]:
        for number, row in lines:
            if row and len(row) != len(names):
                raise UserError(f"{path}: line {number}: {len(row)} cells, but {namer} names {len(names)} columns")
            if row:
                yield dict(zip(names, row, strict=True))

    return Table(str(path), names, rows(), stream.share)


def _quoted(path: Path, lines: Iterator[str], delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each row's last line and its cells. An empty line has no cells."""
    csv.field_size_limit(streams.MAX_LINE)
    reader = csv.reader(lines, delimiter=delimiter or ",", strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {first}" if first >= reader.line_num else f"lines {first} to {reader.line_num}"
            raise UserError(
                f"{path}: {where}: {error}; is a quotation mark missing? "
                "If quotation marks are plain text, set quoted: false"
            ) from None
        yield reader.line_num, row


def _unquoted(path: Path, lines: Iterator[str], delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line and its cells. An empty line has no cells."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        yield number, text.split(delimiter) if text else []


def _json_lines(path: Path, column_names: Sequence[str]) -> Table:
    stream = Stream(path)

    def rows() -> Iterator[object]:
        for number, line in enumerate(stream.lines(), start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = getattr(error, "msg", None) or next(iter(str(error).splitlines()), "nested too deeply")
                    raise UserError(f"{path}: line {number}: not JSON ({reason})") from None

    return _objects(stream, rows())


def _json(path: Path, column_names: Sequence[str]) -> Table:
    with user_errors(path):
        start = Stream(path).read(2**16)
        has_bom = start.startswith(BOM)
        if not start.removeprefix(BOM).lstrip().startswith(b"["):
            return _json_lines(path, column_names)
        stream = Stream(path)
        rows = Rows(stream, len(stream.read(len(BOM) if has_bom else 0)))

    def items() -> Iterator[object]:
        for item in ijson.items(rows, "item", use_float=True):
            rows.end_row()
            yield item

    return _objects(stream, items())


def _objects(stream: Stream, values: Iterator[object]) -> Table:
    def rows() -> Iterator[Row]:
        with user_errors(stream.path):
            for number, value in enumerate(values, start=1):
                if not isinstance(value, dict):
                    raise UserError(f"{stream.path}: row {number}: not an object with the columns as keys")
                yield value

    parts = chunks(rows())
    first = next(parts, None)
    if first is None:
        raise UserError(f"{stream.path}: holds no rows")
    names = dict.fromkeys(name for row in first for name in row)
    return Table(str(stream.path), [*names], chain(first, chain.from_iterable(parts)), stream.share)


def _arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote for a data set, or for several."""
    splits, state = "dataset_dict.json", "state.json"
    if not (folder / splits).exists() and not (folder / state).exists():
        raise UserError(
            f"{folder}: is a folder without the {state} of `datasets.save_to_disk`; name files in it, as {folder}/*.csv"
        )
    parts = ["."] if (folder / state).exists() else _names(folder / splits, "splits")
    return [
        inside(folder / part / name, folder)
        for part in parts
        for name in _names(inside(folder / part / state, folder), "_data_files")
    ]


def _names(file: Path, key: str) -> list[str]:
    """The names of splits or files that a JSON file of such a folder lists."""
    with user_errors(file):
        content = json.loads(file.read_bytes())
    value = content.get(key) if isinstance(content, dict) else None
    items = value if isinstance(value, list) else []
    values = [item.get("filename") if isinstance(item, dict) else item for item in items]
    names = [name for name in values if isinstance(name, str)]
    if not names or len(names) < len(values):
        raise UserError(
            f"{file}: '{key}' is no list of names, which `datasets.save_to_disk` writes; save the data set again"
        )
    return names


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": columnar.parquet,
    ".arrow": columnar.arrow,
}
WITH_HEADER = {".csv", ".tsv"}
DELIMITERS: dict[str, str | None] = {".csv": ",", ".tsv": "\t", ".qrels": None}
"""The text between two cells, by ending. None stands for any white space."""
QRELS = ("query", "iteration", "passage", "grade")
TEXT_FORMATS = {*DELIMITERS, ".json", ".jsonl", ".ndjson"}
"""Endings of text formats, which may be compressed."""
