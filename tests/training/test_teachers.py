from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import CrossEncoder
from torch import nn

from reranker.common.artifacts import read_scores
from reranker.common.errors import UserError
from reranker.inference.compute import PLAIN, Compute
from reranker.inference.fusion import fit_weights
from reranker.inference.scoring import score_pairs
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.examples import from_cross_encoder, from_signals, is_file

DEV = pd.DataFrame(
    {
        "query_id": ["q1"] * 3 + ["q2"] * 3,
        "passage_id": ["p1", "p2", "p3"] * 2,
        "bm25": [3.0, 1.0, 2.0, 1.0, 2.0, 0.0],
        "static_score": [0.5, 0.4, 0.1, 0.2, 0.6, 0.1],
        "biencoder_score": [0.9, 0.2, 0.3, 0.1, 0.8, 0.7],
    }
)
JUDGMENTS = pd.DataFrame({"query_id": ["q1", "q2"], "passage_id": ["p1", "p2"], "relevance": [1, 1]})


@pytest.mark.parametrize(
    ("teacher", "column"), [("biencoder", "biencoder_score"), ("static", "static_score"), ("bm25", "bm25")]
)
def test_one_signal_is_weighed_by_dev(teacher, column):
    weight = fit_weights(DEV, JUDGMENTS, [column])[column]
    assert weight > 0
    np.testing.assert_allclose(from_signals(teacher, DEV, DEV, JUDGMENTS), weight * DEV[column])


def test_fused_teacher_is_the_weighted_sum_of_all_signals():
    weights = fit_weights(DEV, JUDGMENTS, ["bm25", "static_score", "biencoder_score"])
    fused = from_signals("fused", DEV, DEV, JUDGMENTS)
    np.testing.assert_allclose(fused, DEV[list(weights)].to_numpy() @ np.array(list(weights.values())))


def test_cross_encoder_teaches_by_its_logits_whatever_its_activation(cross_encoder: str, tmp_path: Path):
    model = CrossEncoder(cross_encoder)
    model.activation_fn = nn.Sigmoid()
    model.save_pretrained(str(tmp_path), create_model_card=False)
    pairs = ["sort a list", "find the path"], ["order numbers", "red apples"]
    logits = score_pairs(CrossEncoder(cross_encoder), *pairs, label="")
    np.testing.assert_allclose(from_cross_encoder(str(tmp_path), *pairs, PLAIN), logits, atol=1e-6)


def test_cross_encoder_teaches_by_openvino_in_float32_alone(cross_encoder: str):
    pairs = (
        ["sort a list", "find the path", ""] * 9,
        ["order numbers", "red apples", "read", "a csv file", ""] * 5 + ["a"] * 2,
    )
    plain = from_cross_encoder(cross_encoder, *pairs, PLAIN)
    for backend in ("auto", "openvino"):
        actual = from_cross_encoder(cross_encoder, *pairs, Compute(backend=backend))
        np.testing.assert_allclose(actual, plain, atol=1e-5)
        assert not np.array_equal(actual, plain)
    rounded = from_cross_encoder(cross_encoder, *pairs, Compute("bfloat16"))
    actual = from_cross_encoder(cross_encoder, *pairs, Compute("bfloat16", backend="auto"))
    np.testing.assert_array_equal(actual, rounded)
    actual = from_cross_encoder(cross_encoder, *pairs, Compute(backend="openvino-int8"))
    np.testing.assert_array_equal(actual, plain)


def test_cross_encoder_of_several_outputs_or_of_no_such_name_is_no_teacher(encoder: str, tmp_path: Path):
    build_cross_encoder(encoder, 32, outputs=3).save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(UserError, match="has 3 outputs; it must have one"):
        from_cross_encoder(str(tmp_path), ["a"], ["b"], PLAIN)
    with pytest.raises(UserError, match="'no/such-model' is neither bundled"):
        from_cross_encoder("no/such-model", ["a"], ["b"], PLAIN)


SCORES = pd.DataFrame({"query_id": ["01", "q2", "q2"], "passage_id": ["p1", "p2", "p9"], "score": [0.5, -2.0, 7.0]})
PAIRS = pd.DataFrame({"query_id": ["q2", "01"], "passage_id": ["p2", "p1"]}, index=[7, 3])


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("data/teachers")
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_scores_of_a_file_are_found_by_the_ids_of_the_pairs(raw: Path, kind):
    path = raw / f"scores.{kind}"
    SCORES.to_parquet(path) if kind == "parquet" else SCORES.to_csv(path, index=False)
    actual = read_scores(path, PAIRS)
    assert actual.to_dict() == {7: -2.0, 3: 0.5}
    assert is_file(str(path))
    assert not is_file("cross-encoder/ms-marco-MiniLM-L6-v2")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (SCORES.head(1), "no score for query 'q2' and passage 'p2'; add the row"),
        (pd.concat([SCORES, SCORES.tail(1)]), "query 'q2' and passage 'p9' appear twice; keep one row"),
        (SCORES.assign(score=["1", "high", "2"]), "row 2: the score 'high' is not a finite number"),
        (SCORES.assign(score=["1", "2", "inf"]), "row 3: the score 'inf' is not a finite number"),
        (SCORES.drop(columns="score"), "not a table with the columns query_id, passage_id, score ("),
    ],
)
def test_file_of_scores_that_does_not_serve_is_named_with_the_row(raw: Path, table, message):
    table.to_csv(raw / "scores.csv", index=False)
    with pytest.raises(UserError) as caught:
        read_scores(raw / "scores.csv", PAIRS)
    assert str(caught.value).startswith(f"data/teachers/scores.csv: {message}")
    assert "\n" not in str(caught.value)


def test_file_of_scores_that_is_not_there_or_elsewhere_is_named(raw: Path):
    with pytest.raises(UserError, match=r"data/teachers/no\.csv does not exist; name a file with the columns query_id"):
        read_scores(raw / "no.csv", PAIRS)
    SCORES.to_csv("scores.csv", index=False)
    with pytest.raises(UserError, match=r"scores\.csv: is not in data/teachers/; move it there, where DVC sees"):
        read_scores(Path("scores.csv"), PAIRS)
    (raw / "damaged.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"damaged\.parquet: not a table with the columns"):
        read_scores(raw / "damaged.parquet", PAIRS)
