"""The losses by their names in params.yaml, what each is fed and its keyword arguments; and two of our own."""

import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.losses import lambda_loss
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from reranker.common.errors import UserError
from reranker.training.arguments import checked

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


class GroupSoftmaxLoss(nn.Module):
    """Cross-entropy of the right passage within its group, mixed with a teacher's opinion of the group.

    The first part is the localized contrastive estimation of Gao et al. (ECIR 2021), the second the
    Kullback-Leibler divergence from the teacher's distribution over the group to the model's.

    Args:
        model: with one output and an identity activation.
        distillation: weight of the teacher, from 0 to 1.
    """

    def __init__(self, model: CrossEncoder, distillation: float) -> None:
        super().__init__()
        self.model = model
        self.distillation = distillation

    def forward(
        self,
        inputs: list[list[str] | list[list[str]]],
        labels: list[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Mean loss of a batch.

        Args:
            inputs: the queries, and for each query its passages with the right one first; all groups have
                the same size.
            labels: the teacher's logit of each passage, per query.
            prompt: passed to the model's tokenisation.
            task: passed to the model's tokenisation.
        """
        queries, groups = inputs
        pairs = [(query, passage) for query, passages in zip(queries, groups, strict=True) for passage in passages]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        logits = self.model(features)["scores"].float().view(len(groups), -1)
        teacher = torch.stack(list(labels)).to(logits.device, torch.float32)
        own = F.cross_entropy(logits, torch.zeros(len(groups), dtype=torch.long, device=logits.device))
        taught = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
        return (1 - self.distillation) * own + self.distillation * taught


class InBatchSoftmaxLoss(nn.Module):
    """Cross-entropy of the right passage among all of the batch and of the right query, on scaled cosines.

    Rows with the same label share a right passage, or nearly do, and are not negatives of each other: in a
    batch of similar queries the plain in-batch loss would push right answers away.

    Args:
        model: a bi-encoder.
        scale: factor of the cosines, the inverse of the temperature.
    """

    def __init__(self, model: SentenceTransformer, scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Mean of both directions.

        Args:
            sentence_features: tokenised queries and tokenised passages, row by row a right pair.
            labels: group of each row; shape (batch,).
        """
        queries, passages = (
            F.normalize(self.model(features)["sentence_embedding"].float(), dim=-1) for features in sentence_features
        )
        return in_batch_softmax(queries, passages, labels, self.scale)


def in_batch_softmax(queries: Tensor, passages: Tensor, groups: Tensor, scale: float) -> Tensor:
    """Cross-entropy of the right passage among all of the batch and of the right query, averaged.

    Args:
        queries: normalised vectors; shape (batch, dimensions).
        passages: normalised vectors of the right passages, row by row; same shape.
        groups: shape (batch,); rows of one group are not negatives of each other.
        scale: factor of the cosines.
    """
    cosines = scale * queries @ passages.T
    same = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    cosines = cosines.masked_fill(same, float("-inf"))
    right = torch.arange(len(groups), device=groups.device)
    return (F.cross_entropy(cosines, right) + F.cross_entropy(cosines.T, right)) / 2


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
    return torch.tensor(checked(f"loss_arguments: {key}", value, hint), dtype=torch.float32)


def _value(key: str, value: object, hint: Any) -> object:
    if key == "reduction":
        hint = Literal["mean", "sum"]  # a step needs one number
    elif key in ("k", "num_negatives"):
        hint = Annotated[int, Field(ge=1)] | None
    elif key == "label_smoothing":
        hint = Annotated[float, Field(ge=0, lt=1)]
    elif key == "mini_batch_size" and not _optional(hint):
        hint = Annotated[int, Field(ge=1)]
    return checked(f"loss_arguments: {key}", value, hint)
