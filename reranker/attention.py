"""Attention in float32 while all else is in bfloat16, on a CPU that is not fast at small products in bfloat16."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """While it lasts, the fused attention of bfloat16 tensors on a CPU is computed in float32: faster, and more exact.

    Its products are of one head's 32 or 64 dimensions. Without AMX, which multiplies whole tiles, the conversions
    take longer than the products: at 128 tokens two and a half times as long as all in float32. With dropout torch
    does not fuse attention, and it is left alone.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called for each function of torch; all but the fused attention are passed on."""
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
