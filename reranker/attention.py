"""How attention is computed: by what, and in float32 on a CPU that is not fast at small products in bfloat16."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.utils.import_utils import is_flash_attn_2_available

from reranker.errors import UserError

FLASH = "flash_attention_2"


def use_attention(model: SentenceTransformer | CrossEncoder, wish: str, precision: str) -> None:
    """Let a transformer compute its attention with what was asked for.

    Flash attention (Dao, ICLR 2024) never holds the matrix of all pairs of tokens, and skips the padding. The inputs
    stay padded, so what counts their tokens by the mask goes on to work.

    Args:
        model: changed in place; a static embedding stays as it is.
        wish: sdpa, eager or flash_attention_2; or auto: flash_attention_2 for a model that has it, where it is
            installed, on a GPU in bfloat16; else what transformers takes, sdpa for a model that has it.
        precision: float32 or bfloat16, see `reranker.scoring.choose_precision`.

    Raises:
        UserError: flash_attention_2 is asked for, and there is no GPU, no package or no bfloat16; or the model does not
            have what is asked for.
    """
    transformer = model[0]
    if not isinstance(transformer, Transformer):
        return
    body = transformer.model
    available = is_flash_attn_2_available()
    if wish == "auto":
        if not (available and precision == "bfloat16" and body._supports_flash_attn):
            return
        wish = FLASH
    if wish == FLASH and not available:
        raise UserError(
            f"params.yaml: attention: {FLASH} needs a GPU and the package flash-attn, 2.3.3 or newer: install it, or "
            "use auto or sdpa"
        )
    if wish == FLASH and precision != "bfloat16":
        raise UserError(f"params.yaml: attention: {FLASH} does not compute in {precision}; use auto or sdpa")
    refused = UserError(f"params.yaml: attention: {type(body).__name__} has no {wish}; use auto")
    try:
        body.set_attn_implementation(wish)
    except ValueError:
        raise refused from None
    if body.config._attn_implementation != wish:  # some models cannot change it, and only log that
        raise refused


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
