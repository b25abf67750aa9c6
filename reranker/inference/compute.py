"""How models compute: the precision, the attention, the library and the machines."""

from typing import NamedTuple

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker.common.engine import LOCAL, Engine
from reranker.common.errors import UserError
from reranker.inference.backends import use_attention, use_backend


class Compute(NamedTuple):
    """How a model computes. Loading applies attention and backend; each pass applies precision and engine."""

    precision: str = "float32"
    """float32 or bfloat16."""
    attention: str = "auto"
    """See `use_attention`."""
    backend: str = "torch"
    """See `use_backend`."""
    engine: Engine = LOCAL
    """The engine that runs the passes: this process, the processes of a launcher, or a cluster."""

    def apply(self, model: SentenceTransformer | CrossEncoder) -> None:
        """Set a model's attention and backend; a static embedding stays as it is.

        Raises:
            UserError: see `use_attention` and `use_backend`.
        """
        use_attention(model, self.attention, self.precision)
        use_backend(model, self.backend, self.precision)

    def training(self) -> "Compute":
        """The same settings with torch in this process, because only torch computes gradients."""
        return self._replace(backend="torch", engine=LOCAL)

    def static(self) -> "Compute":
        """The same settings in float32, for a static embedding, whose vectors are sums."""
        return self._replace(precision="float32")


PLAIN = Compute()
"""Float32 with torch in this process."""


def choose_compute(
    precision: str = "auto", attention: str = "auto", backend: str = "auto", engine: Engine = LOCAL
) -> Compute:
    """How models compute on this machine.

    Args:
        precision: float32, bfloat16, or auto for the one that is fast on the hardware.
        attention: see `use_attention`.
        backend: see `use_backend`.
        engine: runs the passes.

    Raises:
        UserError: see `choose_precision`.
    """
    return Compute(choose_precision(precision), attention, backend, engine)


def choose_precision(precision: str) -> str:
    """`float32` or `bfloat16`; for `auto` the one that is fast on the hardware.

    Raises:
        UserError: the precision is bfloat16, and the GPU does not have it.
    """
    if torch.cuda.is_available():
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bfloat16" and not has_bfloat16:
            raise UserError("params.yaml: compute.precision: this GPU has no bfloat16; use auto or float32")
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return precision
