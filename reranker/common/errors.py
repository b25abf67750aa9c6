"""The error that a user can act on."""


class UserError(Exception):
    """An error in the input. Its message is one line that names the file, column, key or row and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Escape the characters that do not print, so that no text of a file can break a line or control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
