import numpy as np
import pandas as pd
import pytest

from reranker.evaluation.systems import added_z_scores, reciprocal_rank_fusion

PAIRS = pd.DataFrame(
    {"query_id": ["q1", "q2", "q1", "q1", "q1"], "retrieved": [True, True, True, True, False]}
)  # the last one was missed by the retriever


def test_ranks_are_those_among_the_retrieved_candidates_of_the_query():
    one, two = np.array([3.0, 5.0, 2.0, 1.0, 2.5]), np.array([1.0, 0.0, 2.0, 2.0, 9.0])
    # q1: ranks 1, 2, 3 by the first system and 3, 1, 1 by the second; the added one would be second and first
    expected = [1 / 61 + 1 / 63, 2 / 61, 1 / 62 + 1 / 61, 1 / 63 + 1 / 61, 1 / 62 + 1 / 61]
    assert reciprocal_rank_fusion([one, two], PAIRS).tolist() == pytest.approx(expected)


def test_z_scores_are_added_by_weight_and_do_not_depend_on_a_scale():
    one, two = np.array([3.0, 5.0, 2.0, 1.0, 4.0]), np.array([0.0, 1.0, 0.0, 3.0, 6.0])
    spread_one, spread_two = np.sqrt(2 / 3), np.sqrt(2)
    z_one, z_two = np.array([1, 0, -1, 2]) / spread_one, np.array([-1, -1, 2, 5]) / spread_two
    expected = 2 * z_one - 0.5 * z_two
    found = added_z_scores({"one": one, "two": two, "other": two}, {"one": 2.0, "two": -0.5}, PAIRS)
    assert found[[0, 2, 3, 4]].tolist() == pytest.approx(expected.tolist())
    assert found[1] == 0.0  # a single candidate: nothing tells it from others
    scaled = added_z_scores({"one": 10 * one + 3, "two": two}, {"one": 2.0, "two": -0.5}, PAIRS)
    assert scaled.tolist() == pytest.approx(found.tolist())


def test_added_passage_moves_no_other_and_a_query_without_retrieved_ones_is_fine():
    one = np.array([3.0, 5.0, 2.0, 1.0, 4.0])
    further = np.array([3.0, 5.0, 2.0, 1.0, 400.0])
    for found in (lambda x: reciprocal_rank_fusion([x], PAIRS), lambda x: added_z_scores({"a": x}, {"a": 1.0}, PAIRS)):
        assert found(one)[:4].tolist() == found(further)[:4].tolist()
    none = PAIRS.assign(retrieved=False)
    assert added_z_scores({"a": one}, {"a": 1.0}, none).tolist() == [0.0] * 5
    assert reciprocal_rank_fusion([one], none).tolist() == pytest.approx([1 / 61] * 5)
