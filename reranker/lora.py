"""Low-rank adapters: the body keeps its weights and learns small matrices beside them (Hu et al., ICLR 2022)."""

from typing import Any, NamedTuple

from sentence_transformers import CrossEncoder
from torch import nn
from transformers import PreTrainedModel

from reranker.errors import UserError
from reranker.layers import freeze


class Lora(NamedTuple):
    """The arguments of peft's LoraConfig."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: Any
    """Names of the layers, or a pattern; None: those that peft knows for the architecture."""


def attach(model: CrossEncoder, settings: Lora, frozen_layers: int) -> None:
    """Put adapters into the body, which alone, with the head, are trained from now on.

    Args:
        model: see `build_cross_encoder`; changed in place.
        settings: see `Lora`.
        frozen_layers: the adapters of the first so many layers stay nought.

    Raises:
        UserError: peft is not installed, or it refuses the settings.
    """
    check_installed()
    from peft import LoraConfig

    try:
        model.add_adapter(LoraConfig(**settings._asdict()))
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: lora: {' '.join(str(error).split())}") from None
    if frozen_layers:
        freeze(_body(model), frozen_layers)


def _body(model: CrossEncoder) -> PreTrainedModel:
    body = model.transformers_model
    if body is None:
        raise TypeError("the model has no transformer")
    return body


def check_installed() -> None:
    """Check that peft is there.

    Raises:
        UserError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("params.yaml: lora: peft is not installed; run `.venv/bin/pip install peft`") from None


def merge(model: CrossEncoder) -> None:
    """Add what the adapters have learned to the weights of the body and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = _body(model)
    adapted = [(name, part) for name, part in body.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in adapted:
        part.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        base: nn.Module = part.get_base_layer()
        setattr(body.get_submodule(parent), last, base)
    body._hf_peft_config_loaded = False
    del body.peft_config
