"""Keeps the texts of rows on disk, so that any number of rows can be cleaned and sorted in little memory."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reranker.common.errors import UserError

ROWS = 20_000
CHARS = 16 * 2**20
"""Rows are written when there are `ROWS` of them, or when their passages have more than `CHARS` characters."""
BUCKET = 50_000
"""Texts that are sorted at a time; more, if the texts would need more than `BUCKETS` buckets."""
BUCKETS = 200
COLUMNS = ("origin", "query", "passage")


class Spool:
    """A file of rows that is written once and then read any number of times. It is deleted when the block ends.

    Args:
        folder: the folder of this file and of temporary ones. Whatever is in it is deleted.

    Raises:
        UserError: the files could not be written. The error is raised when the block begins or ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "rows.parquet"
        self._held: list[tuple[str, str | None, str]] = []
        self._chars = 0
        self._schema = pa.schema([(name, pa.large_string()) for name in COLUMNS])
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Spool":
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._folder.mkdir(parents=True)
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", use_dictionary=["origin"])
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held = []
        with suppress(OSError):
            self._close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._folder}: could not be written ({error.strerror or error})")

    def add(self, origin: str, query: str | None, passage: str) -> None:
        """Append a row."""
        self._held.append((origin, query, passage))
        self._chars += len(passage)
        if len(self._held) == ROWS or self._chars > CHARS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._held, strict=True) if self._held else [()] * len(COLUMNS)
        if self._writer:
            # Each table becomes a row group. The writer would gather batches in memory up to a million rows.
            self._writer.write_table(pa.table([pa.array(column) for column in columns], schema=self._schema))
        self._held, self._chars = [], 0

    def _close(self) -> None:
        if self._writer:
            self._flush()
            self._writer.close()
            self._writer = None

    def _batches(self, column: str) -> Iterator[tuple[int, pa.Array]]:
        """The texts of a column in batches, each with the number of its first row."""
        self._close()
        start = 0
        with pq.ParquetFile(self._path, pre_buffer=False) as file:  # a buffer would hold the whole column
            for batch in file.iter_batches(ROWS, columns=[column]):
                yield start, batch.column(0)
                start += len(batch)

    def texts(self, column: str, rows: NDArray[np.int64]) -> list[str]:
        """Read the texts of some rows into memory, in the order of `rows`.

        Args:
            column: origin, query or passage.
            rows: numbers of the rows, from 0.
        """
        order = np.argsort(rows, kind="stable")
        in_file_order: list[str] = []
        for start, texts in self._batches(column):
            low, high = np.searchsorted(rows[order], [start, start + len(texts)])
            in_file_order += texts.take(pa.array(rows[order[low:high]] - start)).to_pylist()
        places = np.empty(len(rows), np.int64)
        places[order] = np.arange(len(rows))
        return [in_file_order[place] for place in places]

    def ordered(self, column: str, rows: NDArray[np.int64]) -> Iterator[list[str]]:
        """Read the texts of any number of rows in the order of `rows`, with an external bucket sort.

        Args:
            column: origin, query or passage.
            rows: numbers of the rows, from 0, each at most once.

        Yields:
            The texts of consecutive items of `rows`.
        """
        size = max(BUCKET, -(-len(rows) // BUCKETS))
        paths = [self._folder / f"{column}-{start}.arrow" for start in range(0, len(rows), size)]
        schema = pa.schema([("place", pa.int64()), ("text", pa.large_string())])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [pa.ipc.new_stream(str(path), schema, options=options) for path in paths]
        by_row = np.argsort(rows, kind="stable")
        sorted_rows = rows[by_row]
        for start, texts in self._batches(column):
            low, high = np.searchsorted(sorted_rows, [start, start + len(texts)])
            places, offsets = by_row[low:high], sorted_rows[low:high] - start
            bucket = places // size
            for number in np.unique(bucket):
                some = bucket == number
                writers[number].write_batch(
                    pa.record_batch([pa.array(places[some]), texts.take(pa.array(offsets[some]))], schema=schema)
                )
        for writer in writers:
            writer.close()
        for path in paths:
            with pa.ipc.open_stream(str(path)) as stream:
                table = stream.read_all().sort_by("place")
            path.unlink()
            yield table.column("text").to_pylist()
