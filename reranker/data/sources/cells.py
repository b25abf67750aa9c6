"""What a cell may hold, and which columns a table must have."""

import difflib
import math
import reprlib
from collections.abc import Sequence

from reranker.common.errors import UserError
from reranker.data.sources.streams import Table

SHORT = reprlib.Repr()  # JSON may be nested deeper than `repr` can follow
SHORT.maxstring = SHORT.maxother = 100  # more than is shown, which is the beginning


def require(table: Table, names: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """Check that the table has the columns; it may lack those that are optional.

    Returns:
        The other ones that it has.

    Raises:
        UserError: one is missing; the message lists those that are there and suggests the nearest.
    """
    for name in names:
        if name not in table.names and name not in optional:
            near = difflib.get_close_matches(name.casefold(), [known.casefold() for known in table.names], n=1)
            meant = [known for known in table.names if [known.casefold()] == near]
            guess = f"; did you mean '{meant[0]}'?" if meant else ""
            raise UserError(f"{table.origin}: no column '{name}'; there are {', '.join(table.names)}{guess}")
    return [name for name in table.names if name not in names]


def text(cell: object, where: str, column: str) -> str:
    """A text; an empty one for null.

    Raises:
        UserError: it is something else; `where` and `column` are named.
    """
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; a text is wanted")
    return cell


def identifier(cell: object, where: str, column: str) -> str:
    """An id: a text, or a whole number, whose digits are taken.

    Raises:
        UserError: it is something else, or empty.
    """
    found = str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell
    if not isinstance(found, str) or not found:
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; an id is wanted, a text or a whole number")
    return found


def relevance(cell: object, where: str, column: str, *, negative: bool = False) -> int:
    """A relevance: a whole number, also as a text.

    Args:
        cell: what is there.
        where: named in the error, as is `column`.
        column: its name.
        negative: whether a number below 0 is one too, as TREC has for spam; it is read as 0.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(cell) if isinstance(cell, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not (number.is_integer() and (-(2**31) if negative else 0) <= number < 2**31):
        hint = "; a score is no relevance" if math.isfinite(number) and not number.is_integer() else ""
        wanted = f"a whole number{'' if negative else ' from 0'} is wanted, above 0 for a right passage{hint}"
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; {wanted}")
    return max(int(number), 0)


def number(cell: object, where: str, column: str, lowest: float, highest: float, *, whole: bool = False) -> float:
    """A number between two others, both included, also as a text.

    Raises:
        UserError: it is none.
    """
    try:
        found = float(cell) if isinstance(cell, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        found = float("nan")
    if not lowest <= found <= highest or (whole and not found.is_integer()):
        wanted = f"a {'whole ' if whole else ''}number from {lowest:g} to {highest:g} is wanted"
        raise UserError(f"{where}: column '{column}' holds {_short(cell)}; {wanted}")
    return found


def _short(cell: object) -> str:
    shown = SHORT.repr(cell)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
