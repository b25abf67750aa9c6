"""What is read of a file at a time, and how much of it at most: the bytes of a text, the rows of a table."""

import codecs
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ijson
import pyarrow as pa

from reranker.common.errors import UserError

MAX_LINE = 64 * 2**20
"""Bytes of the longest line or row, and characters of the longest cell of CSV, that are read."""
MAX_EXPANSION = 200
MAX_UNCHECKED = 2**30
"""A file may hold this many bytes unpacked, or `MAX_EXPANSION` times its own size if that is more."""
ROWS = 1_000
"""Rows that are held together at most."""
BOM = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
Row = Mapping[str, object]


class Table(NamedTuple):
    """The rows of a file, not read yet."""

    origin: str
    """The file, for messages."""
    names: Sequence[str]
    """Of the columns; of JSON, the keys of the first `ROWS` rows, of which one may lack some."""
    rows: Iterator[Row]
    """Each row's cells by column; a key that a JSON object lacks is absent."""
    share: Callable[[], float]
    """How much of the file is read by now, 0 to 1."""


def together(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Runs of up to `ROWS` rows, fewer where they are long: a run ends with the row that takes it to `MAX_LINE`."""
    some: list[Row] = []
    held = 0
    for row in rows:
        some.append(row)
        held += _size(row)
        if len(some) >= ROWS or held >= MAX_LINE:
            yield some
            some, held = [], 0
    if some:
        yield some


def _size(row: Row) -> int:
    """About how many bytes its cells take; a loop, for JSON may be nested deeper than functions can be."""
    size, left = 0, list(row.values())
    while left:
        cell = left.pop()
        size += len(cell) if isinstance(cell, str) else 8
        if isinstance(cell, (list, dict)):
            left += cell.values() if isinstance(cell, dict) else cell
    return size


@contextmanager
def failing(path: Path) -> Iterator[None]:
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


class Expansion:
    """How many bytes a file may still give, unpacked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = max(MAX_UNCHECKED, MAX_EXPANSION * path.stat().st_size)

    def take(self, size: int) -> None:
        """Tell that so many more are read.

        Raises:
            UserError: they are out of all proportion to the file.
        """
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self._path}: expands to more than {MAX_EXPANSION} times its size; unpack it yourself if you trust it"
            )


class Stream:
    """The bytes of a file, unpacked; it ends with an error where they expand out of all proportion."""

    def __init__(self, path: Path) -> None:
        codec = COMPRESSED.get(path.suffix.lower())
        self.path = path
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        self._bytes = pa.CompressedInputStream(self._file, codec) if codec else self._file
        self._expansion = Expansion(path) if codec else None

    def share(self) -> float:
        """How much of the file is read by now, 0 to 1."""
        return float(self._file.tell() / max(self._size, 1))

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        block: bytes = self._bytes.read(size)
        if self._expansion:
            self._expansion.take(len(block))
        return block

    def lines(self) -> Iterator[str]:
        """The lines of a text in UTF-8, with their ends, without a byte order mark."""
        rest, offset, number = b"", 0, 0
        while True:
            with failing(self.path):
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
            raise _not_utf8(f"{self.path}: line {number}", error, offset) from None


class Rows:
    """The bytes of a text in UTF-8, for a parser that finds the rows in it.

    Args:
        stream: of the file.
        offset: bytes of it that are read already.
    """

    def __init__(self, stream: Stream, offset: int) -> None:
        self._stream = stream
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._row = 1
        self._held = 0

    def found(self) -> None:
        """Tell that one more row ends in what is read."""
        self._row += 1
        self._held = 0

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
            UserError: they are not UTF-8, or `MAX_LINE` of them hold no whole row.
        """
        block = self._stream.read(size)
        begun = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(block, final=size > 0 and not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(str(self._stream.path), error, self._offset - begun) from None
        self._offset += len(block)
        self._held += len(block)
        if self._held > MAX_LINE:
            raise UserError(f"{self._stream.path}: row {self._row} is longer than {MAX_LINE // 2**20} MiB")
        return block


def _not_utf8(where: str, error: UnicodeDecodeError, offset: int) -> UserError:
    """The error of the decoder; `offset` is that of its bytes in the file."""
    byte = f"byte {offset + error.start} (0x{error.object[error.start]:02x})"
    return UserError(f"{where}: {byte} is not UTF-8; convert the file, e.g. `iconv -f latin1 -t utf-8`")
