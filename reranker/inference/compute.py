"""How models compute: in which precision, with which attention, by which library, and on which machines."""

from typing import NamedTuple

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker.common.engine import LOCAL, Engine
from reranker.common.errors import UserError
from reranker.inference.backends import use_attention, use_backend


class Compute(NamedTuple):
    """How a model computes. The loaders apply attention and backend; precision and engine belong to each pass."""

    precision: str = "float32"
    """float32 or bfloat16."""
    attention: str = "auto"
    """See `use_attention`."""
    backend: str = "torch"
    """See `use_backend`."""
    engine: Engine = LOCAL
    """What runs the passes: this process, the processes of a launcher, or a cluster."""

    def apply(self, model: SentenceTransformer | CrossEncoder) -> None:
        """Set a model's attention and backend; a static embedding stays as it is.

        Raises:
            UserError: see `use_attention` and `use_backend`.
        """
        use_attention(model, self.attention, self.precision)
        use_backend(model, self.backend, self.precision)

    def training(self) -> "Compute":
        """The same by torch in this process, for torch alone has gradients."""
        return self._replace(backend="torch", engine=LOCAL)

    def static(self) -> "Compute":
        """The same in float32, for a static embedding, whose vectors are sums."""
        return self._replace(precision="float32")


PLAIN = Compute()
"""Float32 by torch in this process."""


def choose_compute(
    precision: str = "auto", attention: str = "auto", backend: str = "auto", engine: Engine = LOCAL
) -> Compute:
    """How models compute on this machine.

    Args:
        precision: float32, bfloat16, or auto for what the hardware is fast at.
        attention: see `use_attention`.
        backend: see `use_backend`.
        engine: what runs the passes.

    Raises:
        UserError: see `choose_precision`.
    """
    return Compute(choose_precision(precision), attention, backend, engine)


def choose_precision(wish: str) -> str:
    """`float32` or `bfloat16`: what was asked for, or for `auto` what the hardware is fast at.

    Raises:
        UserError: bfloat16 is asked for and a GPU is there that does not have it.
    """
    if torch.cuda.is_available():
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wish == "bfloat16" and not has_bfloat16:
            raise UserError("params.yaml: compute.precision: this GPU has no bfloat16; use auto or float32")
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if wish == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return wish
