import numpy as np
import pandas as pd
import pytest

from reranker.evaluation.systems import reciprocal_rank_fusion, weighted_z_scores

PAIRS = pd.DataFrame(
    {"query_id": ["q1", "q2", "q1", "q1", "q1"], "retrieved": [True, True, True, True, False]}
)  # the retriever missed the last passage


def test_ranks_count_the_retrieved_candidates_of_the_query():
    one, two = np.array([3.0, 5.0, 2.0, 1.0, 2.5]), np.array([1.0, 0.0, 2.0, 2.0, 9.0])
    # q1: ranks 1, 2, 3 by the first system and 3, 1, 1 by the second; the missed passage would have ranks 2 and 1
    expected = [1 / 61 + 1 / 63, 2 / 61, 1 / 62 + 1 / 61, 1 / 63 + 1 / 61, 1 / 62 + 1 / 61]
    assert reciprocal_rank_fusion([one, two], PAIRS).tolist() == pytest.approx(expected)


def test_z_scores_are_added_by_weight_and_do_not_depend_on_a_scale():
    one, two = np.array([3.0, 5.0, 2.0, 1.0, 4.0]), np.array([0.0, 1.0, 0.0, 3.0, 6.0])
    spread_one, spread_two = np.sqrt(2 / 3), np.sqrt(2)
    z_one, z_two = np.array([1, 0, -1, 2]) / spread_one, np.array([-1, -1, 2, 5]) / spread_two
    expected = 2 * z_one - 0.5 * z_two
    scores = weighted_z_scores({"one": one, "two": two, "other": two}, {"one": 2.0, "two": -0.5}, PAIRS)
    assert scores[[0, 2, 3, 4]].tolist() == pytest.approx(expected.tolist())
    assert scores[1] == 0.0  # a single candidate has no deviation
    scaled = weighted_z_scores({"one": 10 * one + 3, "two": two}, {"one": 2.0, "two": -0.5}, PAIRS)
    assert scaled.tolist() == pytest.approx(scores.tolist())


def test_missed_passage_changes_no_other_score_and_a_query_without_retrieved_passages_is_fine():
    one = np.array([3.0, 5.0, 2.0, 1.0, 4.0])
    further = np.array([3.0, 5.0, 2.0, 1.0, 400.0])
    for combine in (
        lambda x: reciprocal_rank_fusion([x], PAIRS),
        lambda x: weighted_z_scores({"a": x}, {"a": 1.0}, PAIRS),
    ):
        assert combine(one)[:4].tolist() == combine(further)[:4].tolist()
    none = PAIRS.assign(retrieved=False)
    assert weighted_z_scores({"a": one}, {"a": 1.0}, none).tolist() == [0.0] * 5
    assert reciprocal_rank_fusion([one], none).tolist() == pytest.approx([1 / 61] * 5)
