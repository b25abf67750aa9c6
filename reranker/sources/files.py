"""Files of rows: CSV, TSV, JSON, JSON Lines, Parquet, Arrow and the folders of `datasets.save_to_disk`.

Every file is read in a stream: what is held at a time is bounded by a row, not by the file.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from reranker.errors import UserError

RAW = Path("data/raw")
"""The folder that prepare depends on: a change of a file elsewhere would go unseen."""
MAX_LINE = 64 * 2**20
"""Bytes of the longest line, and characters of the longest cell, that are read."""
MAX_EXPANSION = 200
MAX_UNCHECKED = 2**30
"""A compressed file may hold this many bytes, or `MAX_EXPANSION` times its own size if that is more."""
BATCH = 1_000
"""Rows of a columnar file that are turned into Python values together."""

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
BOM = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}

Row = Mapping[str, object]


class Table(NamedTuple):
    """The rows of a file, not read yet."""

    origin: str
    """The file, for messages."""
    names: Sequence[str]
    """Of the columns; of JSON, the keys of the first row."""
    rows: Iterator[Row]
    """Each row's cells by column; a key that a JSON object lacks is absent."""
    share: Callable[[], float]
    """How much of the file is read by now, 0 to 1."""


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


def find(named: Sequence[str]) -> list[Path]:
    """The files that paths or patterns such as `data/raw/*.csv` name; each once, in that order.

    Raises:
        UserError: nothing is found, or it does not lie under data/raw.
    """
    found: dict[Path, None] = {}
    for pattern in named:
        path = inside_raw(pattern)
        matches = [path] if path.exists() else sorted(RAW.glob(str(path.relative_to(RAW))))
        if not matches:
            raise UserError(f"params.yaml: '{pattern}' names no file; `dvc checkout` or `dvc pull` brings tracked ones")
        found |= dict.fromkeys(matches)
    return list(found)


def read(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> Table:
    """Open a file by its ending: .csv, .tsv, .json, .jsonl, .ndjson (these also with .gz or .zst), .parquet, .arrow.

    A folder is one that `datasets.save_to_disk` wrote. CSV and TSV begin with a line of names; .json is a list of
    objects, or one object a line.

    Args:
        path: of the file.
        wanted: columns that are needed; a columnar format reads no other.
        header: names of the columns of a CSV or TSV file whose first line is a row already.

    Raises:
        UserError: the ending is unknown, the content is something else, damaged or not UTF-8, or a compressed file
            expands beyond `MAX_EXPANSION`; also while the rows are read.
    """
    ending = "" if path.is_dir() else _ending(path)
    if header is not None and ending not in DELIMITED:
        raise UserError(f"{path}: names its columns itself; take `header` away, which is for CSV and TSV files")
    if path.is_dir():
        return _arrow_dataset(path, wanted)
    if ending in DELIMITED:
        return _delimited(path, DELIMITED[ending], header)
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
    with _failing(path), path.open("rb") as stream:
        start = stream.read(16)
    is_a = next((name for magic, name in MAGIC.items() if start.startswith(magic)), "text")
    # an Arrow stream, which `datasets` writes, has no mark of its own
    if is_a != (kind or "text") and not (kind == "Arrow" and is_a == "text"):
        raise UserError(f"{path}: begins like {is_a}, not like {kind or 'text'}; rename it to what it is")


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Turn what a library says of a damaged file into one line."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        RecursionError,
        MemoryError,
        csv.Error,
        ijson.JSONError,
        pa.ArrowException,
    ) as error:
        told = error.args[0] if error.args else ""
        told = told.decode(errors="replace") if isinstance(told, bytes) else str(error)  # ijson speaks in bytes
        reason = next(iter(told.strip().splitlines()), type(error).__name__)
        raise UserError(f"{path}: could not be read ({reason})") from None


class _Stream:
    """The bytes of a file, unpacked; it ends with an error where they expand out of all proportion."""

    def __init__(self, path: Path) -> None:
        codec = COMPRESSED.get(path.suffix.lower())
        self.path = path
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        self._bytes = pa.CompressedInputStream(self._file, codec) if codec else self._file
        self._left = max(MAX_UNCHECKED, MAX_EXPANSION * self._size) if codec else self._size

    def share(self) -> float:
        """How much of the file is read by now, 0 to 1."""
        return float(self._file.tell() / max(self._size, 1))

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        block: bytes = self._bytes.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise UserError(
                f"{self.path}: expands to more than {MAX_EXPANSION} times its size; if you trust it, unpack it yourself"
            )
        return block

    def lines(self) -> Iterator[str]:
        """The lines of a text in UTF-8, with their ends, without a byte order mark."""
        rest, offset, number = b"", 0, 0
        while True:
            with _failing(self.path):
                block = self.read(2**20)
            lines = (rest + block).split(b"\n") if block else [rest]
            rest = lines.pop() if block else b""
            for line in lines:
                if block or line:
                    number += 1
                    yield self._decode(line, offset, number) + ("\n" if block else "")
                offset += len(line) + 1
            if len(rest) > MAX_LINE:
                raise UserError(f"{self.path}: line {number + 1} is longer than {MAX_LINE // 2**20} MiB")
            if not block:
                return

    def _decode(self, line: bytes, offset: int, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {offset + error.start} (0x{line[error.start]:02x})"
            raise UserError(
                f"{self.path}: line {number}: {byte} is not UTF-8; convert the file, e.g. `iconv -f latin1 -t utf-8`"
            ) from None


def _delimited(path: Path, delimiter: str, header: Sequence[str] | None) -> Table:
    csv.field_size_limit(MAX_LINE)
    stream = _Stream(path)
    cells = csv.reader(stream.lines(), delimiter=delimiter, strict=True)
    namer = "the first line"
    if header is None:
        with _failing(path):
            names: Sequence[str] = next(cells, [])
    else:
        names, namer = header, "`header` in params.yaml"
    if not any(names):
        raise UserError(f"{path}: the first line must name the columns; it is empty")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: {namer} names the column '{name}' twice")

    def rows() -> Iterator[Row]:
        while True:
            try:
                row = next(cells)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path}: line {cells.line_num}: {error}; is a quotation mark missing?") from None
            if row and len(row) != len(names):
                raise UserError(
                    f"{path}: line {cells.line_num}: {len(row)} cells, but {namer} names {len(names)} columns"
                )
            if row:
                yield dict(zip(names, row, strict=True))

    return Table(str(path), names, rows(), stream.share)


def _json_lines(path: Path, wanted: Sequence[str]) -> Table:
    stream = _Stream(path)

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
    with _failing(path):
        start = _Stream(path).read(2**16)
        marked = start.startswith(BOM)
        if not start.removeprefix(BOM).lstrip().startswith(b"["):
            return _json_lines(path, wanted)
        stream = _Stream(path)
        stream.read(len(BOM) if marked else 0)
    return _objects(stream, ijson.items(stream, "item", use_float=True))


def _objects(stream: _Stream, values: Iterator[object]) -> Table:
    def rows() -> Iterator[Row]:
        with _failing(stream.path):
            for number, value in enumerate(values, start=1):
                if not isinstance(value, dict):
                    raise UserError(f"{stream.path}: row {number}: not an object with the columns as keys")
                yield value

    all_rows = rows()
    first = next(all_rows, None)
    if first is None:
        raise UserError(f"{stream.path}: holds no rows")
    return Table(str(stream.path), [*first], chain([first], all_rows), stream.share)


def _parquet(path: Path, wanted: Sequence[str]) -> Table:
    with _failing(path):
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)  # else the whole file comes to stay
        names = file.schema_arrow.names
        batches = file.iter_batches(batch_size=BATCH, columns=[name for name in wanted if name in names])
    return _columnar(path, names, batches, lambda number: number * BATCH / file.metadata.num_rows)


def _arrow(path: Path, wanted: Sequence[str]) -> Table:
    with _failing(path):
        content = pa.memory_map(str(path))
        if content.read(6) == b"ARROW1":
            file = pa.ipc.open_file(content)
            size = file.num_record_batches
            return _columnar(path, file.schema.names, map(file.get_batch, range(size)), lambda number: number / size)
        content.seek(0)
        stream = pa.ipc.open_stream(content)
    return _columnar(path, stream.schema.names, stream, lambda number: content.tell() / content.size())


def _arrow_dataset(path: Path, wanted: Sequence[str]) -> Table:
    import datasets

    with _failing(path):
        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            loaded = datasets.concatenate_datasets(list(loaded.values()))
        names = loaded.column_names
        here = loaded.select_columns([name for name in wanted if name in names])
    return _columnar(path, names, here.with_format("arrow").iter(BATCH), lambda number: number * BATCH / len(loaded))


def _columnar(path: Path, names: Sequence[str], batches: Iterable[Any], share: Callable[[int], float]) -> Table:
    """A table of batches; `share` tells how much is read after so many of them."""
    done = 0.0

    def rows() -> Iterator[Row]:
        nonlocal done
        with _failing(path):
            for number, batch in enumerate(batches, start=1):
                done = min(share(number), 1.0)
                batch.validate(full=True)  # Arrow trusts a file: a damaged offset would read anywhere in memory
                for start in range(0, batch.num_rows, BATCH):
                    yield from batch.slice(start, BATCH).to_pylist()
        done = 1.0

    return Table(str(path), names, rows(), lambda: done)


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
DELIMITED = {".csv": ",", ".tsv": "\t"}
TEXTS = {*DELIMITED, ".json", ".jsonl", ".ndjson"}
"""Formats that may be packed."""
