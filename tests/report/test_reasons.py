"""Tests of the guess at why no relevant passage is first."""

import pytest

from reranker.report import explorer
from reranker.report.explorer import Passage, alike, guess

TEXT = "Return the sum of the elements of an array over a given axis, as a number."
RELEVANT = Passage(TEXT, "g1")
OTHER = Passage("Read a table of a database into memory, row by row, with its column names.", "g2")
TWIN = Passage(f"Deprecated. {TEXT} See the other function.", "g3")


def everything(query: str, passage: str) -> bool:
    return True


def nothing(query: str, passage: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("relevant", "above", "holds", "expected"),
    [
        ([], [TWIN], nothing, explorer.MISSED),
        ([RELEVANT], [OTHER, TWIN], nothing, explorer.NEAR),
        ([OTHER, RELEVANT], [TWIN], nothing, explorer.NEAR),
        ([RELEVANT], [OTHER], nothing, explorer.CUT),
        ([RELEVANT], [OTHER], everything, explorer.NONE),
        ([RELEVANT], [], everything, explorer.NONE),
    ],
)
def test_first_reason_that_holds_is_the_guess(relevant, above, holds, expected):
    assert guess("sum of an array", relevant, above, holds) == expected


def test_only_the_length_of_the_best_relevant_passage_is_checked():
    calls = []
    guess("sum", [RELEVANT, OTHER], [], lambda query, passage: bool(calls.append((query, passage))))
    assert calls == [("sum", RELEVANT.text)]


def test_passages_of_one_group_or_with_most_of_the_runs_are_alike():
    assert alike(RELEVANT, OTHER._replace(group="g1"))
    assert alike(RELEVANT, TWIN)
    assert alike(TWIN, RELEVANT)
    assert not alike(RELEVANT, OTHER)


def test_half_of_the_runs_are_not_enough():
    words = TEXT.split()
    half = Passage(" ".join(words[: len(words) // 2]) + " and then something quite different from before it", "g4")
    assert not alike(RELEVANT, half)
