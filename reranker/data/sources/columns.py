"""Turns the rows of a table into examples."""

from collections.abc import Iterator, Mapping

from reranker.common.errors import UserError
from reranker.common.source_schema import Columns
from reranker.data.cleaning import UNSPLIT, Example, Part
from reranker.data.sources import cells
from reranker.data.sources.streams import Table, chunks


def read(table: Table, columns: Columns, split: str = UNSPLIT) -> Iterator[Part]:
    """Read one example from each row, or one from each item where the cell of the passage is a list.

    Args:
        table: rows that have at least these columns.
        columns: names of the columns. Without a label every passage is relevant. With a label, its cell is the
            relevance, or a list of the relevance of each passage. Passages in the columns of negatives, of which a row
            may lack some, get the relevance 0.
        split: the split of the file's queries.

    Yields:
        The examples of some rows. An empty or null cell gives an empty text, which cleaning drops and counts.

    Raises:
        UserError: a column is missing, or a cell holds no text or no relevance; the message names the file, the row
            (from 1) and the column.
    """
    unused = cells.require(table, columns.names())
    done = 0
    for some in chunks(table.rows):
        examples: list[Example] = []
        for number, row in enumerate(some, start=done + 1):
            examples += _of_row(f"{table.origin}: row {number}", row, columns, split)
        done += len(some)
        yield Part(examples, table.share(), unused)


def _of_row(where: str, row: Mapping[str, object], columns: Columns, split: str) -> Iterator[Example]:
    query = cells.text(row.get(columns.query), where, columns.query)
    passages = row.get(columns.passage)
    if not isinstance(passages, list):
        passages = [passages]
    labels: list[object] = [1] * len(passages)
    if columns.label is not None:
        cell = row.get(columns.label)
        labels = cell if isinstance(cell, list) else [cell]
        if len(labels) != len(passages):
            raise UserError(
                f"{where}: column '{columns.label}' has {len(labels)} labels "
                f"for {len(passages)} passages in column '{columns.passage}'"
            )
    for passage, label in zip(passages, labels, strict=True):
        relevance = cells.relevance(label, where, columns.label or "")
        yield Example(where, query, cells.text(passage, where, columns.passage), relevance, split)
    for name in columns.negatives:
        cell = row.get(name)
        for negative in cell if isinstance(cell, list) else [cell]:
            if passage := cells.text(negative, where, name):
                yield Example(where, query, passage, 0, split)
