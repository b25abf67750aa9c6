"""Faster operations on a CPU: attention in float32, and linear layers through oneDNN.

On AMD's processors oneDNN multiplies matrices in float32 twice as fast as MKL.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """A context in which attention of bfloat16 tensors on a CPU is computed in float32, which is faster and more exact.

    The products have only the 32 or 64 dimensions of a head. Without AMX, which multiplies whole tiles, the conversions
    take longer than the products: at 128 tokens bfloat16 takes two and a half times as long as float32. Attention with
    dropout does not change, because torch computes it step by step.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute attention in float32, and pass all other functions of torch on."""
        if func is F.scaled_dot_product_attention and not torch.cpu._is_amx_tile_supported():
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **others: Any,
) -> Tensor:
    dtype = query.dtype
    if query.device.type != "cpu" or dtype != torch.bfloat16 or dropout_p:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **others)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        output = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask, **others)
    return output.to(dtype)


class OneDnnLinears(TorchFunctionMode):
    """A context in which linear layers in float32 on a CPU are convolutions of width one: equal sums in another order.

    torch multiplies float32 matrices with MKL and uses oneDNN only for convolutions, forward and backward. Nothing
    changes for other precisions, also under autocast, and for other devices. For a few tokens torch does not use oneDNN
    either, and nothing is gained.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute `linear` as a convolution, and pass all other functions of torch on."""
        if func is F.linear and _suits(*args[:2], **(kwargs or {})):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _suits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.get_num_threads() > 1
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # each token is a pixel of an image of one row; with channels last, this is already the layout in memory
    image = input.reshape(1, 1, -1, input.shape[-1]).permute(0, 3, 1, 2)
    output = F.conv2d(image, weight[:, :, None, None], bias)
    return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], weight.shape[0])
