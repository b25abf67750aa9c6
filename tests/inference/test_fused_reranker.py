import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker.common.errors import UserError
from reranker.inference.compute import Compute
from reranker.inference.loading import load_static
from reranker.inference.reranker import RankedPassage, Reranker
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.trainer import seed_everything

pytestmark = pytest.mark.slow

WEIGHTS = {"bm25": 0.5, "cross_encoder": 2.0, "static_score": 4.0, "biencoder_score": 3.0}
PASSAGES = ["green apples", "order numbers in a list", "sort the table", "order numbers in a list", "write csv"]


@pytest.fixture(scope="module")
def folder(encoder: str, biencoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the train stage writes, of tiny models."""
    path = tmp_path_factory.mktemp("reranker")
    seed_everything(1)
    build_cross_encoder(encoder, 32).save_pretrained(str(path), create_model_card=False)
    shutil.copytree(biencoder, path / "biencoder")
    load_static("bundled/static-256").save_pretrained(str(path / "static"), create_model_card=False)
    (path / "words.json").write_text(bm25.dump(bm25.statistics(PASSAGES)), encoding="utf-8")
    weights = {"reranker": WEIGHTS, "fusion_without_cross_encoder": {"bm25": 9.0}}
    (path / "fusion.json").write_text(json.dumps(weights), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker(folder, Compute(backend="auto"))


def test_score_is_the_weighted_sum_of_the_parts(reranker, folder):
    queries = ["sort a list", "write a file", "sort a list", "the path", "red"]
    parts = {
        "bm25": bm25.bm25(bm25.statistics(PASSAGES), queries, PASSAGES),
        "static_score": pair_cosines(load_static("bundled/static-256"), queries, PASSAGES, label=""),
        "biencoder_score": pair_cosines(SentenceTransformer(str(folder / "biencoder")), queries, PASSAGES, label=""),
        "cross_encoder": score_pairs(CrossEncoder(str(folder)), queries, PASSAGES, label=""),
    }
    expected = sum(WEIGHTS[name] * part for name, part in parts.items())
    assert parts.keys() == WEIGHTS.keys()
    np.testing.assert_allclose(reranker.scores(queries, PASSAGES), expected, atol=1e-5)
    assert all(part.std() > 0.01 for part in parts.values())


def test_attention_reaches_both_transformers(folder, reranker):
    eager = Reranker(folder, Compute(attention="eager"))
    for model, other in zip(eager.models[:2], reranker.models, strict=False):
        assert model[0].model.config._attn_implementation == "eager"
        assert other[0].model.config._attn_implementation == "sdpa"


def test_ranking_has_every_passage_best_first_and_equal_ones_in_the_order_given(reranker):
    ranked = reranker.rank("sort a list", PASSAGES)
    assert sorted(item.position for item in ranked) == [0, 1, 2, 3, 4]
    assert [item.passage for item in ranked] == [PASSAGES[item.position] for item in ranked]
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)
    twins = [item.position for item in ranked if item.passage == PASSAGES[1]]
    assert twins == [1, 3]


def test_score_of_a_passage_does_not_depend_on_the_others(reranker):
    together = {item.passage: item.score for item in reranker.rank("sort a list", PASSAGES)}
    (alone,) = reranker.rank("sort a list", ["sort the table"])
    assert alone == RankedPassage(0, pytest.approx(together["sort the table"], abs=1e-5), "sort the table")


def test_no_passages_give_an_empty_ranking(reranker):
    assert reranker.rank("sort a list", []) == []
    assert reranker.scores([], []).shape == (0,)


def test_empty_texts_are_scored(reranker):
    assert np.isfinite([item.score for item in reranker.rank("", ["", "sort the table"])]).all()


def test_lists_of_different_length_are_an_error(reranker):
    with pytest.raises(ValueError, match="zip"):
        reranker.scores(["sort a list"], PASSAGES)


@pytest.mark.parametrize("gone", ["fusion.json", "words.json"])
def test_folder_without_one_of_its_files_is_named_in_one_line(folder, gone, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / gone).unlink()
    with pytest.raises(UserError, match=f"{gone}.*run .*train`") as caught:
        Reranker(copy)
    assert "\n" not in str(caught.value)


def test_other_json_than_fusion_weights_is_refused(folder, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "fusion.json").write_text('{"bm25": 1.0}', encoding="utf-8")
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights; run `dvc repro train`"):
        Reranker(copy)


def test_weights_without_those_of_the_reranker_are_refused(folder, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (copy / "fusion.json").write_text('{"other": {"bm25": 1.0}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"fusion\.json"):
        Reranker(copy)


@pytest.mark.parametrize("part", [".", "biencoder", "static"])
def test_weights_that_are_cut_off_are_an_error_of_one_line(folder, tmp_path, part):
    broken = shutil.copytree(folder, tmp_path / "broken")
    for weights in (broken / part).glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken.* could not be loaded") as caught:
        Reranker(broken)
    assert "\n" not in str(caught.value)
