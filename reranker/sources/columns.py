"""From the rows of a table to examples: which column is what, and what a cell may hold."""

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice

from reranker.errors import UserError
from reranker.params import Columns
from reranker.records import Example, Part
from reranker.sources.files import Table

ROWS = 1_000
"""Those that are handed on together."""


def read(table: Table, columns: Columns) -> Iterator[Part]:
    """One example per row, or one per item where the passage's cell is a list.

    Args:
        table: rows with at least the columns named.
        columns: what is where. Without a label every passage is right; with one, its cell is the relevance, or a
            list with one for each of the passages.

    Yields:
        The examples of up to `ROWS` rows. An empty or null cell gives an empty text, which cleaning drops and counts.

    Raises:
        UserError: a column is missing, or a cell holds what is no text or no relevance; the message names the
            file, the row (from 1) and the column.
    """
    for name in columns.names():
        if name not in table.names:
            near = difflib.get_close_matches(name.casefold(), [known.casefold() for known in table.names], n=1)
            meant = [known for known in table.names if [known.casefold()] == near]
            guess = f"; did you mean '{meant[0]}'?" if meant else ""
            raise UserError(f"{table.origin}: no column '{name}'; there are {', '.join(table.names)}{guess}")
    rows = enumerate(table.rows, start=1)
    while some := list(islice(rows, ROWS)):
        examples = [
            example for number, row in some for example in _of_row(f"{table.origin}: row {number}", row, columns)
        ]
        yield Part(examples, table.share())


def _of_row(where: str, row: Mapping[str, object], columns: Columns) -> Iterator[Example]:
    query = _text(row.get(columns.query), where, columns.query)
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
        relevance = _relevance(label, where, columns.label or "")
        yield Example(where, query, _text(passage, where, columns.passage), relevance)


def _text(cell: object, where: str, column: str) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; a text is wanted")
    return cell


def _relevance(cell: object, where: str, column: str) -> int:
    try:
        number = float(cell) if isinstance(cell, (str, int, float)) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not (number.is_integer() and 0 <= number < 2**31):
        wanted = "a whole number from 0 is wanted, above 0 for a right passage"
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; {wanted}")
    return int(number)


def _short(cell: object) -> str:
    shown = repr(cell)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
