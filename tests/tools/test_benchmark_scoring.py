"""The benchmark counts NDCG@10 as the evaluator of Sentence Transformers does, so that only the scores can differ."""

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import CrossEncoder

from benchmarks.scoring import MODES, Pairs, as_evaluator_counts, by_evaluator, by_us, samples

WORDS = ["sort", "order", "list", "numbers", "read", "write", "csv", "file", "table", "find", "path", "red", "apples"]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """20 queries of 12 candidates with one to three right passages, of which the retriever found all, some or none."""
    draw = np.random.default_rng(1)
    rows = []
    for query in range(20):
        right = set(draw.choice(14, size=1 + query % 3, replace=False))
        for rank in range(14):
            retrieved = rank < 12
            if retrieved or rank in right:
                rows.append(
                    {
                        "query_id": f"q{query:02}",
                        "passage_id": f"p{query:02}-{rank:02}",
                        "retrieved": retrieved,
                        "right": rank in right,
                        "query": " ".join(draw.choice(WORDS, 3)),
                        "text": " ".join(draw.choice(WORDS, 8)),
                    }
                )
    table = pd.DataFrame(rows)
    table["query"] = table.groupby("query_id")["query"].transform("first")
    # two texts of one query are equal, once with the right one first and once with a wrong one first
    for query in ("q03", "q04"):
        places = table.index[table["query_id"] == query]
        table.loc[places[1], "text"] = table.loc[table.index[(table["query_id"] == query) & table["right"]][0], "text"]
    judgments = table.loc[table["right"], ["query_id", "passage_id"]].assign(relevance=1)
    return Pairs(table, judgments)


def test_both_sides_agree_where_both_count_as_the_evaluator(pairs: Pairs, cross_encoder: str):
    model = CrossEncoder(cross_encoder)
    theirs, ours = by_evaluator(model, samples(pairs)), by_us(model, pairs, "float32")
    for mode in MODES:
        assert ours.evaluators[mode] == pytest.approx(theirs.evaluators[mode], abs=1e-9)
        assert 0.1 < ours.evaluators[mode] < 0.99


def test_missed_right_passages_lower_our_figure_and_not_the_evaluators(pairs: Pairs):
    table = pairs.table[~pairs.table["query_id"].isin(["q03", "q04"])]
    perfect = table["right"].to_numpy(float)
    missed = table[table["right"]].groupby("query_id")["retrieved"].mean()
    found = float((missed > 0).mean())
    assert as_evaluator_counts(table, perfect, "retrieved") == pytest.approx(found)
    assert ((missed > 0) & (missed < 1)).any()


def test_equal_scores_share_the_mean_of_their_places(pairs: Pairs):
    table = pd.DataFrame(
        {"query_id": "q", "retrieved": True, "right": [True, False], "text": ["a", "b"], "passage_id": ["1", "2"]}
    )
    assert as_evaluator_counts(table, np.zeros(2), "retrieved") == pytest.approx((1 + 1 / np.log2(3)) / 2)
