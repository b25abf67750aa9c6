"""Linear layers in float32 on a CPU through oneDNN: on AMD's processors it multiplies twice as fast as MKL."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """While it lasts, attention of bfloat16 tensors on a CPU is computed in float32: faster, and more exact.

    Its products are of one head's 32 or 64 dimensions. Without AMX, which multiplies whole tiles, the conversions
    take longer than the products: at 128 tokens two and a half times as long as all in float32. With dropout torch
    computes attention step by step, and it is left alone.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called for each function of torch; all but the attention are passed on."""
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
    given = query.dtype
    if query.device.type != "cpu" or given != torch.bfloat16 or dropout_p:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **others)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        found = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask, **others)
    return found.to(given)


class OneDnnLinears(TorchFunctionMode):
    """While it lasts, linear layers in float32 on a CPU are convolutions of width one: the same sums in another order.

    torch multiplies float32 matrices by MKL and only convolves by oneDNN, forward and backward. Other precisions, also
    under autocast, and other devices are left alone. For a few tokens torch does not ask oneDNN, and nothing is gained.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called for each function of torch; all but `linear` are passed on."""
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
    # each token a place of a picture of one row: in the layout with channels last, that is how it already lies
    picture = input.reshape(1, 1, -1, input.shape[-1]).permute(0, 3, 1, 2)
    found = F.conv2d(picture, weight[:, :, None, None], bias)
    return found.permute(0, 2, 3, 1).reshape(*input.shape[:-1], weight.shape[0])
