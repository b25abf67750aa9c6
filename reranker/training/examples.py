"""Turn the mined passages into the rows of a loss of the cross-encoder, with the scores of a teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from sentence_transformers import CrossEncoder
from torch import nn

from reranker.common.artifacts import read_scores
from reranker.common.errors import UserError
from reranker.inference import fusion
from reranker.inference.compute import Compute
from reranker.inference.loading import load_cross_encoder
from reranker.inference.scoring import score_pairs
from reranker.training.losses import LOSSES, loss_arguments, make_loss, needs_teacher

SIGNALS = {
    "fused": fusion.SIGNALS,
    "biencoder": ("biencoder_score",),
    "static": ("static_score",),
    "bm25": ("bm25",),
}
"""Teachers whose scores mining has already computed, and the columns of these scores."""
FILES = (".parquet", ".csv")
"""Endings of files with a teacher's scores."""


def training_groups(negatives: pd.DataFrame, *, graded: bool) -> pd.DataFrame:
    """Each query with its passages, the relevant one first.

    A list-wise loss needs groups of one size. Queries with fewer passages than the largest group are
    filled up by repeating their last passage, which in a softmax only gives that passage more weight.

    Args:
        negatives: columns query_id, query, text (of the passage), kind (one `positive` per query; `graded` passages
            are relevant to a lower degree; all others are negatives), relevance, and teacher (a logit) where needed.
        graded: keep the graded passages, for a loss that takes more than two degrees of relevance.

    Returns:
        Columns query, passages, relevance, and teacher if the argument has it; sorted by query_id.
    """
    numbers = [column for column in ("relevance", "teacher") if column in negatives]
    table = negatives if graded else negatives[negatives["kind"] != "graded"]
    table = table.assign(negative=table["kind"] != "positive").sort_values(["query_id", "negative"], kind="stable")
    lists = {column: (column, list) for column in numbers}
    groups = table.groupby("query_id").agg(query=("query", "first"), passages=("text", list), **lists)
    size = int(groups["passages"].map(len).max())
    for column in ("passages", *numbers):
        groups[column] = [values + values[-1:] * (size - len(values)) for values in groups[column]]
    return groups.reset_index(drop=True)


class TrainingData(NamedTuple):
    """The rows and the losses that the trainer takes."""

    data: Dataset | DatasetDict
    """One set of rows, or one for each source that has a loss of its own."""
    loss: nn.Module | dict[str, nn.Module]
    rows_per_query: int
    """Rows of the data for each query, by which the batch size is multiplied; 1 where the losses differ in it."""
    queries: int
    pairs: int
    """Passages of all queries, with the repeated ones that fill up a group."""


class LossChoice(NamedTuple):
    """The name of a loss and its keyword arguments."""

    name: str
    arguments: Mapping[str, Any]


def choose_losses(
    loss: str | Mapping[str, str], arguments: Mapping[str, Any], sources: Sequence[str]
) -> dict[str, LossChoice]:
    """The loss of each source; one loss for all sources has an empty name.

    Args:
        loss: the name of a loss, or such names by source.
        arguments: keyword arguments of the loss, or such arguments by source.
        sources: the sources that have mined queries.

    Raises:
        UserError: the names do not fit the sources, losses for different models are mixed, or the loss does not have
            an argument.
    """
    if isinstance(loss, str):
        loss, arguments = {"": loss}, {"": arguments}
    else:
        for source in sorted({*sources} - {*loss}):
            raise UserError(f"params.yaml: loss: no loss for the source '{source}', which has mined queries; add it")
        for source in sorted({*loss} - {*sources}):
            raise UserError(f"params.yaml: loss: no query is mined for '{source}'; there are {', '.join(sources)}")
        for source in sorted({*arguments} - {*loss}):
            raise UserError(f"params.yaml: loss_arguments: '{source}' is no source of loss; give them by source, too")
        if len({LOSSES[name].outputs for name in loss.values()}) > 1:
            raise UserError("params.yaml: loss: cross_entropy trains two outputs, the others one: all or none")
    for source, values in arguments.items():
        if not isinstance(values, Mapping):
            raise UserError(f"params.yaml: loss_arguments: {source}: must be `argument: value` lines of its loss")
        loss_arguments(loss[source], values)
    return {source: LossChoice(name, arguments.get(source, {})) for source, name in loss.items()}


def make_training_data(
    negatives: pd.DataFrame,
    model: CrossEncoder,
    losses: Mapping[str, LossChoice],
    *,
    targets: str,
    distillation: float,
    seed: int,
) -> TrainingData:
    """The rows and the losses for mined passages.

    Args:
        negatives: see `training_groups`; also the column source where sources have losses of their own.
        model: the model to train.
        losses: see `choose_losses`.
        targets: `relevance` or `teacher`.
        distillation: weight of the teacher in group_softmax.
        seed: seed of the order of the queries.
    """
    data, modules, per_query = {}, {}, set()
    queries = pairs = 0
    for source, (name, arguments) in losses.items():
        rows = negatives if source == "" else negatives[negatives["source"] == source]
        groups = training_groups(rows, graded=LOSSES[name].labels == "relevance")
        groups = groups.sample(frac=1, random_state=seed)
        size = len(groups["passages"].iloc[0])
        modules[source] = make_loss(name, model, arguments, distillation=distillation, group_size=size)
        with_teacher = needs_teacher(name, targets, distillation)
        data[source] = group_rows(groups, name, targets="teacher" if with_teacher else "relevance")
        per_query.add(rows_per_query(name, size))
        queries += len(groups)
        pairs += len(groups) * size
    of_query = per_query.pop() if len(per_query) == 1 else 1
    if "" in data:
        return TrainingData(data[""], modules[""], of_query, queries, pairs)
    return TrainingData(DatasetDict(data), modules, of_query, queries, pairs)


def group_rows(groups: pd.DataFrame, loss: str, targets: str = "relevance") -> Dataset:
    """Training data in the shape that a loss needs.

    Args:
        groups: columns query, passages (a list, the relevant one first), relevance (a number per passage) and, where
            needed, teacher (a logit per passage).
        loss: a name of params.yaml.
        targets: `relevance` or `teacher`; the source of the labels, where the loss takes either.

    Returns:
        Columns query and passage, and a label per row; or query, positive, negative_1, … and perhaps labels; or query,
        passages and labels, see `Loss.shape`.
    """
    kind = LOSSES[loss]
    labels = _labels(groups, loss, targets)
    if kind.shape == "pairs":
        pairs = [
            (query, passage, label)
            for query, passages, of_group in zip(groups["query"], groups["passages"], labels, strict=True)
            for passage, label in zip(passages, of_group, strict=True)
        ]
        return Dataset.from_pandas(pd.DataFrame(pairs, columns=["query", "passage", "label"]))
    if kind.shape == "negatives":
        positive, *negatives = zip(*groups["passages"], strict=True)
        columns = {"query": list(groups["query"]), "positive": list(positive)}
        columns |= {f"negative_{number}": list(texts) for number, texts in enumerate(negatives, start=1)}
        return Dataset.from_dict(columns if kind.labels == "none" else columns | {"label": labels})
    passages = [list(of_query) for of_query in groups["passages"]]
    if kind.labels == "relevance":  # list_mle and plist_mle take the order of the passages as the true ranking
        order = [np.argsort(-np.asarray(of_query), kind="stable") for of_query in labels]
        passages = [[of_query[at] for at in places] for of_query, places in zip(passages, order, strict=True)]
        labels = [[of_query[at] for at in places] for of_query, places in zip(labels, order, strict=True)]
    return Dataset.from_dict({"query": list(groups["query"]), "passages": passages, "label": labels})


def _labels(groups: pd.DataFrame, loss: str, targets: str) -> list[list[float]]:
    """A label for each passage of each query."""
    kind = LOSSES[loss]
    if kind.labels == "class":
        return [[int(place == 0) for place in range(len(of_query))] for of_query in groups["passages"]]
    if targets == "teacher":
        scores = probabilities(groups["teacher"]) if kind.teacher_labels == "probabilities" else groups["teacher"]
        return [[float(number) for number in of_group] for of_group in scores]
    if kind.labels == "binary":
        return [[float(place == 0) for place in range(len(of_query))] for of_query in groups["passages"]]
    # list_net takes a softmax of the labels: 10 and 0 make the relevant passage's target nearly 1
    factor = 10.0 if loss == "list_net" else 1.0
    return [[factor * float(number) for number in of_group] for of_group in groups["relevance"]]


def probabilities(teacher: pd.Series) -> list[NDArray[np.float64]]:
    """The probability that each passage is relevant: the sigmoid of the teacher's logits minus an offset.

    Only differences between the logits of a query are meaningful. With the chosen offset, the expected number of
    relevant passages is the number of queries, each of which has one. The slope is 1, as in the softmax over the query.

    Args:
        teacher: logits of the passages of each query.
    """
    logits = np.concatenate([np.asarray(of_query, dtype=float) for of_query in teacher])
    share = len(teacher) / len(logits)

    def surplus(offset: float) -> float:
        return float(expit(logits - offset).mean() - share)

    if len(logits) == len(teacher):  # there are no negatives
        return [np.ones(len(of_query)) for of_query in teacher]
    offset = brentq(surplus, logits.min() - 50, logits.max() + 50)
    return [expit(np.asarray(of_query, dtype=float) - offset) for of_query in teacher]


def rows_per_query(loss: str, group_size: int) -> int:
    """The number of rows of `group_rows` for a query: one for each pair in losses of pairs, else one."""
    return group_size if LOSSES[loss].shape == "pairs" else 1


def is_file(teacher: str) -> bool:
    """Whether a name in params.yaml is a file of scores."""
    return Path(teacher).suffix in FILES


def logits(
    teacher: str,
    negatives: pd.DataFrame,
    dev: pd.DataFrame,
    judgments: pd.DataFrame,
    compute: Compute,
) -> NDArray[np.float64]:
    """A teacher's scores of the mined pairs.

    Args:
        teacher: one of `SIGNALS`, a cross-encoder, or a file of scores.
        negatives: columns of the signals, query and passage (whole texts).
        dev: see `fusion.fit_weights`.
        judgments: see `fusion.fit_weights`.
        compute: see `from_cross_encoder`.

    Raises:
        UserError: see `from_cross_encoder` and `reranker.common.artifacts.read_scores`.
        ValueError: see `fusion.fit_weights`.
    """
    if is_file(teacher):
        return read_scores(Path(teacher), negatives).to_numpy(float)
    if teacher in SIGNALS:
        return from_signals(teacher, negatives, dev, judgments)
    texts = negatives["query"].tolist(), negatives["passage"].tolist()
    return from_cross_encoder(teacher, *texts, compute)


def from_signals(
    teacher: str, negatives: pd.DataFrame, dev: pd.DataFrame, judgments: pd.DataFrame
) -> NDArray[np.float64]:
    """Logits from signals: their weighted sum, with weights that are fitted on dev.

    Args:
        teacher: one of `SIGNALS`.
        negatives: the pairs to score; columns of the signals.
        dev: see `fusion.fit_weights`.
        judgments: see `fusion.fit_weights`.

    Raises:
        ValueError: see `fusion.fit_weights`.
    """
    return fusion.fuse(negatives, fusion.fit_weights(dev, judgments, SIGNALS[teacher]))


def from_cross_encoder(
    teacher: str, queries: Sequence[str], passages: Sequence[str], compute: Compute
) -> NDArray[np.float64]:
    """Logits of a cross-encoder: its scores without its activation.

    Args:
        teacher: a folder or a Hub id.
        queries: as many as passages.
        passages: whole texts, which the teacher truncates to its own length.
        compute: how the teacher computes. OpenVINO is used only in float32, where the backend is openvino or auto;
            otherwise torch computes.

    Raises:
        UserError: there is no usable model with this name, it has several outputs, or it does not support `compute`.
    """
    # in float32 OpenVINO's scores differ from torch's by at most 1e-5; with fewer digits each library has its own
    if compute.precision != "float32" or compute.backend not in ("auto", "openvino"):
        compute = compute.training()
    model = load_cross_encoder(teacher, "params.yaml: teacher:", compute)
    model.activation_fn = nn.Identity()
    return score_pairs(model, queries, passages, label="train: teacher", compute=compute)
