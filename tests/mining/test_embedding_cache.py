import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from reranker.common.errors import UserError
from reranker.inference import scoring
from reranker.inference.backends import use_backend
from reranker.inference.loading import load_biencoder, load_retriever
from reranker.inference.scoring import embed
from reranker.mining import embedding_cache
from reranker.mining.embedding_cache import Cache, model_key

WORDS = ["sort", "order", "list", "numbers", "read", "csv", "file", "table", "find", "path", "graph", "red", "apples"]
TEXTS = ["sort a list", "", "red apples", "read a csv file " * 9, "red apples", "the table of numbers", "graph"]
DISTINCT = 6


def static(seed: int, dimensions: int = 8, words: list[str] = WORDS) -> SentenceTransformer:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, **{word: place for place, word in enumerate(words, 1)}}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(seed).normal(size=(len(words) + 1, dimensions)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


@contextmanager
def watched(model: SentenceTransformer, before: Callable[[], object] = lambda: None) -> Iterator[list[str]]:
    """Collect the texts that are passed to the model; `before` is called before each batch."""
    seen: list[str] = []
    encode = model.encode

    def watch(texts, **options):
        before()
        seen.extend(texts)
        return encode(texts, **options)

    model.encode = watch
    yield seen
    del model.encode


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*") if path.name != "used")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards so small that a few texts fill several."""
    monkeypatch.setattr(scoring, "STATIC_BATCH", 2)
    monkeypatch.setattr(scoring, "BATCH", 2)
    monkeypatch.setattr(embedding_cache, "SHARD", 4)
    monkeypatch.setattr(embedding_cache, "ROWS", 3)


@pytest.mark.usefixtures("small")
def test_vectors_are_those_of_embed_and_come_from_disk_the_second_time(tmp_path: Path, biencoder: str):
    for model in (static(1), load_biencoder(biencoder, 32)):
        distinct = list(dict.fromkeys(TEXTS))
        place = [distinct.index(text) for text in TEXTS]
        expected = embed(model, distinct, label="")[place]
        with watched(model) as seen:
            cold = Cache(tmp_path).embed(model, TEXTS, label="")
            assert sorted(seen) == sorted(distinct)
            warm = Cache(tmp_path).embed(model, TEXTS[::-1], label="")
            assert len(seen) == DISTINCT
        assert cold.dtype == np.float32
        np.testing.assert_array_equal(cold, expected)
        np.testing.assert_array_equal(warm, expected[::-1])


def test_no_texts_have_no_vectors_and_need_no_folder(tmp_path: Path):
    assert Cache(tmp_path / "vectors").embed(static(1), [], label="").shape == (0, 8)
    assert list(tmp_path.iterdir()) == []


def test_only_new_texts_are_embedded(tmp_path: Path):
    model = static(1)
    texts = [f"sort list {number}" for number in range(300)]
    more = [*texts[:100], "new one", *texts[100:], "new two", "new three"]
    Cache(tmp_path).embed(model, texts, label="")
    with watched(model) as seen:
        found = Cache(tmp_path).embed(model, more, label="")
    assert seen == ["new one", "new two", "new three"]
    np.testing.assert_array_equal(found, embed(model, more, label=""))


def test_models_with_different_weights_share_nothing(tmp_path: Path):
    models = [static(1), static(2), load_retriever("bundled/static-256"), static(1)]
    folders = []
    for model in models:
        with watched(model) as seen:
            found = Cache(tmp_path).embed(model, TEXTS, label="")
        np.testing.assert_array_equal(found, embed(model, TEXTS, label=""))
        folders.append((len(seen), len(list(tmp_path.iterdir()))))
    assert folders == [(DISTINCT, 1), (DISTINCT, 2), (DISTINCT, 3), (0, 3)]


def changed(model: SentenceTransformer, change: Callable[[SentenceTransformer], object]) -> SentenceTransformer:
    change(model)
    return model


def one_weight(model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1e-6


CHANGES: dict[str, Callable[[SentenceTransformer], object]] = {
    "a weight": one_weight,
    "a buffer": lambda model: model.register_buffer("shift", torch.zeros(1), persistent=False),
    "dtype": lambda model: model.half(),
    "max_length": lambda model: setattr(model, "max_seq_length", 31),
    "pooling": lambda model: setattr(model[1], "pooling_mode", "cls"),
    "dimensions": lambda model: setattr(model, "truncate_dim", 8),
    "a word": lambda model: model.tokenizer.add_tokens(["blue"]),
    "cut side": lambda model: setattr(model.tokenizer, "truncation_side", "left"),
    "activation": lambda model: setattr(model[0].model.config, "hidden_act", "relu"),
    "backend": lambda model: use_backend(model, "openvino", "float32"),
    "int8": lambda model: use_backend(model, "openvino-int8", "float32"),
    "default prompt": lambda model: vars(model).update(prompts={"query": "find "}, default_prompt_name="query"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_depends_on(change: str, biencoder: str):
    model = load_biencoder(biencoder, 32)
    assert model_key(changed(load_biencoder(biencoder, 32), CHANGES[change])) != model_key(model)


def test_key_depends_on_int8_weights(biencoder: str):
    backends = "openvino", "openvino-int8", "onnx-int8"
    models = [load_biencoder(biencoder, 32) for _ in backends]
    for model, backend in zip(models, backends, strict=True):
        use_backend(model, backend, "float32")
    assert len({model_key(model) for model in models}) == len(backends)


def test_key_depends_on_the_settings_and_not_on_the_path(biencoder: str, tmp_path: Path):
    model = load_biencoder(biencoder, 32)
    keys = [model_key(model), model_key(model, "find "), model_key(model, "", "bfloat16")]
    assert len(set(keys)) == 3
    embed(model, TEXTS, label="")  # the tokenizer now pads and cuts
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert [model_key(model), model_key(load_biencoder(str(tmp_path), 32))] == keys[:1] * 2


def test_key_of_a_static_embedding_depends_on_the_order_of_its_words():
    assert model_key(static(1)) == model_key(static(1))
    assert model_key(static(1)) != model_key(static(1, words=WORDS[::-1]))


def test_vectors_of_a_model_that_cannot_be_identified_are_not_cached(tmp_path: Path, capsys):
    model = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    found = Cache(tmp_path).embed(model, ["sort list", "red red"], label="passages")
    assert found.shape == (2, len(WORDS))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.startswith("passages: vectors are not cached")


def test_prompt_is_put_before_each_text(tmp_path: Path, biencoder: str):
    for model in (static(1), load_biencoder(biencoder, 32)):
        found = Cache(tmp_path).embed(model, TEXTS, label="", prompt="find red ")
        np.testing.assert_allclose(found, embed(model, ["find red " + text for text in TEXTS], label=""), atol=1e-6)
        assert not np.allclose(found, Cache(tmp_path).embed(model, TEXTS, label=""), atol=1e-3)


class Stop(BaseException):
    """An interrupt."""


@pytest.mark.usefixtures("small")
def test_run_that_is_stopped_goes_on_from_the_finished_shards(tmp_path: Path):
    model = static(1)
    texts = [f"sort list {number}" for number in range(11)]
    passes = iter(range(5))

    def stop_before_the_sixth() -> None:
        if next(passes, None) is None:
            assert len(files(tmp_path)) == 2, "8 of the 10 texts are on disk before the interrupt"
            raise Stop

    with watched(model, stop_before_the_sixth) as seen, pytest.raises(Stop):
        Cache(tmp_path).embed(model, texts, label="")
    assert seen == texts[:10]
    with watched(model) as seen:
        found = Cache(tmp_path).embed(model, texts, label="")
    assert seen == texts[10:]
    np.testing.assert_array_equal(found, embed(model, texts, label=""))


@pytest.mark.usefixtures("small")
def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path):
    model, other = static(1), static(1)
    found = []
    with watched(model, lambda: found.append(Cache(tmp_path).embed(other, TEXTS, label=""))):
        found.append(Cache(tmp_path).embed(model, TEXTS, label=""))
    for each in found:
        np.testing.assert_array_equal(each, embed(model, TEXTS, label=""))
    assert {Path(name).suffix for name in files(tmp_path)} == {".npy"}


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def of_other_dimensions(path: Path) -> None:
    keys = np.load(path)["key"][0]
    shard = np.zeros(1, embedding_cache._layout(len(keys), 4))
    shard["key"][0] = keys
    np.save(path, shard)


DAMAGES = {
    "cut short": cut_short,
    "a bit": change_a_bit,
    "dimensions": of_other_dimensions,
    "empty": lambda path: path.write_bytes(b""),
    "no rows": lambda path: np.save(path, np.zeros(0, embedding_cache._layout(4, 8))),
    "not a shard": lambda path: np.save(path, np.zeros(3)),
    "header": lambda path: path.write_bytes(path.read_bytes().replace(b"(1,)", b"(1  ")),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_named_and_its_texts_are_embedded_again(damage: str, tmp_path: Path, capsys):
    model = static(1)
    texts = [f"sort list {number}" for number in range(10)]
    Cache(tmp_path).embed(model, texts, label="")
    before = files(tmp_path)
    path = max(tmp_path.glob("*/*.npy"), key=lambda path: path.stat().st_size)
    DAMAGES[damage](path)
    with watched(model) as seen:
        found = Cache(tmp_path).embed(model, texts, label="passages")
    assert len(seen) == 4
    np.testing.assert_array_equal(found, embed(model, texts, label=""))
    assert capsys.readouterr().err.splitlines() == [
        f"passages: {path} is damaged, cut short or of another model; its texts are embedded again"
    ]
    assert len(files(tmp_path)) == len(before)
    assert path.name not in files(tmp_path)
    with watched(model) as seen:
        Cache(tmp_path).embed(model, texts, label="passages")
    assert seen == []
    assert capsys.readouterr().err == ""


def test_vectors_of_the_least_recently_used_models_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = sorted((static(number) for number in range(4)), key=model_key, reverse=True)  # not in the order of use
    folders = [tmp_path / str(model_key(model)) for model in models]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("not of the cache " * 1000)
    for model, folder, age in zip(models[:3], folders[:3], (300, 200, 100), strict=True):
        Cache(tmp_path).embed(model, TEXTS, label="")
        os.utime(folder / "used", (time.time() - age,) * 2)
    Cache(tmp_path).embed(models[0], TEXTS, label="")  # used again
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    left = []
    for limit in (3 * size, 2 * size, 0):
        monkeypatch.setattr(embedding_cache, "LIMIT", limit)
        Cache(tmp_path).embed(models[3], TEXTS, label="")
        left.append([number for number, folder in enumerate(folders) if folder.exists()])
    assert left == [[0, 2, 3], [0, 3], [3]]
    assert (tmp_path / "notes" / "mine.txt").exists()


def test_temporary_files_of_a_killed_run_are_deleted_and_those_of_a_running_one_are_not(tmp_path: Path):
    Cache(tmp_path).embed(static(1), TEXTS, label="")
    (folder,) = tmp_path.iterdir()
    for name, age in (("old.part", 2 * embedding_cache.ABANDONED), ("new.part", 0)):
        (folder / name).write_bytes(b"half of it")
        os.utime(folder / name, (time.time() - age,) * 2)
    Cache(tmp_path).embed(static(1), TEXTS, label="")
    assert [name for name in files(tmp_path) if name.endswith("part")] == ["new.part"]


def test_folder_that_cannot_be_made_costs_one_note(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", 0)
    path = tmp_path / "vectors"
    path.write_text("a file")
    cache, model = Cache(path), static(1)
    for _ in range(2):
        np.testing.assert_array_equal(cache.embed(model, TEXTS, label=""), embed(model, TEXTS, label=""))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "zeros" not in line]
    assert note.startswith(f"{path}: could not be written")
    assert note.endswith("vectors are not cached for later runs")
    assert path.read_text() == "a file"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:  # the limit must not reach the tests that follow
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_full_disk_costs_one_note(in_memory: int, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", in_memory)
    cache, model = Cache(tmp_path), static(1)
    with full_disk(100):
        found = [cache.embed(model, TEXTS, label="") for _ in range(2)]
    for each in found:
        np.testing.assert_array_equal(each, embed(model, TEXTS, label=""))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "zeros" not in line]
    assert note.startswith(f"{tmp_path}: could not be written (File too large)")
    assert files(tmp_path) == []


def test_many_vectors_are_returned_in_a_file_that_is_deleted_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = static(1)
    assert not isinstance(Cache(tmp_path).embed(model, TEXTS, label=""), np.memmap)
    before = files(tmp_path)
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", len(TEXTS) * 8 * 4 - 1)
    found = Cache(tmp_path).embed(model, TEXTS, label="")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, embed(model, TEXTS, label=""))
    assert files(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system takes the room as it is written")
def test_room_on_the_disk_is_reserved_at_once():
    with tempfile.TemporaryFile() as file:
        embedding_cache._reserve(file.fileno(), 2**20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 2**20


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vector_that_is_not_finite_is_an_error_and_is_not_cached(value: float, tmp_path: Path):
    model = static(1)
    with torch.no_grad():
        model[0].embedding.weight[WORDS.index("graph") + 1] = value
    for give in (Cache(tmp_path).embed, embed):
        with pytest.raises(UserError, match=r"passages: .*not finite for the text 'graph'.*another model"):
            give(model, TEXTS, label="passages")
    with watched(model) as seen:
        found = Cache(tmp_path).embed(model, TEXTS[:4], label="passages")
    assert seen == []
    assert np.isfinite(found).all()


def test_vectors_of_zeros_are_counted_in_one_note(tmp_path: Path, capsys):
    model = static(1)
    with torch.no_grad():
        model[0].embedding.weight[0] = 0  # the row of unknown words
    for _ in range(2):
        found = Cache(tmp_path).embed(model, ["sort", "blue", "", "blue", "red blue"], label="queries")
        assert found.any(axis=1).tolist() == [True, False, False, False, True]
        (note,) = capsys.readouterr().err.splitlines()
        assert note.startswith("queries: 3 of 5 texts have a vector of zeros")
