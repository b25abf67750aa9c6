"""The error that a person can act on."""


class UserError(Exception):
    """Bad input: its message is one line that names the file, column, key or row and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with what does not print escaped: nothing in a file may break a line or command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what a library says, or what its error is called where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
