"""Checks of the values of cells, and of the columns that a table must have."""

import difflib
import math
import reprlib
from collections.abc import Sequence

from reranker.common.errors import UserError
from reranker.data.sources.streams import Table

SHORT = reprlib.Repr()  # `repr` fails on JSON that is nested too deeply
SHORT.maxstring = SHORT.maxother = 100  # more characters than `_short` keeps, because reprlib cuts out the middle


def require(table: Table, names: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """Check that the table has the columns that `names` lists; it may lack those that are optional.

    Returns:
        The other columns of the table.

    Raises:
        UserError: a column is missing; the message lists the columns of the table and suggests the nearest.
    """
    for name in names:
        if name not in table.names and name not in optional:
            near = difflib.get_close_matches(name.casefold(), [column.casefold() for column in table.names], n=1)
            matches = [column for column in table.names if [column.casefold()] == near]
            guess = f"; did you mean '{matches[0]}'?" if matches else ""
            raise UserError(f"{table.origin}: no column '{name}'; the columns are {', '.join(table.names)}{guess}")
    return [name for name in table.names if name not in names]


def text(cell: object, where: str, column: str) -> str:
    """The text of a cell, or an empty text for null.

    Raises:
        UserError: the cell is something else; the message names `where` and `column`.
    """
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; it must be a text")
    return cell


def identifier(cell: object, where: str, column: str) -> str:
    """The id in a cell, which is a text or a whole number. A number becomes the text of its digits.

    Raises:
        UserError: the cell is something else, or empty.
    """
    name = str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; it must be an id, a text or a whole number")
    return name


def relevance(cell: object, where: str, column: str, *, negative: bool = False) -> int:
    """The relevance in a cell, which is a whole number or the text of one.

    Args:
        cell: the value.
        where: the file and row, for the message.
        column: the name of the column, for the message.
        negative: whether numbers below 0 are allowed, which TREC uses for spam; they become 0.

    Raises:
        UserError: the cell is no relevance.
    """
    try:
        number = float(cell) if isinstance(cell, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not (number.is_integer() and (-(2**31) if negative else 0) <= number < 2**31):
        hint = "; a score is no relevance" if math.isfinite(number) and not number.is_integer() else ""
        rule = f"it must be a whole number{'' if negative else ' from 0'}, above 0 for a relevant passage{hint}"
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; {rule}")
    return max(int(number), 0)


def number(cell: object, where: str, column: str, lowest: float, highest: float, *, whole: bool = False) -> float:
    """The number in a cell, from `lowest` to `highest`, or the text of one.

    Raises:
        UserError: the cell is no such number.
    """
    try:
        value = float(cell) if isinstance(cell, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        value = float("nan")
    if not lowest <= value <= highest or (whole and not value.is_integer()):
        rule = f"it must be a {'whole ' if whole else ''}number from {lowest:g} to {highest:g}"
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; {rule}")
    return value


def _short(cell: object) -> str:
    text = SHORT.repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."
