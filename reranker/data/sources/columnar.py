"""Reads Parquet and Arrow files batch by batch. Only the requested columns are read.

A text that a file stores once can be the cell of every row, so the sizes of cells are checked before they become Python
values.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reranker.common.errors import UserError
from reranker.data.sources import streams
from reranker.data.sources.streams import Expansion, Row, Table, user_errors

Batches = Iterable[tuple[Path, Any, float]]
"""Record batches, each with its file and the share of all files that has been read with it, from 0 to 1."""


def parquet(path: Path, column_names: Sequence[str]) -> Table:
    """Open a Parquet file.

    Raises:
        UserError: the file is damaged, a requested column holds neither texts nor numbers, or cells are too long. It
            may be raised while the rows are read.
    """
    with user_errors(path):
        plain = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)  # a larger buffer would hold the whole file
        leaves = [plain.schema.column(number) for number in range(len(plain.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # This reader is slower, but a text that the file stores once is in memory once.
        with_dictionary = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, read_dictionary=texts)
        names = plain.schema_arrow.names
        columns = _columns(path, plain.schema_arrow, column_names)

    def batches() -> Iterator[tuple[Path, Any, float]]:
        done = 0
        for group in range(plain.num_row_groups):
            start = next(with_dictionary.iter_batches(1, [group], columns), None)
            file = with_dictionary if start and any(map(_may_be_long, start.columns)) else plain
            for batch in file.iter_batches(streams.ROWS, [group], columns):
                done += batch.num_rows
                yield path, batch, done / max(plain.metadata.num_rows, 1)

    return _table(path, names, batches(), columns)


def _may_be_long(column: Any) -> bool:
    """Whether `ROWS` rows of a Parquet column may exceed `MAX_LINE`, judged by the dictionary of the row group."""
    if not pa.types.is_dictionary(column.type):
        return _is_list(column.type)
    return streams.ROWS * int(sizes(column.dictionary).max(initial=0)) > streams.MAX_LINE


def arrow(path: Path, column_names: Sequence[str], parts: Sequence[Path] = ()) -> Table:
    """Open an Arrow file, in the file format or the stream format.

    Args:
        path: the file, or the folder of its parts.
        column_names: the columns to read.
        parts: files with the same columns that are read one after the other, or nothing to read `path`.

    Raises:
        UserError: the file is damaged, a requested column holds neither texts nor numbers, or cells are too long. It
            may be raised while the rows are read.
    """
    parts = parts or [path]
    schema, _ = _open(parts[0])
    with user_errors(path):
        names, columns = schema.names, _columns(path, schema, column_names)

    def batches() -> Iterator[tuple[Path, Any, float]]:
        for number, part in enumerate(parts):
            for batch, share in _open(part)[1]:
                yield part, batch, (number + share) / len(parts)

    return _table(path, names, batches(), columns)


def _open(path: Path) -> tuple[Any, Iterator[tuple[Any, float]]]:
    """The schema, and the batches, each with the share of the file that has been read with it."""
    with user_errors(path):
        content = pa.memory_map(str(path))
        if content.read(6) == b"ARROW1":
            file = pa.ipc.open_file(content)
            size = file.num_record_batches
            return file.schema, ((file.get_batch(number), (number + 1) / size) for number in range(size))
        content.seek(0)
        stream = pa.ipc.open_stream(content)
        return stream.schema, ((batch, content.tell() / content.size()) for batch in stream)


def _columns(path: Path, schema: Any, column_names: Sequence[str]) -> list[str]:
    """The requested columns that the file has."""
    columns = [name for name in column_names if name in schema.names]
    for name in columns:
        if not _is_readable(schema.field(name).type):
            raise UserError(
                f"{path}: column '{name}' has the type {schema.field(name).type}; it must hold texts, numbers or lists"
            )
    return columns


def _is_readable(kind: Any) -> bool:
    types = pa.types
    if types.is_dictionary(kind) or _is_list(kind):
        return _is_readable(kind.value_type)
    return _is_text(kind) or types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind)


def _is_list(kind: Any) -> bool:
    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_text(kind: Any) -> bool:
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _table(path: Path, names: Sequence[str], batches: Batches, columns: Sequence[str]) -> Table:
    done = 0.0

    def rows() -> Iterator[Row]:
        nonlocal done
        number = 0
        expansions: dict[Path, Expansion] = {}
        with user_errors(path):
            for file, whole, share in batches:
                done = min(share, 1.0)
                expansion = expansions.setdefault(file, Expansion(file))
                batch = whole.select(columns)
                batch.validate(full=True)  # otherwise a damaged offset would make Arrow read anywhere in memory
                for start in range(0, batch.num_rows, streams.ROWS):
                    piece = batch.slice(start, streams.ROWS)
                    row_sizes = sum((sizes(column) for column in piece.columns), start=np.zeros(len(piece), np.int64))
                    if row_sizes.max() > streams.MAX_LINE:
                        row = number + int(np.argmax(row_sizes > streams.MAX_LINE)) + 1
                        raise UserError(f"{path}: row {row} is longer than {streams.MAX_LINE // 2**20} MiB")
                    expansion.take(int(row_sizes.sum()))
                    for first, last in pairwise(_cuts(row_sizes)):
                        yield from _values(piece.slice(first, last - first))
                    number += len(piece)
        done = 1.0

    return Table(str(path), names, rows(), lambda: done)


def _cuts(sizes: NDArray[np.int64]) -> list[int]:
    """Where to cut rows into parts of up to `MAX_LINE` bytes each, with both ends. No row is longer than that."""
    ends = np.cumsum(sizes)
    cuts = [0]
    while cuts[-1] < len(sizes):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(int(np.searchsorted(ends, before + streams.MAX_LINE, side="right")))
    return cuts


def _values(rows: Any) -> list[Row]:
    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in rows.columns]
    values: list[Row] = pa.RecordBatch.from_arrays(columns, names=rows.schema.names).to_pylist()
    return values


def sizes(array: Any) -> NDArray[np.int64]:
    """Bytes of the texts in each cell, with 8 bytes for each item of a list; shape (rows,)."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pa.array(sizes(array.dictionary)), array.indices)
    elif _is_list(kind):
        lengths = pc.multiply(pc.list_value_length(array).cast(pa.int64()), 8)
        if not (_is_list(kind.value_type) or _is_text(kind.value_type) or pa.types.is_dictionary(kind.value_type)):
            return _numbers(lengths)
        items = np.bincount(pc.list_parent_indices(array), sizes(array.flatten()), minlength=len(array))
        return _numbers(lengths) + items.astype(np.int64)
    elif pa.types.is_string_view(kind):
        views = np.frombuffer(array.buffers()[1], "<i4").reshape(-1, 4)  # each begins with the length of its text
        lengths = pc.if_else(array.is_valid(), pa.array(views[array.offset : array.offset + len(array), 0]), 0)
    elif _is_text(kind):
        lengths = pc.binary_length(array)
    else:
        return np.zeros(len(array), np.int64)
    return _numbers(lengths)


def _numbers(array: Any) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers
