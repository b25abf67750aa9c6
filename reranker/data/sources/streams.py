"""Streams the bytes of files and the rows of tables, and limits how much is read."""

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
"""The largest number of bytes of a line or row, and of characters of a cell of CSV."""
MAX_EXPANSION = 200
MAX_UNCHECKED = 2**30
"""A file may have this many bytes after decompression, or `MAX_EXPANSION` times its own size if that is more."""
ROWS = 1_000
"""The largest number of rows that are held at a time."""
BOM = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
Row = Mapping[str, object]


class Table(NamedTuple):
    """An open file whose rows have not been read yet."""

    origin: str
    """The name of the file, for messages."""
    names: Sequence[str]
    """Names of the columns. For JSON they are all keys of the first `ROWS` rows, some of which a row may lack."""
    rows: Iterator[Row]
    """The cells of each row by column. A key that a JSON object lacks is absent."""
    share: Callable[[], float]
    """The share of the file that has been read by now, from 0 to 1."""


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield up to `ROWS` rows at a time. A chunk also ends with the row with which its bytes reach `MAX_LINE`."""
    some: list[Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += _size(row)
        if len(some) >= ROWS or size >= MAX_LINE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _size(row: Row) -> int:
    """Approximate bytes of a row's cells. This is a loop, because JSON may be nested too deeply for recursion."""
    size, left = 0, list(row.values())
    while left:
        cell = left.pop()
        size += len(cell) if isinstance(cell, str) else 8
        if isinstance(cell, (list, dict)):
            left += cell.values() if isinstance(cell, dict) else cell
    return size


@contextmanager
def user_errors(path: Path) -> Iterator[None]:
    """Turn a library's error on a damaged file into a `UserError` of one line."""
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
        message = error.args[0] if error.args else ""
        message = message.decode(errors="replace") if isinstance(message, bytes) else str(error)  # ijson has bytes
        reason = next(iter(message.strip().splitlines()), type(error).__name__)
        raise UserError(f"{path}: could not be read ({reason})") from None


class Expansion:
    """Counts down the bytes that a file may still have after decompression."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = max(MAX_UNCHECKED, MAX_EXPANSION * path.stat().st_size)

    def take(self, size: int) -> None:
        """Subtract `size` bytes that were read.

        Raises:
            UserError: the bytes read so far are out of all proportion to the file.
        """
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self._path}: expands to more than {MAX_EXPANSION} times its size; unpack it yourself if you trust it"
            )


class Stream:
    """The bytes of a file after decompression. Bytes out of all proportion to the file are an error."""

    def __init__(self, path: Path) -> None:
        codec = COMPRESSED.get(path.suffix.lower())
        self.path = path
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        self._bytes = pa.CompressedInputStream(self._file, codec) if codec else self._file
        self._expansion = Expansion(path) if codec else None

    def share(self) -> float:
        """The share of the file that has been read by now, from 0 to 1."""
        return float(self._file.tell() / max(self._size, 1))

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; there are none at the end."""
        block: bytes = self._bytes.read(size)
        if self._expansion:
            self._expansion.take(len(block))
        return block

    def lines(self) -> Iterator[str]:
        """Yield the lines of a text in UTF-8 with their ends, but without a byte order mark."""
        rest, offset, number = b"", 0, 0
        while True:
            with user_errors(self.path):
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
        stream: the bytes of the file.
        offset: number of its bytes that have been read already.
    """

    def __init__(self, stream: Stream, offset: int) -> None:
        self._stream = stream
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._row = 1
        self._size = 0

    def end_row(self) -> None:
        """Count a row that ended, so that the next one may have `MAX_LINE` bytes."""
        self._row += 1
        self._size = 0

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; there are none at the end.

        Raises:
            UserError: the bytes are not UTF-8, or more than `MAX_LINE` of them have no whole row.
        """
        block = self._stream.read(size)
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(block, final=size > 0 and not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(str(self._stream.path), error, self._offset - pending) from None
        self._offset += len(block)
        self._size += len(block)
        if self._size > MAX_LINE:
            raise UserError(f"{self._stream.path}: row {self._row} is longer than {MAX_LINE // 2**20} MiB")
        return block


def _not_utf8(where: str, error: UnicodeDecodeError, offset: int) -> UserError:
    """The error for bytes that are not UTF-8. `offset` is the position in the file of the bytes that were decoded."""
    byte = f"byte {offset + error.start} (0x{error.object[error.start]:02x})"
    return UserError(f"{where}: {byte} is not UTF-8; convert the file, e.g. `iconv -f latin1 -t utf-8`")
