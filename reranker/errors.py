"""The error that a person can act on."""


class UserError(Exception):
    """Bad input: its message is one line that names the file, column, key or row and what to do."""
