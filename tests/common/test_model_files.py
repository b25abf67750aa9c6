import dataclasses
from pathlib import Path

import pytest

from reranker.common import model_files
from reranker.common.errors import UserError
from reranker.common.model_files import (
    BUNDLED,
    bundled_weights,
    fingerprint,
    loading,
    resolve,
    tokenizer_file,
    weight_files,
)

STATIC = "bundled/static-256"
TRANSFORMER = "bundled/all-MiniLM-L6-v2"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without models, and no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def replace(monkeypatch: pytest.MonkeyPatch, **fields: str) -> None:
    monkeypatch.setitem(model_files.BUNDLED, STATIC, dataclasses.replace(BUNDLED[STATIC], **fields))


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
    assert (
        str(caught.value)
        == "model 'models/biencoder' could not be loaded (header too large); run `dvc repro --force warm`"
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
