"""The losses by their names in params.yaml, with their labels and keyword arguments; two of them are our own."""

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
"""Weighting schemes of the lambda loss."""
MIXING = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
"""Activations that mix several numbers; they are left out because the scores of a batch are independent."""
ACTIVATIONS = {"Identity": nn.Identity} | {
    name: getattr(nn, name) for name in nn.modules.activation.__all__ if name not in MIXING
}
MODULES: dict[str, Mapping[str, type[nn.Module]]] = {
    "activation_fn": ACTIVATIONS,
    "weighting_scheme": SCHEMES,
    "lambda_weight": {"PListMLELambdaWeight": losses.PListMLELambdaWeight},
}
"""Arguments whose values are modules; params.yaml gives the names of their classes."""
TENSORS = ("pos_weight", "weight")
"""Arguments whose values are tensors; params.yaml gives numbers."""
DEPRECATED = ("size_average", "reduce")
"""Arguments of torch's losses that `reduction` has replaced."""
TOP_LEVEL = {("group_softmax", "distillation"): "distillation"}
"""Arguments that are keys of params.yaml of their own, by loss and argument."""


class GroupSoftmaxLoss(nn.Module):
    """Cross-entropy of the relevant passage within its group, mixed with distillation from a teacher.

    The first part is the localized contrastive estimation of Gao et al. (ECIR 2021), the second the
    Kullback-Leibler divergence from the teacher's distribution over the group to the model's.

    Args:
        model: has one output and an identity activation.
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
            inputs: the queries, and for each query its passages with the relevant one first; all groups have
                the same size.
            labels: the teacher's logit of each passage, per query.
            prompt: passed to the model's tokeniser.
            task: passed to the model's tokeniser.
        """
        queries, groups = inputs
        pairs = [(query, passage) for query, passages in zip(queries, groups, strict=True) for passage in passages]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), self.model.device)
        logits = self.model(features)["scores"].float().view(len(groups), -1)
        teacher = torch.stack(list(labels)).to(logits.device, torch.float32)
        contrastive = F.cross_entropy(logits, torch.zeros(len(groups), dtype=torch.long, device=logits.device))
        divergence = F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
        return (1 - self.distillation) * contrastive + self.distillation * divergence


class InBatchSoftmaxLoss(nn.Module):
    """Cross-entropy, on scaled cosines, of the relevant passage among those of the batch, and of its query likewise.

    Rows with the same label share a relevant passage, or nearly do, and are not negatives of each other: in a
    batch of similar queries the plain in-batch loss would push relevant passages away.

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
            sentence_features: tokenised queries and their tokenised relevant passages, row by row.
            labels: group of each row; shape (batch,).
        """
        queries, passages = (
            F.normalize(self.model(features)["sentence_embedding"].float(), dim=-1) for features in sentence_features
        )
        return in_batch_softmax(queries, passages, labels, self.scale)


def in_batch_softmax(queries: Tensor, passages: Tensor, groups: Tensor, scale: float) -> Tensor:
    """Mean of two cross-entropies: of the relevant passage among those of the batch, and of its query likewise.

    Args:
        queries: normalised vectors; shape (batch, dimensions).
        passages: normalised vectors of the relevant passages, row by row; same shape.
        groups: shape (batch,); rows of one group are not negatives of each other.
        scale: factor of the cosines.
    """
    cosines = scale * queries @ passages.T
    same = (groups[:, None] == groups[None, :]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    cosines = cosines.masked_fill(same, float("-inf"))
    positions = torch.arange(len(groups), device=groups.device)
    return (F.cross_entropy(cosines, positions) + F.cross_entropy(cosines.T, positions)) / 2


class Loss(NamedTuple):
    """The class of a loss, and the rows and labels that it takes."""

    make: type[nn.Module]
    shape: Literal["pairs", "negatives", "lists"]
    """A row has a query and a passage; a query, its relevant passage and its negatives; or a query and a list of all
    its passages."""
    labels: Literal["binary", "class", "relevance", "teacher", "none"]
    """binary: 1.0 or 0.0; class: 1 or 0; relevance: the label of the data; teacher: the teacher's logits."""
    activation: type[nn.Module] | None = nn.Identity
    """Activation of the model's output within the loss; the model itself keeps its logits, which the fusion adds up.
    None: the loss has no such argument."""
    teacher_labels: Literal["logits", "probabilities"] | None = None
    """The labels with `targets: teacher`; None: the loss does not support it."""
    inner: type[nn.Module] | None = None
    """The loss of torch that takes further keyword arguments."""
    outputs: int = 1
    """Outputs of the model during training."""


LOSSES = {
    "group_softmax": Loss(GroupSoftmaxLoss, "lists", "teacher", None),
    "binary_cross_entropy": Loss(
        losses.BinaryCrossEntropyLoss, "pairs", "binary", teacher_labels="probabilities", inner=nn.BCEWithLogitsLoss
    ),
    "cross_entropy": Loss(losses.CrossEntropyLoss, "pairs", "class", inner=nn.CrossEntropyLoss, outputs=2),
    "multiple_negatives_ranking": Loss(losses.MultipleNegativesRankingLoss, "negatives", "none", nn.Sigmoid),
    "cached_multiple_negatives_ranking": Loss(
        losses.CachedMultipleNegativesRankingLoss, "negatives", "none", nn.Sigmoid
    ),
    "mse": Loss(losses.MSELoss, "pairs", "teacher", teacher_labels="logits", inner=nn.MSELoss),
    "margin_mse": Loss(losses.MarginMSELoss, "negatives", "teacher", teacher_labels="logits", inner=nn.MSELoss),
    "lambda": Loss(losses.LambdaLoss, "lists", "relevance", teacher_labels="probabilities"),
    "list_net": Loss(losses.ListNetLoss, "lists", "relevance", teacher_labels="logits"),
    "list_mle": Loss(losses.ListMLELoss, "lists", "relevance", teacher_labels="logits"),
    "plist_mle": Loss(losses.PListMLELoss, "lists", "relevance", teacher_labels="logits"),
    "rank_net": Loss(losses.RankNetLoss, "lists", "relevance", teacher_labels="logits"),
    "adr_mse": Loss(losses.ADRMSELoss, "lists", "relevance", teacher_labels="logits"),
}


def needs_teacher(name: str, targets: str, distillation: float) -> bool:
    """Whether a loss takes a teacher's scores.

    Args:
        name: the loss.
        targets: `relevance` or `teacher`.
        distillation: weight of the teacher in group_softmax.

    Raises:
        UserError: the loss does not support `targets: teacher`.
    """
    kind = LOSSES[name]
    if targets == "teacher" and kind.teacher_labels is None:
        todo = "set distillation: 1" if name == "group_softmax" else "set targets: relevance"
        raise UserError(f"params.yaml: targets: teacher: the loss {name} takes no scores as its targets; {todo}")
    if name == "group_softmax":
        return distillation > 0
    return targets == "teacher" or kind.labels == "teacher"


def loss_arguments(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a loss's class, with modules in place of their names and tensors in place of numbers.

    Args:
        name: the loss.
        values: values in params.yaml by the names of the class's arguments; `pos_weight: auto` is left as it is.

    Raises:
        UserError: an argument is unknown or its value is not allowed.
    """
    hints = _signature(name)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if top_level := TOP_LEVEL.get((name, key)):
            raise UserError(f"params.yaml: loss_arguments: {key}: give it as the key {top_level} of params.yaml")
        if key not in hints:
            has = f"it has {', '.join(hints)}" if hints else "it has none"
            raise UserError(f"params.yaml: loss_arguments: {name} has no argument '{key}'; {has}")
        if key in MODULES:
            arguments[key] = None if value is None and _optional(hints[key]) else _module(key, value)
        elif key in TENSORS:
            arguments[key] = _tensor(key, value, classes=LOSSES[name].outputs)
        else:
            arguments[key] = _value(key, value, hints[key])
    return arguments


def make_loss(
    name: str, model: CrossEncoder, arguments: Mapping[str, Any], *, distillation: float, group_size: int
) -> nn.Module:
    """A loss by its name in params.yaml.

    Args:
        name: one of `LOSSES`.
        model: the model to train, with as many outputs as the loss needs.
        arguments: see `loss_arguments`. The default weight of relevant passages in binary_cross_entropy is `auto`,
            which balances them with the negatives.
        distillation: weight of the teacher in group_softmax.
        group_size: passages per query.

    Raises:
        UserError: see `loss_arguments`.
    """
    kind = LOSSES[name]
    keywords = loss_arguments(name, arguments)
    if name == "group_softmax":
        keywords["distillation"] = distillation
    if name == "binary_cross_entropy" and keywords.setdefault("pos_weight", "auto") == "auto":
        keywords["pos_weight"] = torch.tensor(float(group_size - 1))
    if kind.activation is not None:
        keywords.setdefault("activation_fn", kind.activation())
    return kind.make(model, **keywords)


def _signature(name: str) -> dict[str, Any]:
    """Types of the arguments of a loss, by their names."""
    kind = LOSSES[name]
    parameters: dict[str, Any] = {}
    for part in filter(None, (kind.make, kind.inner)):
        hints = typing.get_type_hints(part.__init__)
        for parameter in inspect.signature(part).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in ("model", *DEPRECATED):
                continue
            hint = hints.get(parameter.name, Any)
            # the library annotates some arguments as int although their default is a float, such as 10.0
            mistaken = hint is int and isinstance(parameter.default, float)
            parameters.setdefault(parameter.name, float if mistaken else hint)
    return {key: hint for key, hint in parameters.items() if (name, key) not in TOP_LEVEL}


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _module(key: str, value: object) -> nn.Module:
    classes = MODULES[key]
    name: object = value
    arguments: object = {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, arguments),) = value.items()
    if not isinstance(name, str) or name not in classes or not isinstance(arguments, Mapping):
        raise UserError(
            f"params.yaml: loss_arguments: {key}: {value!r} is not allowed: give the name of a class, or "
            f"{{NAME: {{argument: value}}}}; the classes are {', '.join(classes)}"
        )
    try:
        return classes[name](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: loss_arguments: {key}: {name}: {error}") from None


def _tensor(key: str, value: object, *, classes: int) -> Tensor | str | None:
    if value is None or (key == "pos_weight" and value == "auto"):
        return value
    hint = Annotated[list[float], Field(min_length=classes, max_length=classes)] if classes > 1 else float
    return torch.tensor(checked(f"loss_arguments: {key}", value, hint), dtype=torch.float32)


def _value(key: str, value: object, hint: Any) -> object:
    if key == "reduction":
        hint = Literal["mean", "sum"]  # a step needs a single number
    elif key in ("k", "num_negatives"):
        hint = Annotated[int, Field(ge=1)] | None
    elif key == "label_smoothing":
        hint = Annotated[float, Field(ge=0, lt=1)]
    elif key == "mini_batch_size" and not _optional(hint):
        hint = Annotated[int, Field(ge=1)]
    return checked(f"loss_arguments: {key}", value, hint)
