"""Files of rows: CSV, TSV, JSON, JSON Lines, Parquet, Arrow and the folders of `datasets.save_to_disk`.

Every file is read in a stream: what is held at a time is bounded by a row, not by the file.
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
from reranker.data.sources.streams import BOM, COMPRESSED, Row, Rows, Stream, Table, failing, together

__all__ = ["RAW", "Row", "Table", "exists", "find", "inside", "inside_raw", "read"]
RAW = Path("data/raw")
"""The folder that prepare depends on: a change of a file elsewhere would go unseen."""
CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""What a link of DVC leads to: a file of its cache, named by the hash of the content."""
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


def inside_raw(named: str) -> Path:
    """The path, which must lead to something under data/raw.

    Raises:
        UserError: it leads elsewhere.
    """
    parts = Path(named).parts
    if parts[: len(RAW.parts)] != RAW.parts or len(parts) == len(RAW.parts) or ".." in parts:
        raise UserError(
            f"params.yaml: '{named}' is not in {RAW}/; move it there, where DVC sees its changes "
            "(`dvc add`, `dvc import-url`)"
        )
    return Path(named)


def inside(path: Path, folder: Path = RAW) -> Path:
    """The path, which must not lead out of the folder, by `..` or by a link either; DVC's own links may.

    Raises:
        UserError: it leads elsewhere.
    """
    try:
        target, root = path.resolve(), folder.resolve()
        of_dvc = path.is_symlink() and path.parent.resolve().is_relative_to(root) and CACHED.search(target.as_posix())
        if of_dvc or target.is_relative_to(root):
            return path
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name that cannot be one
        target = path
    raise UserError(f"{path}: leads out of {folder}/, to {target}; move that file into it, where DVC sees changes")


def find(named: Sequence[str]) -> list[Path]:
    """The files that paths or patterns such as `data/raw/*.csv` name; each once, in that order.

    A pattern passes over names that begin with a dot, .dvc files and README.md.

    Raises:
        UserError: nothing is found, or it does not lie under data/raw, or is a link that leads elsewhere.
    """
    found: dict[Path, None] = {}
    for pattern in named:
        matches = _matches(inside_raw(pattern))
        if not matches:
            raise UserError(f"params.yaml: '{pattern}' names no file; `dvc checkout` or `dvc pull` brings tracked ones")
        found |= dict.fromkeys(inside(match) for match in matches)
    return list(found)


def exists(path: Path) -> bool:
    """Whether a file or folder is there; none is under a name that is too long or cannot be one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _matches(path: Path) -> list[Path]:
    if exists(path):
        return [path]
    if any("**" in part and part != "**" for part in path.parts):
        raise UserError(f"params.yaml: '{path}': ** stands alone between two slashes, as in {RAW}/**/*.csv")
    try:
        return sorted(match for match in RAW.glob(str(path.relative_to(RAW))) if _may_be_data(match))
    except (OSError, ValueError):
        return []


def _may_be_data(path: Path) -> bool:
    """Whether a pattern means it: not what git, DVC and the folder itself keep beside the data."""
    hidden = any(part.startswith(".") for part in path.relative_to(RAW).parts)
    return not hidden and path.suffix != ".dvc" and path.name != "README.md"


def read(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None, quoted: bool = True) -> Table:
    """Open a file by its ending: .csv, .tsv, .qrels, .json, .jsonl, .ndjson (also with .gz or .zst), .parquet, .arrow.

    A folder is one that `datasets.save_to_disk` wrote. CSV and TSV begin with a line of names. The columns of .qrels,
    judgments as TREC has them, are `QRELS`, with white space between. .json is a list of objects, or one object a
    line; an object may lack a key.

    Args:
        path: of the file.
        wanted: columns that are needed; a columnar format reads no other.
        header: names of the columns of a CSV or TSV file whose first line is a row already.
        quoted: whether a quotation mark at the beginning of a cell of CSV or TSV ends with one, as spreadsheets have
            it; if not, it is text, and each line is a row.

    Raises:
        UserError: the ending is unknown, the content is something else, damaged or not UTF-8, or a compressed file
            expands beyond `MAX_EXPANSION`; also while the rows are read.
    """
    ending = "" if path.is_dir() else _ending(path)
    if header is not None and ending not in HEADED:
        raise UserError(f"{path}: names its columns itself; take `header` away, which is for CSV and TSV files")
    if not quoted and ending not in HEADED:
        raise UserError(
            f"{path}: has no quotation marks around cells; take `quoted` away, which is for CSV and TSV files"
        )
    if path.is_dir():
        return columnar.arrow(path, wanted, _saved(path))
    if ending in DELIMITED:
        return _delimited(path, ending, header, quoted)
    return READERS[ending](path, wanted)


def _ending(path: Path) -> str:
    """The ending that tells the format, checked against how the file begins."""
    endings = [ending.lower() for ending in path.suffixes]
    codec = COMPRESSED.get(endings[-1]) if endings else None
    ending = "".join((endings[:-1] if codec else endings)[-1:])
    if ending not in TEXTS | READERS.keys() or (codec and ending not in TEXTS):
        known = ", ".join([*DELIMITED, *READERS])
        raise UserError(f"{path}: unknown ending; {known} are read, the text formats also with {', '.join(COMPRESSED)}")
    _check_magic(path, codec or ("" if ending in TEXTS else ending.removeprefix(".").capitalize()))
    return ending


def _check_magic(path: Path, kind: str) -> None:
    with failing(path), path.open("rb") as stream:
        start = stream.read(16)
    is_a = next((name for magic, name in MAGIC.items() if start.startswith(magic)), "text")
    # an Arrow stream, which `datasets` writes, has no mark of its own
    if is_a != (kind or "text") and not (kind == "Arrow" and is_a == "text"):
        raise UserError(f"{path}: begins like {is_a}, not like {kind or 'text'}; rename it to what it is")


def _delimited(path: Path, ending: str, header: Sequence[str] | None, quoted: bool) -> Table:
    stream = Stream(path)
    split = _quoted if quoted and ending in HEADED else _unquoted
    lines = split(path, stream.lines(), DELIMITED[ending])
    names: Sequence[str]
    namer = "the first line"
    if ending not in HEADED:
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
    """The number of each row's last line, and its cells; none of an empty line."""
    csv.field_size_limit(streams.MAX_LINE)
    reader = csv.reader(lines, delimiter=delimiter or ",", strict=True)
    while True:
        begun = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {begun}" if begun >= reader.line_num else f"lines {begun} to {reader.line_num}"
            raise UserError(
                f"{path}: {where}: {error}; is a quotation mark missing? Where they are only text, say quoted: false"
            ) from None
        yield reader.line_num, row


def _unquoted(path: Path, lines: Iterator[str], delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """The number of each line, and its cells; none of an empty line."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        yield number, text.split(delimiter) if text else []


def _json_lines(path: Path, wanted: Sequence[str]) -> Table:
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


def _json(path: Path, wanted: Sequence[str]) -> Table:
    with failing(path):
        start = Stream(path).read(2**16)
        marked = start.startswith(BOM)
        if not start.removeprefix(BOM).lstrip().startswith(b"["):
            return _json_lines(path, wanted)
        stream = Stream(path)
        rows = Rows(stream, len(stream.read(len(BOM) if marked else 0)))

    def items() -> Iterator[object]:
        for item in ijson.items(rows, "item", use_float=True):
            rows.found()
            yield item

    return _objects(stream, items())


def _objects(stream: Stream, values: Iterator[object]) -> Table:
    def rows() -> Iterator[Row]:
        with failing(stream.path):
            for number, value in enumerate(values, start=1):
                if not isinstance(value, dict):
                    raise UserError(f"{stream.path}: row {number}: not an object with the columns as keys")
                yield value

    runs = together(rows())
    first = next(runs, None)
    if first is None:
        raise UserError(f"{stream.path}: holds no rows")
    names = dict.fromkeys(name for row in first for name in row)
    return Table(str(stream.path), [*names], chain(first, chain.from_iterable(runs)), stream.share)


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote for a data set, or for several."""
    several, state = "dataset_dict.json", "state.json"
    if not (folder / several).exists() and not (folder / state).exists():
        raise UserError(
            f"{folder}: is a folder, but has no {state} of `datasets.save_to_disk`; name files, as {folder}/*.csv"
        )
    parts = ["."] if (folder / state).exists() else _names(folder / several, "splits")
    return [
        inside(folder / part / name, folder)
        for part in parts
        for name in _names(inside(folder / part / state, folder), "_data_files")
    ]


def _names(file: Path, key: str) -> list[str]:
    """The names of splits or files that a JSON file of such a folder lists."""
    with failing(file):
        content = json.loads(file.read_bytes())
    listed = content.get(key) if isinstance(content, dict) else None
    items = listed if isinstance(listed, list) else []
    names = [item.get("filename") if isinstance(item, dict) else item for item in items]
    found = [name for name in names if isinstance(name, str)]
    if not found or len(found) < len(names):
        raise UserError(f"{file}: '{key}' is no list of names, as `datasets.save_to_disk` writes it; save it again")
    return found


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": columnar.parquet,
    ".arrow": columnar.arrow,
}
HEADED = {".csv", ".tsv"}
DELIMITED: dict[str, str | None] = {".csv": ",", ".tsv": "\t", ".qrels": None}
"""What stands between cells; None is any white space."""
QRELS = ("query", "iteration", "passage", "grade")
TEXTS = {*DELIMITED, ".json", ".jsonl", ".ndjson"}
"""Formats that may be packed."""
