import pytest

from reranker.common.errors import UserError, first_line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.csv: no column 'Größe 漢'", "a.csv: no column 'Größe 漢'"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("half \ud800", r"half \ud800"),
        ("next\u2028line", r"next\u2028line"),
    ],
)
def test_message_is_one_line_that_commands_no_terminal(message: str, shown: str):
    assert str(UserError(message)) == shown
    assert len(str(UserError(message)).splitlines()) == 1


def test_error_that_says_nothing_goes_by_its_name():
    assert first_line(NotImplementedError()) == "NotImplementedError"
    assert first_line(ValueError("\n one\ntwo")) == "one"
