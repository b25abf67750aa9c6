"""The losses of the cross-encoder by their names in params.yaml: what each is fed, and its keyword arguments."""

import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.losses import lambda_loss
from torch import Tensor, nn

from reranker.errors import UserError
from reranker.losses import GroupSoftmaxLoss


class Loss(NamedTuple):
    """What a loss is fed."""

    make: type[nn.Module]
    shape: Literal["pairs", "negatives", "lists"]
    """Of a row: a query and a passage; a query, its right passage and its wrong ones; a query and all its passages."""
    fed: Literal["right", "class", "relevance", "teacher", "nothing"]
    """Right: 1.0 or 0.0. Class: 1 or 0. Relevance: the label of the data. Teacher: its logits."""
    activation: type[nn.Module] | None = nn.Identity
    """Of the model's output within the loss; the model itself keeps its logits, which the fusion adds up. None: the
    loss has no such argument."""
    taught: Literal["logits", "chances"] | None = None
    """What it is fed with `targets: teacher`; None: that does not suit it."""
    inner: type[nn.Module] | None = None
    """The loss of torch that takes further keyword arguments."""
    outputs: int = 1
    """Of the model while it is trained."""


LOSSES = {
    "group_softmax": Loss(GroupSoftmaxLoss, "lists", "teacher", None),
    "binary_cross_entropy": Loss(
        losses.BinaryCrossEntropyLoss, "pairs", "right", taught="chances", inner=nn.BCEWithLogitsLoss
    ),
    "cross_entropy": Loss(losses.CrossEntropyLoss, "pairs", "class", inner=nn.CrossEntropyLoss, outputs=2),
    "multiple_negatives_ranking": Loss(losses.MultipleNegativesRankingLoss, "negatives", "nothing", nn.Sigmoid),
    "cached_multiple_negatives_ranking": Loss(
        losses.CachedMultipleNegativesRankingLoss, "negatives", "nothing", nn.Sigmoid
    ),
    "mse": Loss(losses.MSELoss, "pairs", "teacher", taught="logits", inner=nn.MSELoss),
    "margin_mse": Loss(losses.MarginMSELoss, "negatives", "teacher", taught="logits", inner=nn.MSELoss),
    "lambda": Loss(losses.LambdaLoss, "lists", "relevance", taught="chances"),
    "list_net": Loss(losses.ListNetLoss, "lists", "relevance", taught="logits"),
    "list_mle": Loss(losses.ListMLELoss, "lists", "relevance", taught="logits"),
    "plist_mle": Loss(losses.PListMLELoss, "lists", "relevance", taught="logits"),
    "rank_net": Loss(losses.RankNetLoss, "lists", "relevance", taught="logits"),
    "adr_mse": Loss(losses.ADRMSELoss, "lists", "relevance", taught="logits"),
}

SCHEMES = {
    name: scheme
    for name, scheme in vars(lambda_loss).items()
    if isinstance(scheme, type)
    and issubclass(scheme, lambda_loss.BaseWeightingScheme)
    and scheme is not lambda_loss.BaseWeightingScheme
}
"""Of the lambda loss."""
OF_SEVERAL = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
"""Activations that mix the numbers they get: the scores of a batch have nothing to do with each other."""
ACTIVATIONS = {"Identity": nn.Identity} | {
    name: getattr(nn, name) for name in nn.modules.activation.__all__ if name not in OF_SEVERAL
}
MODULES: dict[str, Mapping[str, type[nn.Module]]] = {
    "activation_fn": ACTIVATIONS,
    "weighting_scheme": SCHEMES,
    "lambda_weight": {"PListMLELambdaWeight": losses.PListMLELambdaWeight},
}
"""Arguments that are modules, which are given by the names of their classes."""
TENSORS = ("pos_weight", "weight")
OLD = ("size_average", "reduce")
"""Arguments of torch's losses that `reduction` replaced."""
ELSEWHERE = {("group_softmax", "distillation"): "distillation"}


def needs_teacher(name: str, targets: str, distillation: float) -> bool:
    """Whether a loss is fed a teacher's scores.

    Args:
        name: of the loss.
        targets: `relevance` or `teacher`.
        distillation: share of the teacher in group_softmax.

    Raises:
        UserError: `targets: teacher` does not suit the loss.
    """
    kind = LOSSES[name]
    if targets == "teacher" and kind.taught is None:
        todo = "set distillation: 1" if name == "group_softmax" else "set targets: relevance"
        raise UserError(f"params.yaml: targets: teacher: the loss {name} takes no scores as its targets; {todo}")
    if name == "group_softmax":
        return distillation > 0
    return targets == "teacher" or kind.fed == "teacher"


def loss_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a loss's class, names of modules replaced by modules and numbers by tensors.

    Args:
        name: of the loss.
        given: by the names of the class; `pos_weight: auto` is left as it is.

    Raises:
        UserError: an argument is unknown or its value is none that it takes.
    """
    known = _signature(name)
    found: dict[str, Any] = {}
    for key, value in given.items():
        if pointer := ELSEWHERE.get((name, key)):
            raise UserError(f"params.yaml: loss_arguments: {key}: give it as the key {pointer} of params.yaml")
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"params.yaml: loss_arguments: {name} has no argument '{key}'; {has}")
        if key in MODULES:
            found[key] = None if value is None and _optional(known[key]) else _module(key, value)
        elif key in TENSORS:
            found[key] = _tensor(key, value, classes=LOSSES[name].outputs)
        else:
            found[key] = _value(key, value, known[key])
    return found


def make_loss(
    name: str, model: CrossEncoder, arguments: Mapping[str, Any], *, distillation: float, group_size: int
) -> nn.Module:
    """A loss by its name in params.yaml.

    Args:
        name: one of `LOSSES`.
        model: to be trained, with as many outputs as the loss wants.
        arguments: see `loss_arguments`. The weight of the right passages in binary_cross_entropy is `auto` where none
            is given: it balances the others.
        distillation: weight of the teacher in group_softmax.
        group_size: passages per query.

    Raises:
        UserError: see `loss_arguments`.
    """
    kind = LOSSES[name]
    found = loss_arguments(name, arguments)
    if name == "group_softmax":
        found["distillation"] = distillation
    if name == "binary_cross_entropy" and found.setdefault("pos_weight", "auto") == "auto":
        found["pos_weight"] = torch.tensor(float(group_size - 1))
    if kind.activation is not None:
        found.setdefault("activation_fn", kind.activation())
    return kind.make(model, **found)


def _signature(name: str) -> dict[str, Any]:
    """Names and types of the arguments of a loss."""
    kind = LOSSES[name]
    parameters: dict[str, Any] = {}
    for part in filter(None, (kind.make, kind.inner)):
        hints = typing.get_type_hints(part.__init__)
        for parameter in inspect.signature(part).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in ("model", *OLD):
                continue
            hint = hints.get(parameter.name, Any)
            # 10.0 as the default of what is called an integer
            whole = hint is int and isinstance(parameter.default, float)
            parameters.setdefault(parameter.name, float if whole else hint)
    return {key: hint for key, hint in parameters.items() if (name, key) not in ELSEWHERE}


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _module(key: str, value: object) -> nn.Module:
    known = MODULES[key]
    chosen: object = value
    arguments: object = {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((chosen, arguments),) = value.items()
    if not isinstance(chosen, str) or chosen not in known or not isinstance(arguments, Mapping):
        raise UserError(
            f"params.yaml: loss_arguments: {key}: {value!r} is not allowed: give the name of a class, or "
            f"{{NAME: {{argument: value}}}}, of {', '.join(known)}"
        )
    try:
        return known[chosen](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: loss_arguments: {key}: {chosen}: {error}") from None


def _tensor(key: str, value: object, *, classes: int) -> Tensor | str | None:
    if value is None or (key == "pos_weight" and value == "auto"):
        return value
    hint = Annotated[list[float], Field(min_length=classes, max_length=classes)] if classes > 1 else float
    return torch.tensor(_checked(key, value, hint), dtype=torch.float32)


def _value(key: str, value: object, hint: Any) -> object:
    if key == "reduction":
        hint = Literal["mean", "sum"]  # a step needs one number
    elif key in ("k", "num_negatives"):
        hint = Annotated[int, Field(ge=1)] | None
    elif key == "label_smoothing":
        hint = Annotated[float, Field(ge=0, lt=1)]
    elif key == "mini_batch_size" and not _optional(hint):
        hint = Annotated[int, Field(ge=1)]
    return _checked(key, value, hint)


def _checked(key: str, value: object, hint: Any) -> Any:
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Input ")
        raise UserError(f"params.yaml: loss_arguments: {key}: {value!r} is not allowed: it {reason}") from None
