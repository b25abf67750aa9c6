"""What no excerpt of a passage can hold."""

import pytest
from transformers import AutoTokenizer

from reranker.common.model_files import resolve
from reranker.inference.excerpts import can_hold, excerpts
from reranker.retrieval.bm25 import statistics

FILLER = "alpha beta gamma delta " * 60


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("bundled/all-MiniLM-L6-v2"))


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ("sparse matrix", True),
        (f"a sparse thing. {FILLER} a matrix here", True),  # one word in the beginning, one in the window
        (f"Opening. {FILLER} sparse matrix {FILLER}", True),
        (f"Opening. {FILLER} sparse {FILLER} matrix {FILLER}", False),
        (f"Opening. {FILLER} sparse {FILLER} matrix {FILLER} matrix sparse", True),
        (f"Opening. {FILLER}", True),
    ],
)
def test_excerpt_can_hold_the_words_of_the_query_where_they_stand_together(tokenizer, passage, expected):
    assert can_hold(tokenizer.backend_tokenizer, 32, "sparse matrix", passage) is expected


def test_what_no_excerpt_can_hold_the_chosen_one_lacks(tokenizer):
    passage = f"Opening. {FILLER} sparse {FILLER} matrix {FILLER}"
    (text,) = excerpts(tokenizer, 32, statistics([passage]), ["sparse matrix"], [passage])
    assert ("sparse" in text) != ("matrix" in text)
