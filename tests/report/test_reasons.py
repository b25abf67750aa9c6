"""The guess at why no right passage stands first."""

import pytest

from reranker.report import explorer
from reranker.report.explorer import Passage, alike, guess

TEXT = "Return the sum of the elements of an array over a given axis, as a number."
RIGHT = Passage(TEXT, "g1")
OTHER = Passage("Read a table of a database into memory, row by row, with its column names.", "g2")
TWIN = Passage(f"Deprecated. {TEXT} See the other function.", "g3")


def everything(query: str, passage: str) -> bool:
    return True


def nothing(query: str, passage: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("right", "above", "holds", "expected"),
    [
        ([], [TWIN], nothing, explorer.MISSED),
        ([RIGHT], [OTHER, TWIN], nothing, explorer.NEAR),
        ([OTHER, RIGHT], [TWIN], nothing, explorer.NEAR),
        ([RIGHT], [OTHER], nothing, explorer.CUT),
        ([RIGHT], [OTHER], everything, explorer.NONE),
        ([RIGHT], [], everything, explorer.NONE),
    ],
)
def test_first_reason_that_holds_is_the_guess(right, above, holds, expected):
    assert guess("sum of an array", right, above, holds) == expected


def test_only_the_best_right_passage_is_asked_about_its_length():
    asked = []
    guess("sum", [RIGHT, OTHER], [], lambda query, passage: bool(asked.append((query, passage))))
    assert asked == [("sum", RIGHT.text)]


def test_passages_of_one_group_or_with_most_of_the_runs_are_alike():
    assert alike(RIGHT, OTHER._replace(group="g1"))
    assert alike(RIGHT, TWIN)
    assert alike(TWIN, RIGHT)
    assert not alike(RIGHT, OTHER)


def test_half_of_the_runs_are_not_enough():
    words = TEXT.split()
    half = Passage(" ".join(words[: len(words) // 2]) + " and then something quite different from before it", "g4")
    assert not alike(RIGHT, half)
