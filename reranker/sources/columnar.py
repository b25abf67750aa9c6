"""Parquet and Arrow files, batch by batch; no column is read that nobody wants."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reranker.sources.streams import Row, Table, failing

BATCH = 1_000
"""Rows that are turned into Python values together."""


def parquet(path: Path, wanted: Sequence[str]) -> Table:
    """The rows of a Parquet file.

    Raises:
        UserError: the file is damaged; also while the rows are read.
    """
    with failing(path):
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)  # else the whole file comes to stay
        names = file.schema_arrow.names
        columns = [name for name in wanted if name in names]
        batches = file.iter_batches(batch_size=BATCH, columns=columns)
    size = max(file.metadata.num_rows, 1)
    return _table(
        path, names, ((path, batch, number * BATCH / size) for number, batch in enumerate(batches, 1)), columns
    )


def arrow(path: Path, wanted: Sequence[str], parts: Sequence[Path] = ()) -> Table:
    """The rows of an Arrow file, of the file or the stream format.

    Args:
        path: of the file, or of the folder of its parts.
        wanted: columns that are needed.
        parts: files with the same columns that follow each other; the path alone if left out.

    Raises:
        UserError: the file is damaged; also while the rows are read.
    """
    parts = parts or [path]
    names, _ = _opened(parts[0])

    def batches() -> Iterator[tuple[Path, Any, float]]:
        for number, part in enumerate(parts):
            for batch, share in _opened(part)[1]:
                yield part, batch, (number + share) / len(parts)

    return _table(path, names, batches(), [name for name in wanted if name in names])


def _opened(path: Path) -> tuple[list[str], Iterator[tuple[Any, float]]]:
    """The names of the columns, and the batches with how much is read by then."""
    with failing(path):
        content = pa.memory_map(str(path))
        if content.read(6) == b"ARROW1":
            file = pa.ipc.open_file(content)
            size = file.num_record_batches
            return file.schema.names, ((file.get_batch(number), (number + 1) / size) for number in range(size))
        content.seek(0)
        stream = pa.ipc.open_stream(content)
        return stream.schema.names, ((batch, content.tell() / content.size()) for batch in stream)


def _table(
    path: Path, names: Sequence[str], batches: Iterable[tuple[Path, Any, float]], columns: Sequence[str]
) -> Table:
    """A table of batches; with each come its file and how much is read by then."""
    done = 0.0

    def rows() -> Iterator[Row]:
        nonlocal done
        with failing(path):
            for _, batch, share in batches:
                done = min(share, 1.0)
                batch = batch.select(columns)
                batch.validate(full=True)  # Arrow trusts a file: a damaged offset would read anywhere in memory
                for start in range(0, batch.num_rows, BATCH):
                    yield from batch.slice(start, BATCH).to_pylist()
        done = 1.0

    return Table(str(path), names, rows(), lambda: done)
