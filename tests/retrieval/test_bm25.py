import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.common.errors import UserError
from reranker.retrieval.bm25 import Statistics, bm25, dump, load, statistics, words

CORPUS = ["read a csv file", "sort a list", "read, READ the_table!", ""]

texts = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "elk"]), max_size=8).map(" ".join)


def by_the_book(corpus: list[str], query: str, passage: str) -> float:
    """BM25 as Kamphuis et al. write it for Lucene, word by word and without stored statistics."""
    lengths = [len(text.split()) for text in corpus]
    mean = sum(lengths) / len(lengths) or 1
    total = 0.0
    for word in query.split():
        containing = sum(word in text.split() for text in corpus)
        idf = math.log((len(corpus) + 1) / (containing + 0.5))  # = log(1 + (N - n + 0.5) / (n + 0.5))
        times = passage.split().count(word)
        total += idf * times / (times + 1.2 * (0.25 + 0.75 * len(passage.split()) / mean))
    return total


def test_corpus_is_counted():
    counted = statistics(CORPUS)
    assert counted.passages == 4
    assert counted.mean_length == pytest.approx(11 / 4)
    assert counted.frequency == {"a": 2, "csv": 1, "file": 1, "list": 1, "read": 2, "sort": 1, "table": 1, "the": 1}


def test_scores_are_those_worked_out_by_hand():
    counted = Statistics(passages=3, mean_length=4.0, frequency={"csv": 1, "read": 2})
    # idf: csv log(1 + 2.5 / 1.5), read log(1 + 1.5 / 2.5); length part: 1.2 * (0.25 + 0.75 * 2 / 4) = 0.75, and 1.2
    scores = bm25(counted, ["csv", "read csv", "read"], ["read csv", "read csv", "read read a b"])
    expected = [0.9808293 / 1.75, (0.4700036 + 0.9808293) / 1.75, 0.4700036 * 2 / 3.2]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@given(st.lists(texts, min_size=1, max_size=6), st.lists(st.tuples(texts, texts), max_size=5))
def test_scores_are_those_of_the_formula(corpus, pairs):
    queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
    expected = [by_the_book(corpus, query, passage) for query, passage in pairs]
    np.testing.assert_allclose(bm25(statistics(corpus), queries, passages), expected, rtol=1e-12)


@given(st.lists(texts, max_size=6), texts, texts)
def test_score_is_above_zero_exactly_where_a_word_is_shared(corpus, query, passage):
    (score,) = bm25(statistics(corpus), [query], [passage])
    assert (score > 0) == bool(set(query.split()) & set(passage.split()))


def test_word_that_the_corpus_does_not_have_counts_as_the_rarest():
    counted = statistics(CORPUS)
    unknown, once, often = bm25(counted, ["zebra", "csv", "read"], ["zebra", "csv", "read"])
    assert unknown > once > often > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read_csv(path, sep=',')", ["read", "csv", "path", "sep"]),
        ("np.argsort: O(n·log n)", ["np", "argsort", "o", "n", "log", "n"]),
        ("Größe STRASSE", ["grösse", "strasse"]),
        ("x2 3.5", ["x2", "3", "5"]),
        ("__ -- \n", []),
    ],
)
def test_words_are_runs_of_letters_and_digits_in_one_case(text, expected):
    assert words(text) == expected


def test_empty_corpus_and_no_pairs_are_fine():
    assert statistics([]) == Statistics(0, 0.0, {})
    assert bm25(statistics([]), ["read"], ["read a file"]).item() > 0
    assert bm25(statistics(CORPUS), [], []).shape == (0,)


def test_pairs_of_different_number_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        bm25(statistics(CORPUS), ["read", "csv"], ["read"])


@given(corpus=st.lists(st.text(max_size=20), max_size=5))
def test_statistics_come_back_from_their_json(corpus, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "words.json"
    path.write_text(dump(statistics(corpus)), encoding="utf-8")
    assert load(path) == statistics(corpus)


def test_json_does_not_depend_on_the_order_of_the_corpus():
    assert dump(statistics(CORPUS)) == dump(statistics(CORPUS[::-1]))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"passages": 1}', '{"passages": 1, "mean_length": 1, "words": {}}']
)
def test_damaged_file_is_named_in_one_line_with_what_to_do(tmp_path: Path, content: str):
    path = tmp_path / "words.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"words\.json: not the word statistics .*run `dvc repro train`") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"words\.json: not the word statistics"):
        load(tmp_path / "words.json")
