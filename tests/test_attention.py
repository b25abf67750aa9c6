import pytest
import torch
import torch.nn.functional as F

from reranker.attention import Float32Attention

MASK = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])[:, None, None, :].expand(2, 1, 9, 9)
MASKS = {"none": None, "bool": MASK, "float": torch.zeros(MASK.shape).masked_fill(~MASK, -1e9)}


def attend(dtype: torch.dtype, mask: torch.Tensor | None, dropout: float = 0.0) -> list[torch.Tensor]:
    """Its result and the gradients of query, key and value; the same numbers, all of them exact in bfloat16."""
    torch.manual_seed(0)
    taken = [torch.randn(2, 3, 9, 8).bfloat16().to(dtype).requires_grad_() for _ in range(3)]
    mask = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = F.scaled_dot_product_attention(*taken, attn_mask=mask, dropout_p=dropout)
    found.sum().backward()
    return [found.detach(), *(tensor.grad for tensor in taken if tensor.grad is not None)]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize("mask", list(MASKS))
def test_result_and_gradients_are_those_of_float32_rounded_once(mask: str):
    exact = [tensor.bfloat16() for tensor in attend(torch.float32, MASKS[mask])]
    with Float32Attention():
        found = attend(torch.bfloat16, MASKS[mask])
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 4
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
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
