import copy
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn

from reranker.common.errors import UserError
from reranker.inference.backends import CHECK_TEXTS, CompiledTransformer, use_backend
from reranker.inference.compute import Compute, choose_precision
from reranker.inference.graphs import PACKAGES
from reranker.inference.loading import load_retriever
from reranker.inference.scoring import embed, score_pairs

TEXTS = [
    "sort a list",
    "read",
    "",
    "write a csv file of numbers in order",
    "apples " * 60,
    "find the shortest path",
] * 12
PAIRS = TEXTS, TEXTS[1:] + TEXTS[:1]


@pytest.fixture
def classifier(encoder: str) -> CrossEncoder:
    """A cross-encoder as transformers builds it, with an output layer on the first token."""
    model = CrossEncoder(encoder, num_labels=1, max_length=32)
    model[0].model.classifier.weight.data.normal_()
    return model


def test_scores_and_vectors_are_those_of_torch(cross_encoder: str, biencoder: str, classifier: CrossEncoder):
    for model in (CrossEncoder(cross_encoder), classifier):
        expected = score_pairs(model, *PAIRS, label="")
        use_backend(model, "openvino", "float32")
        assert isinstance(model[0].model, CompiledTransformer)
        actual = score_pairs(model, *PAIRS, label="")
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        np.testing.assert_array_equal(score_pairs(model, *PAIRS, label=""), actual)
        assert np.ptp(expected) > 0.1
    model = SentenceTransformer(biencoder)
    vectors = embed(model, TEXTS, label="", prompt="find ")
    use_backend(model, "auto", "float32")
    assert isinstance(model[0].model, CompiledTransformer)
    np.testing.assert_allclose(embed(model, TEXTS, label="", prompt="find "), vectors, atol=1e-5)


def test_scores_near_0_are_compared_by_how_far_they_are_apart(classifier: CrossEncoder):
    transformer, head = classifier[0], classifier[0].model.classifier
    torch.manual_seed(2)
    head.weight.data.normal_()
    head.bias.data -= transformer(transformer.preprocess(CHECK_TEXTS))["scores"].mean()
    classifier.activation_fn = nn.Identity()
    expected = score_pairs(classifier, *PAIRS, label="")
    use_backend(classifier, "openvino", "bfloat16")  # by their distance from 0, the scores of these texts are too far
    actual = score_pairs(classifier, *PAIRS, label="")
    assert np.abs(actual - expected).max() < 0.1 * np.ptp(expected)


def test_model_that_answers_all_alike_can_be_compiled(classifier: CrossEncoder):
    for bias in (0.0, 2.0):
        head = classifier[0].model.classifier
        head.weight.data.zero_()
        head.bias.data.fill_(bias)
        model = copy.deepcopy(classifier)
        model.activation_fn = nn.Identity()
        use_backend(model, "openvino", "float32")
        np.testing.assert_allclose(score_pairs(model, *PAIRS, label=""), bias, atol=1e-5)


def test_classifier_whose_scores_are_off_is_refused(classifier: CrossEncoder):
    plain = classifier[0].model.forward

    def forward(**inputs: Tensor) -> dict[str, Tensor]:
        # tracing turns the length into a constant
        return {"logits": 5 + plain(**inputs).logits * float(int(inputs["input_ids"].shape[1]))}

    classifier[0].model.forward = forward
    with pytest.raises(UserError, match="away from torch's"):
        use_backend(classifier, "openvino", "float32")


@pytest.mark.skipif(choose_precision("auto") != "bfloat16", reason="this processor has no bfloat16")
def test_bfloat16_is_near_torch(cross_encoder: str):
    model = CrossEncoder(cross_encoder)
    exact = score_pairs(model, *PAIRS, label="")
    use_backend(model, "openvino", "bfloat16")
    actual = score_pairs(model, *PAIRS, label="", compute=Compute("bfloat16"))
    assert 0 < np.abs(actual - exact).max() < 0.05 * np.ptp(exact)


def test_rounding_for_onnx_leaves_logging_as_it_was():
    code = (
        "import logging, torch; from reranker.inference.graphs import onnx_graph, quantise_onnx; "
        "quantise_onnx(onnx_graph(torch.nn.Linear(32, 32), {'input': torch.zeros(1, 32)}, ['output'])); "
        "print(logging.getLogger().level, logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, "quantiz" in done.stderr) == ("30 []\n", False)


@pytest.mark.parametrize("backend", ["openvino-int8", "onnx-int8"])
def test_int8_rounds_scores_and_vectors_a_little(backend: str, cross_encoder: str, biencoder: str):
    model = CrossEncoder(cross_encoder)
    exact = score_pairs(model, *PAIRS, label="")
    use_backend(model, backend, "float32")
    actual = score_pairs(model, *PAIRS, label="")
    assert 0 < np.abs(actual - exact).mean() < 0.1 * np.ptp(exact)
    assert np.corrcoef(actual, exact)[0, 1] > 0.98

    model = SentenceTransformer(biencoder)
    vectors = embed(model, TEXTS, label="")
    use_backend(model, backend, "float32")
    cosines = (vectors * embed(model, TEXTS, label="")).sum(axis=1)
    assert 0.95 < cosines.min() < cosines.max() <= 1 + 1e-5
    assert cosines.min() < 1 - 1e-6


def test_int8_without_its_packages_is_refused(cross_encoder: str, monkeypatch: pytest.MonkeyPatch):
    model = CrossEncoder(cross_encoder)
    monkeypatch.setitem(PACKAGES, "onnx-int8", ("onnx", "no_such_package"))
    with pytest.raises(
        UserError, match=r"onnx-int8: not installed: no_such_package; run `.*pip install no_such_package`"
    ):
        use_backend(model, "onnx-int8", "float32")


def test_torch_stays_where_it_is_asked_for_and_for_a_static_embedding(biencoder: str):
    for model, backend in (
        (SentenceTransformer(biencoder), "torch"),
        (load_retriever("bundled/static-256"), "openvino"),
    ):
        body = list(model.modules())
        use_backend(model, backend, "float32")
        assert list(model.modules()) == body


def hidden(model: CrossEncoder) -> None:
    model[0].modality_config["text"]["method_output_name"] = ("hidden_states", -1)


def shaped(model: CrossEncoder) -> None:
    plain = model[0].model.forward

    def forward(**inputs: Tensor) -> dict[str, Tensor]:
        actual = plain(**inputs)
        # tracing turns the length into a constant
        return {"last_hidden_state": actual.last_hidden_state * float(int(inputs["input_ids"].shape[1]))}

    model[0].model.forward = forward


@pytest.mark.parametrize(("change", "reason"), [(hidden, "hidden_states"), (shaped, "away from torch's")])
def test_model_that_openvino_cannot_read_is_left_to_torch_or_refused(
    change: Callable[[CrossEncoder], None], reason: str, cross_encoder: str, capsys: pytest.CaptureFixture[str]
):
    model = CrossEncoder(cross_encoder)
    change(model)
    with pytest.raises(UserError, match=f"params.yaml: compute.backend: OpenVINO cannot read this model .*{reason}"):
        use_backend(model, "openvino", "float32")
    expected = score_pairs(model, *PAIRS, label="")
    use_backend(model, "auto", "float32")
    assert "torch computes" in capsys.readouterr().out
    np.testing.assert_array_equal(score_pairs(model, *PAIRS, label=""), expected)


@pytest.mark.slow
def test_openvino_and_nncf_cannot_report_that_they_are_used_and_another_import_still_can():
    code = (
        "import sys, torch\n"
        "from reranker.inference.graphs import openvino_graph, quantise_openvino\n"
        "quantise_openvino(openvino_graph(torch.nn.Linear(32, 32), {'input': torch.zeros(1, 32)}, ['output']))\n"
        "from nncf.telemetry import telemetry\n"
        "from openvino.tools.ovc import telemetry as of_openvino\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "print(type(telemetry).__module__, type(of_openvino).__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["unittest.mock", "openvino.tools.ovc.telemetry_stub"], done.stderr
