import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, check_grad

from reranker.inference import fusion
from reranker.inference.fusion import cross_validated, fit_weights, fuse


def planted(weights: dict[str, float], queries: int = 3000, size: int = 8, seed: int = 7) -> tuple[pd.DataFrame, ...]:
    """Candidates whose relevant passage is drawn from the model that is fitted, and their judgments."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "query_id": np.repeat([f"q{number:05}" for number in range(queries)], size),
            "passage_id": np.tile([f"p{number}" for number in range(size)], queries),
            **{feature: generator.normal(size=queries * size) for feature in weights},
        }
    )
    utility = (fuse(table, weights) + generator.gumbel(size=len(table))).reshape(queries, size)
    relevant = table.iloc[np.arange(queries) * size + utility.argmax(axis=1)]
    return table, relevant[["query_id", "passage_id"]].assign(relevance=1)


def test_planted_weights_are_found_whatever_the_order_of_the_rows():
    table, judgments = planted({"bm25": 0.5, "cosine": 1.5, "cross": 1.0}, queries=30_000)
    result = fit_weights(table, judgments, ["bm25", "cosine", "cross"])
    # the penalty takes 7% of each, hence the comparison of their ratios too, which decide the ranking
    assert result == pytest.approx({"bm25": 0.5, "cosine": 1.5, "cross": 1.0}, rel=0.1)
    assert result["cosine"] / result["cross"] == pytest.approx(1.5, rel=0.04)
    assert result["cross"] / result["bm25"] == pytest.approx(2.0, rel=0.04)
    shuffled = fit_weights(table.sample(frac=1, random_state=1), judgments[::-1], ["bm25", "cosine", "cross"])
    assert shuffled == pytest.approx(result, rel=1e-9)


def test_feature_that_says_nothing_gets_almost_no_weight_and_one_that_misleads_gets_none():
    table, judgments = planted({"good": 1.5, "noise": 0.0, "wrong": -1.0})
    result = fit_weights(table, judgments, ["good", "noise", "wrong"])
    assert result["noise"] < 0.05
    assert result["wrong"] == 0.0
    assert result["good"] > 1.0


def test_unit_of_a_feature_changes_its_weight_and_not_the_ranking():
    table, judgments = planted({"bm25": 0.5, "cosine": 1.5}, queries=300)
    scaled = table.assign(bm25=table["bm25"] * 1000)
    first, second = (fit_weights(rows, judgments, ["bm25", "cosine"]) for rows in (table, scaled))
    assert second == pytest.approx({"bm25": first["bm25"] / 1000, "cosine": first["cosine"]}, rel=1e-9)
    np.testing.assert_array_equal(np.argsort(fuse(table, first)), np.argsort(fuse(scaled, second)))


def test_query_without_a_relevant_candidate_changes_nothing():
    table, judgments = planted({"bm25": 0.5, "cosine": 1.5}, queries=50)
    result = fit_weights(table, judgments, ["bm25", "cosine"])
    more = pd.concat([table, table.head(8).assign(query_id="q1x", bm25=99.0)])
    unseen = pd.DataFrame({"query_id": ["q1x", "q1x"], "passage_id": ["gone", "p3"], "relevance": [1, 0]})
    assert fit_weights(more, pd.concat([judgments, unseen]), ["bm25", "cosine"]) == result


def test_cross_validated_score_of_a_query_does_not_depend_on_its_own_judgments():
    table, judgments = planted({"bm25": 0.5, "cosine": 1.5}, queries=50)
    scores = cross_validated(table, judgments, ["bm25", "cosine"])
    first = (table["query_id"] == "q00000").to_numpy()
    other = judgments.assign(passage_id=judgments["passage_id"].mask(judgments["query_id"] == "q00000", "p7"))
    assert (other["passage_id"] != judgments["passage_id"]).any()
    changed = cross_validated(table, other, ["bm25", "cosine"])
    np.testing.assert_array_equal(changed[first], scores[first])
    assert not np.allclose(changed[~first], scores[~first], rtol=1e-9, atol=0)


def test_cross_validation_of_a_single_query_falls_back_on_its_own_weights():
    table, judgments = planted({"bm25": 0.5, "cosine": 1.5}, queries=1)
    expected = fuse(table, fit_weights(table, judgments, ["bm25", "cosine"]))
    np.testing.assert_array_equal(cross_validated(table, judgments, ["bm25", "cosine"]), expected)


def test_no_relevant_candidate_at_all_is_an_error():
    table, judgments = planted({"bm25": 1.0}, queries=5)
    with pytest.raises(ValueError, match="no query has a relevant candidate"):
        fit_weights(table, judgments.assign(relevance=0), ["bm25"])
    with pytest.raises(ValueError, match="no query has a relevant candidate"):
        fit_weights(table.head(0), judgments, ["bm25"])


def test_constant_feature_keeps_the_fit_finite():
    table, judgments = planted({"cosine": 1.5}, queries=50)
    alone = fit_weights(table, judgments, ["cosine"])
    result = fit_weights(table.assign(same=3.0), judgments, ["cosine", "same"])
    assert result["cosine"] == pytest.approx(alone["cosine"], rel=1e-3)
    assert np.isfinite(result["same"])


def test_several_relevant_candidates_share_the_target():
    table = pd.DataFrame({"query_id": "q", "passage_id": list("abc"), "one": [1.0, 0.0, 0.0], "two": [0.0, 1.0, 0.0]})
    judgments = pd.DataFrame({"query_id": "q", "passage_id": ["a", "b"], "relevance": [2, 1]})
    result = fit_weights(table, judgments, ["one", "two"])
    assert result["one"] == pytest.approx(result["two"], rel=1e-4)
    assert result["one"] > 0


@pytest.fixture
def problem() -> tuple[np.ndarray, ...]:
    """Values, target, starts and sizes of three queries with 2, 4 and 1 candidates."""
    values = np.random.default_rng(3).normal(size=(7, 3))
    return values, np.array([1, 0, 0.5, 0, 0.5, 0, 1]), np.array([0, 2, 6]), np.array([2, 4, 1])


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [30.0, -20.0, 5.0]])
def test_gradient_is_that_of_the_loss(problem, weights):
    loss, gradient = (lambda w, at=at: fusion._loss(w, *problem)[at] for at in (0, 1))
    size = np.abs(approx_fprime(np.array(weights), loss)).max()
    assert check_grad(loss, gradient, np.array(weights)) < 1e-5 * max(size, 1)


def test_loss_is_the_mean_cross_entropy_of_the_queries_and_the_penalty(problem):
    values, target, _, _ = problem
    weights = np.array([1.0, 2.0, 0.5])
    chance = [np.exp(part) / np.exp(part).sum() for part in np.split(values @ weights, [2, 6])]
    expected = -(target @ np.log(np.concatenate(chance))) / 3 + fusion.PENALTY * 5.25
    assert fusion._loss(weights, *problem)[0] == pytest.approx(expected, rel=1e-12)


def test_huge_scores_do_not_overflow(problem):
    value, gradient = fusion._loss(np.array([1e6, 1e6, 1e6]), *problem)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_fused_score_is_the_weighted_sum_of_the_features_that_have_a_weight():
    scores = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, 0.0]), "text": np.array(["x", "y"])}
    np.testing.assert_allclose(fuse(scores, {"b": 0.5, "a": 2.0}), [7.0, 4.0])
    np.testing.assert_allclose(fuse(pd.DataFrame(scores, index=[5, 3]), {"a": 3.0}), [3.0, 6.0])


def test_weight_without_its_feature_is_an_error():
    with pytest.raises(KeyError, match="b"):
        fuse({"a": np.array([1.0])}, {"a": 1.0, "b": 1.0})
