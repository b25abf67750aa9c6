from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from reranker.common.errors import UserError
from reranker.inference.scoring import embed
from tools.negatives import FORMATS, format_rows, with_texts

QUERIES = pd.DataFrame({"query_id": ["q1", "q2"], "text": ["sort a list", "read a csv file"]})
PASSAGES = pd.DataFrame(
    {
        "passage_id": ["p1", "p2", "p3", "p4"],
        "text": ["order numbers", "table of a csv file", "write a file", "red apples"],
    }
)


@pytest.fixture(scope="module")
def model(biencoder: str) -> SentenceTransformer:
    return SentenceTransformer(biencoder)


@pytest.fixture(scope="module")
def rows(model: SentenceTransformer) -> pd.DataFrame:
    """The relevant passage of each query, and the two other passages with the highest scores."""
    queries, passages = (embed(model, table["text"].tolist(), label="") for table in (QUERIES, PASSAGES))
    scores = queries @ passages.T
    table = []
    for query, right in enumerate((0, 1)):
        others = [place for place in np.argsort(-scores[query]) if place != right][:2]
        table += [(query, place, scores[query, place], float(place == right)) for place in (right, *others)]
    table = pd.DataFrame(table, columns=["query_id", "passage_id", "score", "relevance"])
    names = {"query_id": QUERIES["query_id"], "passage_id": PASSAGES["passage_id"]}
    return table.assign(**{column: ids[table[column]].to_numpy() for column, ids in names.items()})


def comparable(table: pd.DataFrame) -> list[tuple[object, ...]]:
    """The rows in an order of their own, with lists and rounded scores."""

    def plain(value: object) -> object:
        if isinstance(value, (list, np.ndarray)):
            return tuple(plain(item) for item in value)
        return round(float(value), 4) if isinstance(value, (float, np.floating)) else value

    return sorted(tuple(plain(value) for value in row) for row in table.itertuples(index=False))


@pytest.mark.parametrize("output_scores", [False, True])
@pytest.mark.parametrize("output_format", FORMATS)
def test_rows_are_those_of_mine_hard_negatives(
    model: SentenceTransformer, rows: pd.DataFrame, output_format: str, output_scores: bool
):
    pairs = Dataset.from_dict({"anchor": QUERIES["text"].tolist(), "positive": PASSAGES["text"].tolist()[:2]})
    mined = mine_hard_negatives(
        pairs, model, corpus=PASSAGES["text"].tolist(), num_negatives=2, range_max=3, output_format=output_format,
        output_scores=output_scores, verbose=False,
    )  # fmt: skip
    expected = mined.to_pandas()
    table = format_rows(with_texts(rows, QUERIES, PASSAGES), output_format, output_scores=output_scores)
    assert comparable(table) == comparable(expected)
    assert len(table) > 0


def test_positives_stand_where_their_score_puts_them(rows: pd.DataFrame):
    lists = format_rows(with_texts(rows, QUERIES, PASSAGES), "labeled-list", output_scores=True, include_positives=True)
    for scores in lists["scores"]:
        assert scores == sorted(scores, reverse=True)
    labels = format_rows(with_texts(rows, QUERIES, PASSAGES), "labeled-list", include_positives=True)["labels"]
    assert sorted(map(sum, labels)) == [1, 1]


def test_format_without_a_place_for_positives_and_tuples_of_other_lengths_are_errors(rows: pd.DataFrame):
    texts = with_texts(rows, QUERIES, PASSAGES)
    with pytest.raises(UserError, match="--include-positives: triplet cannot contain a ranking"):
        format_rows(texts, "triplet", include_positives=True)
    with pytest.raises(UserError, match="from 1 to 2 negatives"):
        format_rows(texts[:-1], "n-tuple")


def test_written_file_is_read_by_datasets(rows: pd.DataFrame, tmp_path: Path):
    path = tmp_path / "negatives.parquet"
    format_rows(with_texts(rows, QUERIES, PASSAGES), "labeled-list").to_parquet(path, index=False)
    assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).column_names == ["anchor", "documents", "labels"]
