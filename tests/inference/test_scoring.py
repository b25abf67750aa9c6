import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from reranker.common.errors import UserError
from reranker.inference import scoring
from reranker.inference.compute import Compute, choose_precision
from reranker.inference.loading import (
    check_lengths,
    choose_prompt,
    load_biencoder,
    load_cross_encoder,
    load_retriever,
    load_static,
)
from reranker.inference.scoring import batches, embed, pair_cosines, score_pairs
from reranker.mining.embedding_cache import Cache
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.trainer import seed_everything

TEXTS = [
    "sort",
    "find the shortest path in a graph",
    "",
    "red apples",
    "read a csv file " * 30,
    "red apples",
    "the table of numbers",
]


@pytest.fixture(scope="module")
def two_towers(biencoder: str) -> SentenceTransformer:
    return load_biencoder(biencoder, 32)


@pytest.fixture(scope="module")
def cross_encoder(encoder: str) -> CrossEncoder:
    seed_everything(1)
    return build_cross_encoder(encoder, 32)


def test_precision_is_taken_as_it_is():
    assert choose_precision("float32") == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU decides, not the CPU")
@pytest.mark.parametrize(
    ("avx", "amx", "expected"), [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")]
)
def test_auto_takes_bfloat16_where_the_cpu_has_it(monkeypatch, avx, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may lack bfloat16")
def test_bfloat16_may_be_asked_for_on_any_cpu():
    assert choose_precision("bfloat16") == "bfloat16"


def test_vectors_have_length_1_and_the_order_of_the_texts(two_towers):
    vectors = embed(two_towers, TEXTS, label="")
    assert vectors.shape == (7, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(embed(two_towers, [text], label="")[0], vector, atol=1e-5)


def test_order_is_kept_over_several_chunks(two_towers, monkeypatch):
    whole = embed(two_towers, TEXTS, label="")
    monkeypatch.setattr(scoring, "BATCH", 2)
    np.testing.assert_allclose(embed(two_towers, TEXTS, label=""), whole, atol=1e-5)
    assert not np.allclose(whole[0], whole[1], atol=0.1)


def test_longest_texts_come_first_as_the_model_cuts_them(two_towers, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 2)
    texts = ["sort", "read a csv file " * 2, "red apples", "read a csv file " * 30]
    assert [places.tolist() for places, _ in batches(two_towers, texts, label="")] == [[3, 1], [2, 0]]
    prompt = "find the path " * 20  # fills the 32 tokens, so that all are equal
    assert [places.tolist() for places, _ in batches(two_towers, texts, label="", prompt=prompt)] == [[0, 1], [2, 3]]


def test_static_vectors_are_the_same_to_the_bit_in_passes_of_any_size(monkeypatch):
    retriever = load_retriever("bundled/static-256")
    texts = [*TEXTS, *(f"{text} {number}" for text in TEXTS for number in range(40))]
    vectors = embed(retriever, texts, label="")
    for size in (1, 32, 100):
        monkeypatch.setattr(scoring, "STATIC_BATCH", size)
        np.testing.assert_array_equal(embed(retriever, texts, label=""), vectors)


def test_prompt_is_put_before_each_text(two_towers):
    prompted = embed(two_towers, TEXTS, label="", prompt="find red ")
    np.testing.assert_allclose(prompted, embed(two_towers, ["find red " + text for text in TEXTS], label=""), atol=1e-5)


def test_cosine_of_a_pair_is_the_product_of_its_vectors(two_towers):
    left, right = embed(two_towers, TEXTS, label=""), embed(two_towers, TEXTS[::-1], label="")
    cosines = pair_cosines(two_towers, TEXTS, TEXTS[::-1], label="")
    np.testing.assert_allclose(cosines, (left * right).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(pair_cosines(two_towers, TEXTS, TEXTS, label=""), 1, rtol=1e-5)
    assert cosines.dtype == np.float64


@pytest.mark.parametrize(("of_query", "of_passage"), [("find ", ""), ("find ", "the "), ("the ", "the ")])
def test_cosine_is_of_the_texts_with_their_prompts(two_towers, of_query, of_passage):
    actual = pair_cosines(two_towers, TEXTS, TEXTS[::-1], label="", query_prompt=of_query, passage_prompt=of_passage)
    queries = embed(two_towers, TEXTS, label="", prompt=of_query)
    passages = embed(two_towers, TEXTS[::-1], label="", prompt=of_passage)
    np.testing.assert_allclose(actual, (queries * passages).sum(axis=1), atol=1e-6)


def test_prompt_is_what_was_asked_for_or_the_first_that_the_model_brings(two_towers, monkeypatch):
    monkeypatch.setattr(two_towers, "prompts", {"query": "find ", "document": "", "passage": "the "})
    assert choose_prompt("ask ", two_towers, "query") == "ask "
    assert choose_prompt("", two_towers, "query") == ""
    assert choose_prompt(None, two_towers, "query") == "find "
    assert choose_prompt(None, two_towers, "document", "passage") == "the "
    assert choose_prompt(None, two_towers, "other") == ""


def test_cosines_are_the_same_in_parts_and_from_a_cache(two_towers, tmp_path, monkeypatch):
    pairs = TEXTS, TEXTS[::-1]
    cosines = pair_cosines(two_towers, *pairs, label="")
    monkeypatch.setattr(scoring, "PAIRS", 3)
    np.testing.assert_array_equal(pair_cosines(two_towers, *pairs, label=""), cosines)
    for _ in range(2):
        np.testing.assert_array_equal(pair_cosines(two_towers, *pairs, label="", cache=Cache(tmp_path)), cosines)
    assert len(list(tmp_path.glob("*/*.npy"))) == 1


def test_scores_of_pairs_are_those_of_each_pair_on_its_own(cross_encoder, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 3)
    scores = score_pairs(cross_encoder, TEXTS, TEXTS[::-1], label="")
    alone = [
        cross_encoder.predict((left, right), show_progress_bar=False)
        for left, right in zip(TEXTS, TEXTS[::-1], strict=True)
    ]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert scores.dtype == np.float64
    assert scores.std() > 0.1


def test_pairs_of_different_number_are_an_error(cross_encoder):
    with pytest.raises(ValueError, match="zip"):
        score_pairs(cross_encoder, TEXTS, TEXTS[1:], label="")


@pytest.mark.parametrize("query", ["sort a list " * 40, "sort " * 29])
def test_query_that_is_too_long_leaves_room_for_the_passage(cross_encoder, query):
    scores = score_pairs(cross_encoder, [query] * 3, ["red apples", "read a csv file", "the path " * 60], label="")
    assert np.isfinite(scores).all()
    assert len(set(scores.round(4))) == 3


def test_passage_is_cut_and_not_the_query(cross_encoder):
    passage = "find the shortest path in a graph " * 20
    scores = score_pairs(cross_encoder, ["sort a list", "read a file"], [passage] * 2, label="")
    assert abs(scores[0] - scores[1]) > 1e-3
    longer = score_pairs(cross_encoder, ["sort a list"], [passage + "red apples"], label="")
    np.testing.assert_allclose(longer, scores[:1], atol=1e-5)


def test_no_texts_and_no_pairs_give_no_scores(two_towers, cross_encoder):
    assert len(embed(two_towers, [], label="")) == 0
    assert pair_cosines(two_towers, [], [], label="").shape == (0,)
    assert score_pairs(cross_encoder, [], [], label="").shape == (0,)


def test_bfloat16_scores_are_near_those_of_float32(two_towers, cross_encoder):
    for score, model in ((pair_cosines, two_towers), (score_pairs, cross_encoder)):
        exact = score(model, TEXTS, TEXTS[::-1], label="")
        rough = score(model, TEXTS, TEXTS[::-1], label="", compute=Compute("bfloat16"))
        np.testing.assert_allclose(rough, exact, atol=0.1)
        assert np.isfinite(rough).all()


def test_biencoder_reads_as_many_tokens_as_it_is_told(biencoder):
    short, long = (load_biencoder(biencoder, tokens) for tokens in (8, 32))
    texts = ["sort a list of numbers in order", "sort a list of numbers in order from a file"]
    vectors = embed(short, texts, label="")
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    vectors = embed(long, texts, label="")
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_length_is_checked_against_the_positions_of_the_model(two_towers):
    check_lengths(two_towers[0], max_length=64)
    with pytest.raises(UserError, match=r"params\.yaml: biencoder.max_length: 65 is more than the 64 tokens"):
        check_lengths(two_towers[0], **{"max_length": 64, "biencoder.max_length": 65})
    check_lengths(load_retriever("bundled/static-256")[0], max_length=8192)


@pytest.mark.parametrize("load", [load_retriever, load_static, lambda name: load_biencoder(name, 32)])
def test_folder_without_a_model_is_named_in_one_line(load, tmp_path):
    with pytest.raises(UserError, match=f"model '{tmp_path}' could not be loaded") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "load", [lambda name: load_biencoder(name, 16), load_retriever, lambda name: build_cross_encoder(name, 16)],
    ids=["bi-encoder", "retriever", "cross-encoder"],
)  # fmt: skip
def test_folder_without_its_words_is_refused(load, biencoder, tmp_path):
    shutil.copytree(biencoder, tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"mute' could not be loaded \(its tokenizer has no words: .*\); name a folder"):
        load(str(tmp_path / "mute"))


@pytest.mark.parametrize("kind", ["encoder", "bi-encoder", "classifier without its weights", "without modules"])
def test_model_without_a_trained_head_gives_no_scores(kind: str, encoder: str, biencoder: str, tmp_path: Path):
    name = biencoder if kind == "bi-encoder" else encoder
    if kind == "classifier without its weights":
        name = str(shutil.copytree(encoder, tmp_path / "headless"))
        config = json.loads((tmp_path / "headless" / "config.json").read_text())
        config["architectures"] = ["BertForSequenceClassification"]
        (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    elif kind == "without modules":  # the body of a cross-encoder, whose head is in another folder
        build_cross_encoder(encoder, 32).save_pretrained(str(tmp_path / "bare"), create_model_card=False)
        (tmp_path / "bare" / "modules.json").unlink()
        name = str(tmp_path / "bare")
    with pytest.raises(UserError) as caught:
        load_cross_encoder(name, "params.yaml: teacher:")
    assert str(caught.value) == (
        f"params.yaml: teacher: '{name}' has no trained ranking head (it is an encoder or a bi-encoder), so its scores "
        "would be random; name a reranker, or fine-tune it as base_model"
    )


def test_model_with_a_trained_head_gives_scores(encoder: str, cross_encoder: CrossEncoder, tmp_path: Path):
    classifier = CrossEncoder(encoder, num_labels=1, max_length=32)
    classifier[0].model.classifier.weight.data.normal_()
    classifier[0].model.save_pretrained(tmp_path / "classifier")
    classifier.tokenizer.save_pretrained(tmp_path / "classifier")
    cross_encoder.save_pretrained(str(tmp_path / "modules"), create_model_card=False)
    for name, model in (("classifier", classifier), ("modules", cross_encoder)):
        loaded = load_cross_encoder(str(tmp_path / name))
        expected = score_pairs(model, TEXTS, TEXTS[::-1], label="")
        np.testing.assert_allclose(score_pairs(loaded, TEXTS, TEXTS[::-1], label=""), expected, atol=1e-5)


def test_causal_language_model_gives_scores_by_its_own_words(encoder: str, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(tmp_path)
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    Qwen3ForCausalLM(shape).save_pretrained(tmp_path)
    assert isinstance(load_cross_encoder(str(tmp_path))[-1], LogitScore)


def test_bundled_static_retriever_puts_the_same_topic_near():
    retriever = load_retriever("bundled/static-256")
    texts = ["sort a list of numbers", "order numbers in a list", "neural network layer"]
    vectors = embed(retriever, texts, label="")
    assert vectors.shape == (3, 256)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_local_folder_may_be_the_retriever(biencoder, two_towers):
    np.testing.assert_allclose(
        embed(load_retriever(biencoder), TEXTS, label=""), embed(two_towers, TEXTS, label=""), atol=1e-5
    )


def model2vec(folder: Path, **tensors: np.ndarray) -> str:
    words = Tokenizer(WordLevel({"[UNK]": 0, "sort": 1, "list": 2}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 2, "normalize": True}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


MODULES = [
    {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.mark.parametrize("modules", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_model2vec_folder_is_a_static_embedding(kind, modules, tmp_path):
    name = model2vec(tmp_path, embeddings=np.array([[0, 0], [1, 2], [5, -4]], kind))
    if modules:
        (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    vectors = embed(load_static(name), ["sort list", "red", "", "sort"], label="")
    np.testing.assert_allclose(vectors, [[0.9487, -0.3162], [0, 0], [0, 0], [0.4472, 0.8944]], atol=1e-4)


def test_model2vec_folder_may_have_rows_for_several_tokens_and_weights_of_tokens(tmp_path):
    name = model2vec(
        tmp_path,
        embeddings=np.array([[1, 2], [5, -4]], np.float32),
        mapping=np.array([0, 1, 0]),
        weights=np.array([0, 1, 3], np.float32),
    )
    vectors = embed(load_static(name), ["sort list", "red"], label="")
    np.testing.assert_allclose(vectors, [[0.9701, 0.2425], [0, 0]], atol=1e-4)  # (5, -4) + 3 (1, 2) = (8, 2)


def test_model2vec_folder_with_half_a_tokenizer_is_named_in_one_line(tmp_path):
    name = model2vec(tmp_path, embeddings=np.ones((3, 2), np.float32))
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text()[:50])
    with pytest.raises(UserError, match=r"could not be loaded \(tokenizer\.json: .*; name a folder"):
        load_retriever(name)
