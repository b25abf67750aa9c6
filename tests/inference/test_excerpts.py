import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from reranker.common.model_files import resolve
from reranker.inference.excerpts import GAP, excerpts
from reranker.retrieval.bm25 import Statistics, statistics

FILLER = "alpha beta gamma delta " * 60


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("bundled/all-MiniLM-L6-v2"))


def one(tokenizer, query: str, passage: str, max_length: int = 32, corpus: Statistics | None = None) -> str:
    (text,) = excerpts(tokenizer, max_length, corpus or statistics([passage, FILLER]), [query], [passage])
    return text


def test_passage_that_fits_is_left_as_it_is(tokenizer):
    passage = "Read a table,\n  then  close the file."
    assert one(tokenizer, "read a file", passage) == passage


def test_long_passage_is_shown_from_its_beginning_and_where_the_words_of_the_query_stand(tokenizer):
    text = one(tokenizer, "sparse matrix", f"Opening words. {FILLER} the sparse matrix here {FILLER}")
    assert text.startswith("Opening words.")
    assert GAP in text
    assert "the sparse matrix here" in text


def test_rare_word_counts_for_more_than_a_common_one(tokenizer):
    passage = f"Opening. {FILLER} the common word {FILLER} the rare word {FILLER}"
    corpus = Statistics(1000, 100.0, {"common": 900, "rare": 2})
    text = one(tokenizer, "common rare", passage, corpus=corpus)
    assert "rare" in text
    assert "common" not in text


def test_window_with_more_words_of_the_query_wins_over_one_word_often(tokenizer):
    passage = f"Opening. {'matrix ' * 30} {FILLER} sparse matrix solver {FILLER}"
    assert "sparse matrix solver" in one(tokenizer, "sparse matrix solver", passage)


@pytest.mark.parametrize("query", ["unrelated question", "!?", ""])
def test_passage_without_a_word_of_the_query_is_shown_from_its_beginning(tokenizer, query):
    passage = f"Opening words. {FILLER}"
    text = one(tokenizer, query, passage)
    assert passage.startswith(text)
    assert GAP not in text


@pytest.mark.parametrize("max_length", [8, 9, 12, 32, 96])
def test_pair_fits_and_the_window_survives_the_tokenizer(tokenizer, max_length):
    query = "sparse matrix"
    text = one(tokenizer, query, f"Opening. {FILLER} sparse matrix {FILLER}", max_length)
    assert len(tokenizer(query, text)["input_ids"]) <= max_length + 1
    if max_length >= 32:
        read = tokenizer(query, text, truncation=True, max_length=max_length)["input_ids"]
        assert tokenizer.decode(read).count(query) == 2


def test_query_that_fills_the_length_alone_leaves_half_of_the_room_to_the_passage(tokenizer):
    query, passage = "matrix " * 200, f"Opening. {FILLER}"
    text = one(tokenizer, query, passage, 35)
    encoded = tokenizer(query, text, truncation=True, max_length=35)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 16
    assert encoded.token_to_sequence(1) == 0
    assert sum(encoded.token_to_sequence(place) == 1 for place in range(35)) == 16


def test_same_passage_is_cut_apart_for_each_query(tokenizer):
    passage = f"Opening. {FILLER} sparse matrix {FILLER} random forest {FILLER}"
    first, second = excerpts(
        tokenizer, 32, statistics([passage, FILLER]), ["sparse matrix", "random forest"], [passage, passage]
    )
    assert "sparse matrix" in first
    assert "random forest" in second


def test_no_pairs_give_no_excerpts(tokenizer):
    assert excerpts(tokenizer, 32, statistics([]), [], []) == []


@given(
    query=st.text(max_size=40),
    passage=st.text(max_size=400),
    max_length=st.integers(min_value=8, max_value=64),
)
def test_any_text_gives_a_part_of_itself(tokenizer, query, passage, max_length):
    text = one(tokenizer, query, passage, max_length)
    assert all(part in passage for part in text.split(GAP)) or GAP in passage
