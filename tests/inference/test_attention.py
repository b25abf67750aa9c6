from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import CrossEncoder
from transformers import BertModel
from transformers.utils.import_utils import is_flash_attn_2_available

from reranker.common.errors import UserError
from reranker.inference import backends
from reranker.inference.backends import use_attention
from reranker.inference.compute import Compute
from reranker.inference.loading import load_retriever
from reranker.inference.scoring import score_pairs
from reranker.training.cpu_kernels import Float32Attention

MASK = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])[:, None, None, :].expand(2, 1, 9, 9)
MASKS = {"none": None, "bool": MASK, "float": torch.zeros(MASK.shape).masked_fill(~MASK, -1e9)}


def attend(dtype: torch.dtype, mask: torch.Tensor | None, dropout: float = 0.0) -> list[torch.Tensor]:
    """Its result and the gradients of query, key and value; the same numbers, all of them exact in bfloat16."""
    torch.manual_seed(0)
    taken = [torch.randn(2, 3, 9, 8).bfloat16().to(dtype).requires_grad_() for _ in range(3)]
    mask = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual = F.scaled_dot_product_attention(*taken, attn_mask=mask, dropout_p=dropout)
    actual.sum().backward()
    return [actual.detach(), *(tensor.grad for tensor in taken if tensor.grad is not None)]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize("mask", list(MASKS))
def test_result_and_gradients_are_those_of_float32_rounded_once(mask: str):
    exact = [tensor.bfloat16() for tensor in attend(torch.float32, MASKS[mask])]
    with Float32Attention():
        actual = attend(torch.bfloat16, MASKS[mask])
    assert [tensor.dtype for tensor in actual] == [torch.bfloat16] * 4
    torch.testing.assert_close(actual, exact, rtol=0, atol=0)
    assert not all(map(torch.equal, attend(torch.bfloat16, MASKS[mask]), exact))


def test_float32_dropout_and_processors_with_amx_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    for dtype, dropout in ((torch.float32, 0.0), (torch.bfloat16, 0.5)):
        expected = attend(dtype, None, dropout)
        with Float32Attention():
            torch.testing.assert_close(attend(dtype, None, dropout), expected, rtol=0, atol=0)
    expected = attend(torch.bfloat16, None)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with Float32Attention():
        torch.testing.assert_close(attend(torch.bfloat16, None), expected, rtol=0, atol=0)


PAIRS = ["sort a list", "find the path"] * 4, ["order numbers", "red apples in a graph of numbers"] * 4


def test_attention_that_is_asked_for_computes_and_is_not_saved(cross_encoder: str, tmp_path: Path):
    model = CrossEncoder(cross_encoder)
    expected = score_pairs(model, *PAIRS, label="")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(F, "scaled_dot_product_attention")
        use_attention(model, "eager", "float32")
        actual = score_pairs(model, *PAIRS, label="")
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert CrossEncoder(str(tmp_path))[0].model.config._attn_implementation == "sdpa"
    use_attention(model, "sdpa", "float32")
    np.testing.assert_array_equal(score_pairs(model, *PAIRS, label=""), expected)


def test_auto_leaves_a_model_as_it_is_without_flash_attention_and_in_float32(
    cross_encoder: str, monkeypatch: pytest.MonkeyPatch
):
    model = CrossEncoder(cross_encoder)
    for available, precision in ((False, "bfloat16"), (True, "float32")):
        monkeypatch.setattr(backends, "is_flash_attn_2_available", lambda available=available: available)
        use_attention(model, "auto", precision)
        assert model[0].model.config._attn_implementation == "sdpa"
    use_attention(load_retriever("bundled/static-256"), "eager", "float32")  # has none


def test_flash_attention_that_cannot_compute_is_refused_in_one_line(
    cross_encoder: str, monkeypatch: pytest.MonkeyPatch
):
    model = CrossEncoder(cross_encoder)
    monkeypatch.setattr(backends, "is_flash_attn_2_available", lambda: True)
    with pytest.raises(
        UserError, match=r"^params.yaml: compute.attention: flash_attention_2 does not compute in float32; use "
    ):
        use_attention(model, "flash_attention_2", "float32")
    monkeypatch.setattr(backends, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(
        UserError, match=r"^params.yaml: compute.attention: flash_attention_2 needs a GPU and the package flash-"
    ):
        use_attention(model, "flash_attention_2", "bfloat16")
    assert model[0].model.config._attn_implementation == "sdpa"


def test_attention_that_a_model_does_not_have_is_refused(cross_encoder: str, monkeypatch: pytest.MonkeyPatch):
    model = CrossEncoder(cross_encoder)
    use_attention(model, "eager", "float32")
    monkeypatch.setattr(BertModel, "_supports_sdpa", False)  # as of models of other shapes
    with pytest.raises(UserError, match=r"^params.yaml: compute.attention: BertModel has no sdpa; use auto$"):
        use_attention(model, "sdpa", "float32")


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn and a GPU are needed")
def test_flash_attention_scores_are_near_those_of_sdpa(cross_encoder: str):
    expected = score_pairs(CrossEncoder(cross_encoder), *PAIRS, label="", compute=Compute("bfloat16"))
    model = CrossEncoder(cross_encoder)
    use_attention(model, "auto", "bfloat16")
    assert model[0].model.config._attn_implementation == "flash_attention_2"
    actual = score_pairs(model, *PAIRS, label="", compute=Compute("bfloat16"))
    np.testing.assert_allclose(actual, expected, atol=0.05 * np.ptp(expected))
