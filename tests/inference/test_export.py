"""An exported cross-encoder gives the scores of torch, in the project and in the program of its card."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from reranker.common.errors import UserError
from reranker.common.model_files import fingerprint
from reranker.inference.compute import choose_precision
from reranker.inference.export import FILES, ExportedModel, export, graph_bytes, graph_file, precisions, read_about
from reranker.inference.model_cards import Measurement, export_card
from reranker.inference.scoring import score_pairs
from reranker.training.cross_encoder import build_cross_encoder

QUERIES = ["sort a list", "read", "shortest path", "write a csv file", "red apples"] * 8
PASSAGES = [
    "order numbers in a list",
    "",
    "find the shortest path " * 20,
    "table of numbers",
    "green apples",
    "a",
    "in",
]
PASSAGES = (PASSAGES * 6)[: len(QUERIES)]


@pytest.fixture(scope="module")
def folders(cross_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("project")
    folders = {backend: top / "models" / "export" / backend for backend in FILES}
    for backend, folder in folders.items():
        folder.mkdir(parents=True)
        export(CrossEncoder(cross_encoder), backend, folder, fingerprint(cross_encoder))
    return folders


@pytest.fixture(scope="module")
def expected(cross_encoder: str) -> np.ndarray:
    return score_pairs(CrossEncoder(cross_encoder), QUERIES, PASSAGES, label="")


def test_float_has_the_scores_of_torch(folders, expected):
    actual = ExportedModel(folders["openvino"], precision="float32").scores(QUERIES, PASSAGES)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("backend", FILES)
def test_classifier_of_sequences_is_exported_with_its_head(backend: str, encoder: str, tmp_path: Path):
    made = CrossEncoder(encoder, num_labels=1, max_length=32)
    made[0].model.classifier.weight.data.normal_()
    made.save_pretrained(str(tmp_path / "made"), create_model_card=False)
    model = build_cross_encoder(str(tmp_path / "made"), 32)
    folder = tmp_path / "exported"
    folder.mkdir()
    export(model, backend, folder, "")
    assert graph_file(folder) == (backend, folder / FILES[backend])
    expected = score_pairs(model, QUERIES, PASSAGES, label="")
    actual = ExportedModel(folder, precision="float32").scores(QUERIES, PASSAGES)
    assert np.abs(actual - expected).max() < (1e-5 if backend == "openvino" else 0.2 * np.ptp(expected))
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("backend", ["openvino-int8", "onnx-int8"])
def test_int8_is_near_torch_and_smaller(backend: str, folders, expected):
    actual = ExportedModel(folders[backend], precision="float32").scores(QUERIES, PASSAGES)
    assert 0 < np.abs(actual - expected).mean() < 0.1 * np.ptp(expected)
    assert np.corrcoef(actual, expected)[0, 1] > 0.98


def test_folder_holds_a_graph_and_what_sentence_transformers_wants_beside_it(folders):
    for backend, folder in folders.items():
        assert graph_file(folder) == (backend, folder / FILES[backend])
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {"config.json", "modules.json", "tokenizer.json", "2_Dense/model.safetensors", FILES[backend]} <= names
        assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".xml", ".bin", ".onnx"}
        assert "model.safetensors" not in names


def card_of(exported: ExportedModel, backend: str) -> str:
    rows = [Measurement("torch", 0.5, 100), Measurement("graph", 0.4979, 353)]
    return export_card(backend, FILES[backend], exported.tokenizer, exported.inputs, exported.max_length, rows, {})


def printed(program: str, top: Path) -> list[float]:
    """The scores that a program prints."""
    done = subprocess.run([sys.executable, "-c", program], cwd=top, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", done.stdout)]


@pytest.mark.parametrize("backend", FILES)
def test_program_of_the_card_runs_alone_and_prints_the_scores_exact_ones_with_the_hint(backend: str, folders):
    top = folders[backend].parent.parent.parent
    pairs = ["your question"] * 2, ["a passage", "another passage"]
    card = card_of(ExportedModel(folders[backend]), backend)
    (program,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    expected = ExportedModel(folders[backend]).scores(*pairs)
    np.testing.assert_allclose(printed(program, top), expected, rtol=1e-3, atol=1e-5)
    hints = re.findall(r'"CPU", (\{.*?\})', card)
    assert len(hints) == (backend != "onnx-int8")
    for hint in hints:
        exact = ExportedModel(folders[backend], "float32").scores(*pairs)
        actual = printed(program.replace('"CPU"', f'"CPU", {hint}'), top)
        np.testing.assert_allclose(actual, exact, atol=1e-6)


def test_card_has_each_way_to_compute_beside_the_first(folders):
    card = card_of(ExportedModel(folders["openvino"]), "openvino")
    assert "\n| torch | 0.5000 | +0.0000 | 100 | 1.00 |\n| graph | 0.4979 | -0.0021 | 353 | 3.53 |\n" in card


def test_ways_to_compute_begin_with_the_machines_own():
    assert precisions("onnx-int8") == ["float32"]
    for backend in ("openvino", "openvino-int8"):
        assert precisions(backend)[0] == choose_precision("auto")
        assert precisions(backend)[-1] == "float32"


def test_size_is_that_of_graph_and_weights_and_parameters_are_those_of_the_model(folders, cross_encoder: str):
    weights = sum(part.numel() for part in CrossEncoder(cross_encoder).parameters())
    for backend, folder in folders.items():
        assert read_about(folder) == (weights, fingerprint(cross_encoder))
        graph = folder / FILES[backend]
        assert graph_bytes(graph) == sum(path.stat().st_size for path in graph.parent.iterdir())


def test_note_that_is_missing_or_cut_off_is_an_error_of_one_line(folders, tmp_path: Path):
    broken = Path(shutil.copytree(folders["openvino"], tmp_path / "broken"))
    for content in (b"{", b"[]", b"{}"):
        (broken / "export.json").write_bytes(content)
        with pytest.raises(UserError, match=r"export\.json is missing or damaged; run `python -m stages\.export`$"):
            read_about(broken)


def test_no_pairs_have_no_scores(folders):
    assert ExportedModel(folders["openvino"]).scores([], []).shape == (0,)


@pytest.mark.parametrize("backend", FILES)
def test_graph_that_is_cut_off_is_an_error_of_one_line(backend: str, folders, tmp_path: Path):
    broken = Path(shutil.copytree(folders[backend], tmp_path / "broken"))
    graph = broken / FILES[backend]
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken' could not be loaded \(.*run `python -m stages.export`") as caught:
        ExportedModel(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_folder_with_half_a_tokenizer_is_refused(file: str, folders, tmp_path: Path):
    broken = Path(shutil.copytree(folders["onnx-int8"], tmp_path / "broken"))
    (broken / file).unlink()
    with pytest.raises(UserError, match=rf"is incomplete: it has no {file}; run `python -m stages.export`$"):
        ExportedModel(broken)


def test_folder_without_a_graph_is_refused(cross_encoder: str):
    with pytest.raises(UserError, match=r"is not an exported model; run `python -m stages.export`"):
        ExportedModel(Path(cross_encoder))
