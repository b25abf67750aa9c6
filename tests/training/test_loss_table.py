"""Every loss by its name: its rows, its arguments, and that a model learns from it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import DatasetDict
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses
from torch import nn

from documented import documented
from reranker.common.errors import UserError
from reranker.common.params import LossName
from reranker.inference.loading import one_output
from reranker.inference.scoring import score_pairs
from reranker.retrieval.bm25 import words
from reranker.training.arguments import NOTHING, Further
from reranker.training.cross_encoder import Curve, build_cross_encoder, tune_cross_encoder
from reranker.training.evaluator import DevRanking, EvaluatorSequence
from reranker.training.examples import LossChoice, choose_losses, group_rows, make_training_data
from reranker.training.losses import LOSSES, SCHEMES, loss_arguments, make_loss, needs_teacher
from reranker.training.trainer import Schedule, seed_everything

SCHEDULE = Schedule(lr=2e-3, epochs=8, batch_size=4, warmup=0.0, weight_decay=0.0, precision="float32", seed=5)
ABOUT = {
    "sort a list": "order numbers in a list",
    "find the path": "the shortest path in a graph",
    "read a csv file": "read the table from a file",
    "red apples": "green apples",
}
QUERIES = [query for query in ABOUT for _ in ABOUT]
PASSAGES = [
    passage for right in ABOUT.values() for passage in [right, *(other for other in ABOUT.values() if other != right)]
]
MINED = pd.DataFrame({"query": QUERIES, "text": PASSAGES}).assign(
    query_id=QUERIES,
    kind=["positive", "hard", "hard", "hard"] * 4,
    relevance=[1, 0, 0, 0] * 4,
    teacher=[2.0, 0.5, -0.5, -1.0] * 4,
    source=["faq"] * 4 + ["docs"] * 12,
)
GROUPS = pd.DataFrame(
    {
        "query": ["sort a list", "find the path"],
        "passages": [["a", "b", "c"], ["d", "e", "f"]],
        "relevance": [[1, 0, 0], [2, 1, 3]],
        "teacher": [[2.0, 0.5, -0.5], [1.0, 3.0, -1.0]],
    }
)


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    """Real text: 12 queries with four passages each."""
    return documented(12)


@pytest.fixture
def mined(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs with 5 queries of the source faq, and with a teacher that prefers the relevant passage."""
    faq = pairs["query_id"].isin(pairs["query_id"].unique()[:5])
    return pairs.assign(source=np.where(faq, "faq", "docs"), teacher=pairs["teacher"] + 2 * pairs["relevance"])


@pytest.fixture(scope="module")
def reader(pairs: pd.DataFrame, encoder_of: Callable[[Iterable[str]], str]) -> str:
    """The folder of a BERT with random weights whose vocabulary has the words of the pairs."""
    return encoder_of(sorted({*words(" ".join([*pairs["query"], *pairs["text"]]))}))


@pytest.fixture
def dev(mined: pd.DataFrame) -> DevRanking:
    """The evaluator of the ranking of the mined pairs."""
    return DevRanking(mined, mined.loc[mined["relevance"] > 0, ["query_id", "passage_id", "relevance"]])


class Trained:
    """A tiny cross-encoder after its training on the mined passages; in the end it has one output."""

    def __init__(
        self,
        reader: str,
        mined: pd.DataFrame,
        dev: DevRanking,
        loss: str | dict[str, str],
        arguments: dict[str, object] | None = None,
        targets: str = "relevance",
        further: Further = NOTHING,
    ) -> None:
        seed_everything(5)
        choices = choose_losses(loss, arguments or {}, ["docs", "faq"])
        outputs = max(LOSSES[one.name].outputs for one in choices.values())
        self.model = build_cross_encoder(reader, 32, outputs=outputs)
        training = make_training_data(mined, self.model, choices, targets=targets, distillation=0.5, seed=5)
        self.before = dev.ndcg(one_output(self.model) if outputs > 1 else self.model)
        self.curve: Curve = tune_cross_encoder(
            self.model,
            training.data,
            training.loss,
            SCHEDULE._replace(batch_size=SCHEDULE.batch_size * training.rows_per_query),
            evaluator=EvaluatorSequence({"retrieved": dev}),
            evaluations=2,
            patience=9,
            head_lr=1e-2,
            label="train",
            further=further,
        )
        if outputs > 1:
            self.model = one_output(self.model)


def scores(model: CrossEncoder, pairs: pd.DataFrame) -> np.ndarray:
    return score_pairs(model, pairs["query"].tolist(), pairs["text"].tolist(), label="")


def test_table_and_schema_have_the_same_names_and_every_loss_of_the_library():
    assert list(LOSSES) == list(get_args(LossName))
    parts = {getattr(losses, name) for name in losses.__all__ if name.endswith("Loss")}
    assert parts <= {kind.make for kind in LOSSES.values()}
    assert {f"{name}Scheme" for name in ("NoWeighting", "NDCGLoss1", "NDCGLoss2", "LambdaRank", "NDCGLoss2PP")} == set(
        SCHEMES
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "arguments"),
    [(loss, {}) for loss in LOSSES] + [("lambda", {"weighting_scheme": scheme}) for scheme in sorted(SCHEMES)],
)
def test_model_learns_from_the_loss_and_is_the_same_when_loaded_again(
    loss, arguments, reader: str, mined: pd.DataFrame, dev, tmp_path: Path
):
    trained = Trained(reader, mined, dev, loss, arguments)
    curve = trained.curve.loss["loss"]
    assert curve.iloc[-3:].mean() < 0.9 * curve.iloc[:3].mean()  # the last epoch and the first
    assert trained.curve.dev["ndcg@10"].max() > trained.before
    # the checkpoint was measured with the single output that the model has now
    assert dev.ndcg(trained.model) == pytest.approx(trained.curve.dev["ndcg@10"].max())
    trained.model.save_pretrained(str(tmp_path), create_model_card=False)
    again = CrossEncoder(str(tmp_path))
    assert again.num_labels == 1
    np.testing.assert_allclose(scores(again, mined), scores(trained.model, mined), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "least"),
    # with labels only it is 0.2; losses of pairs follow the teacher more slowly
    [("binary_cross_entropy", 0.35), ("margin_mse", 0.7), ("lambda", 0.7), ("list_net", 0.7)],
)
def test_model_learns_the_order_of_its_teacher(loss, least, reader: str, mined: pd.DataFrame, dev):
    mined["teacher"] -= 2 * mined["relevance"]  # BM25 alone: the labels do not tell its order
    trained = Trained(reader, mined, dev, loss, targets="teacher")
    teacher = mined["teacher"].to_numpy().reshape(-1, 4)
    learned = zip(scores(trained.model, mined).reshape(-1, 4), teacher, strict=True)
    assert np.mean([np.corrcoef(*rows)[0, 1] for rows in learned]) > least


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "batches"), [("proportional", 4), ("round_robin", 4)])
def test_sources_are_trained_with_losses_of_their_own(reader: str, mined: pd.DataFrame, dev, sampler, batches):
    # faq has 5 queries in 2 batches, docs has 7 queries in 2 batches
    by_source = {"faq": "lambda", "docs": "group_softmax"}
    further = Further({"multi_dataset_batch_sampler": sampler})
    trained = Trained(reader, mined, dev, by_source, {"faq": {"k": 2}}, further=further)
    assert trained.curve.steps == SCHEDULE.epochs * batches
    assert trained.curve.dev["ndcg@10"].max() > trained.before


def test_two_outputs_become_one_with_the_order_and_the_chance_of_the_second_class(encoder: str):
    seed_everything(3)
    model = build_cross_encoder(encoder, 32, outputs=2)
    logits = np.asarray(model.predict(list(zip(QUERIES, PASSAGES, strict=True)), show_progress_bar=False))
    chance = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    single = scores(one_output(model), MINED)
    np.testing.assert_allclose(1 / (1 + np.exp(-single)), chance, rtol=1e-5)
    assert model.num_labels == 2


ROWS = {
    "group_softmax": [("sort a list", ["a", "b", "c"], [2.0, 0.5, -0.5])],
    "binary_cross_entropy": [("sort a list", "a", 1.0), ("sort a list", "b", 0.0), ("sort a list", "c", 0.0)],
    "cross_entropy": [("sort a list", "a", 1), ("sort a list", "b", 0), ("sort a list", "c", 0)],
    "multiple_negatives_ranking": [("sort a list", "a", "b", "c")],
    "cached_multiple_negatives_ranking": [("sort a list", "a", "b", "c")],
    "mse": [("sort a list", "a", 2.0), ("sort a list", "b", 0.5), ("sort a list", "c", -0.5)],
    "margin_mse": [("sort a list", "a", "b", "c", [2.0, 0.5, -0.5])],
    "list_net": [("sort a list", ["a", "b", "c"], [10.0, 0.0, 0.0])],
}
LISTS = [("sort a list", ["a", "b", "c"], [1.0, 0.0, 0.0])]


def rows(loss: str, groups: pd.DataFrame, targets: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in group_rows(groups, loss, targets)]


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_have_the_shape_and_the_numbers_that_the_loss_wants(loss):
    targets = "teacher" if needs_teacher(loss, "relevance", 0.5) else "relevance"
    assert rows(loss, GROUPS.head(1), targets) == ROWS.get(loss, LISTS)


@pytest.mark.parametrize("loss", ["lambda", "list_mle", "plist_mle", "rank_net", "adr_mse"])
def test_lists_have_the_grades_and_the_most_relevant_first(loss):
    assert rows(loss, GROUPS.tail(1), "relevance") == [("find the path", ["f", "d", "e"], [3.0, 2.0, 1.0])]
    assert rows("list_net", GROUPS.tail(1), "relevance") == [("find the path", ["f", "d", "e"], [30.0, 20.0, 10.0])]


def test_targets_of_the_teacher_are_its_logits_or_its_probabilities_in_its_order():
    assert rows("list_mle", GROUPS.tail(1), "teacher") == [("find the path", ["e", "d", "f"], [3.0, 1.0, -1.0])]
    pairs = rows("binary_cross_entropy", GROUPS, "teacher")
    chance = np.array([row[2] for row in pairs])
    assert chance.sum() == pytest.approx(2)  # as many as there are queries
    logits = np.log(chance / (1 - chance))
    np.testing.assert_allclose(np.diff(logits), np.diff([2.0, 0.5, -0.5, 1.0, 3.0, -1.0]))
    np.testing.assert_allclose(sorted(rows("lambda", GROUPS, "teacher")[1][2]), sorted(chance[3:]))


def test_teacher_is_needed_where_the_loss_takes_it():
    fed = {name for name in LOSSES if needs_teacher(name, "relevance", 0.5)}
    assert fed == {"group_softmax", "mse", "margin_mse"}
    assert not needs_teacher("group_softmax", "relevance", 0.0)
    assert needs_teacher("lambda", "teacher", 0.5)


@pytest.mark.parametrize(
    ("loss", "todo"),
    [
        ("group_softmax", "set distillation: 1"),
        ("cross_entropy", "set targets: relevance"),
        ("multiple_negatives_ranking", "set targets: relevance"),
        ("cached_multiple_negatives_ranking", "set targets: relevance"),
    ],
)
def test_loss_that_takes_no_targets_of_a_teacher_says_what_to_do(loss, todo):
    with pytest.raises(UserError, match=f"targets: teacher: the loss {loss} takes no scores as its targets; {todo}"):
        needs_teacher(loss, "teacher", 0.5)


def made(encoder: str, loss: str, **arguments: object) -> nn.Module:
    model = build_cross_encoder(encoder, 32, outputs=LOSSES[loss].outputs)
    return make_loss(loss, model, arguments, distillation=0.25, group_size=6)


def test_arguments_reach_the_loss(encoder: str):
    assert made(encoder, "lambda", k=3, sigma=2, reduction_log="natural").k == 3
    assert isinstance(made(encoder, "lambda").weighting_scheme, losses.NDCGLoss2PPScheme)
    assert isinstance(made(encoder, "lambda", weighting_scheme=None).weighting_scheme, losses.NoWeightingScheme)
    assert made(encoder, "lambda", weighting_scheme={"NDCGLoss2PPScheme": {"mu": 4}}).weighting_scheme.mu == 4
    for name, scheme in SCHEMES.items():
        assert type(made(encoder, "lambda", weighting_scheme=name).weighting_scheme) is scheme
    assert made(encoder, "plist_mle", lambda_weight=None).lambda_weight is None
    assert isinstance(made(encoder, "mse", activation_fn="Tanh").activation_fn, nn.Tanh)
    assert (
        made(encoder, "mse", activation_fn={"LeakyReLU": {"negative_slope": 0.5}}).activation_fn.negative_slope == 0.5
    )
    assert made(encoder, "mse", reduction="sum").loss_fct.reduction == "sum"
    ranking = made(encoder, "cached_multiple_negatives_ranking", scale=3, num_negatives=None, mini_batch_size=2)
    assert (ranking.scale, ranking.num_negatives, ranking.mini_batch_size) == (3, None, 2)
    assert made(encoder, "cross_entropy", weight=[1, 5], label_smoothing=0.1).ce_loss.weight.tolist() == [1, 5]
    assert made(encoder, "group_softmax").distillation == 0.25


def test_activation_is_that_of_the_library_unless_another_is_given(encoder: str):
    for name, kind in LOSSES.items():
        if kind.activation is not None:
            model = build_cross_encoder(encoder, 32, outputs=kind.outputs)
            assert type(kind.make(model).activation_fn) is kind.activation, name
            assert type(made(encoder, name).activation_fn) is kind.activation, name


def test_right_passages_weigh_as_much_as_the_others_unless_a_weight_is_given(encoder: str):
    def weight(**arguments: object) -> torch.Tensor | None:
        return made(encoder, "binary_cross_entropy", **arguments).pos_weight

    assert [weight(), weight(pos_weight="auto"), weight(pos_weight=2)] == [5, 5, 2]
    assert weight(pos_weight=None) is None


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        ("lambda", {"kk": 1}, "lambda has no argument 'kk'; it has weighting_scheme, k, sigma, eps, reduction_log,"),
        ("lambda", {"k": 0}, "k: 0 is not allowed: it should be greater than or equal to 1"),
        ("lambda", {"k": True}, "k: True is not allowed: it should be a valid integer"),
        ("lambda", {"sigma": "high"}, "sigma: 'high' is not allowed: it should be a valid number"),
        (
            "lambda",
            {"weighting_scheme": "NDCG"},
            "weighting_scheme: 'NDCG' is not allowed: give the name of a class, or",
        ),
        ("lambda", {"weighting_scheme": {"NDCGLoss2PPScheme": {"nu": 1}}}, "weighting_scheme: NDCGLoss2PPScheme: "),
        ("mse", {"activation_fn": None}, "activation_fn: None is not allowed: give the name of a class"),
        ("mse", {"activation_fn": "Softmax"}, "activation_fn: 'Softmax' is not allowed: give the name of a class"),
        ("mse", {"reduction": "none"}, "reduction: 'none' is not allowed: it should be 'mean' or 'sum'"),
        ("mse", {"size_average": True}, "mse has no argument 'size_average'; it has activation_fn, reduction"),
        (
            "binary_cross_entropy",
            {"pos_weight": "lots"},
            "pos_weight: 'lots' is not allowed: it should be a valid number",
        ),
        ("cross_entropy", {"label_smoothing": 7.0}, "label_smoothing: 7.0 is not allowed: it should be less than 1"),
        ("cross_entropy", {"weight": [1, 2, 3]}, "weight: [1, 2, 3] is not allowed: it "),
        (
            "cached_multiple_negatives_ranking",
            {"mini_batch_size": 0},
            "mini_batch_size: 0 is not allowed: it should be",
        ),
        ("multiple_negatives_ranking", {"num_negatives": 0}, "num_negatives: 0 is not allowed: it should be greater"),
        ("group_softmax", {"distillation": 1}, "distillation: give it as the key distillation of params.yaml"),
        ("group_softmax", {"k": 1}, "group_softmax has no argument 'k'; it has none"),
    ],
)
def test_argument_that_is_not_allowed_is_named_with_what_is(loss, arguments, message):
    with pytest.raises(UserError) as caught:
        loss_arguments(loss, arguments)
    assert str(caught.value).startswith(f"params.yaml: loss_arguments: {message}")
    assert "\n" not in str(caught.value)


def test_one_loss_is_for_all_sources_and_several_for_one_each():
    assert choose_losses("lambda", {"k": 2}, ["docs", "faq"]) == {"": LossChoice("lambda", {"k": 2})}
    several = choose_losses({"faq": "lambda", "docs": "mse"}, {"faq": {"k": 2}}, ["docs", "faq"])
    assert several == {"faq": LossChoice("lambda", {"k": 2}), "docs": LossChoice("mse", {})}


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        ({"faq": "lambda"}, {}, "loss: no loss for the source 'docs', which has mined queries; add it"),
        ({"faq": "mse", "docs": "mse", "x": "mse"}, {}, "loss: no query is mined for 'x'; there are docs, faq"),
        ({"faq": "mse", "docs": "mse"}, {"k": 2}, "loss_arguments: 'k' is no source of loss; give them by source, too"),
        ({"faq": "mse", "docs": "lambda"}, {"docs": 2}, "loss_arguments: docs: must be `argument: value` lines"),
        ({"faq": "mse", "docs": "lambda"}, {"faq": {"k": 2}}, "loss_arguments: mse has no argument 'k'"),
        ({"faq": "mse", "docs": "cross_entropy"}, {}, "loss: cross_entropy trains two outputs, the others one"),
        ("mse", {"k": 2}, "loss_arguments: mse has no argument 'k'"),
    ],
)
def test_losses_that_do_not_fit_the_sources_are_named(loss, arguments, message):
    with pytest.raises(UserError) as caught:
        choose_losses(loss, arguments, ["docs", "faq"])
    assert str(caught.value).startswith(f"params.yaml: {message}")


def training(encoder: str, loss: str | dict[str, str]):
    choices = choose_losses(loss, {}, ["docs", "faq"])
    model = build_cross_encoder(encoder, 32)
    return make_training_data(MINED, model, choices, targets="relevance", distillation=0.5, seed=1)


def test_training_data_counts_queries_pairs_and_the_rows_of_a_query(encoder: str):
    lists, pairs = training(encoder, "lambda"), training(encoder, "mse")
    assert (lists.queries, lists.pairs, lists.rows_per_query, len(lists.data)) == (4, 16, 1, 4)
    assert (pairs.queries, pairs.pairs, pairs.rows_per_query, len(pairs.data)) == (4, 16, 4, 16)


def test_training_data_of_sources_has_the_rows_and_the_loss_of_each(encoder: str):
    several = training(encoder, {"faq": "mse", "docs": "lambda"})
    assert isinstance(several.data, DatasetDict)
    assert {name: len(rows) for name, rows in several.data.items()} == {"faq": 4, "docs": 3}
    assert set(several.data["faq"]["query"]) == {"sort a list"}
    assert {name: type(loss).__name__ for name, loss in several.loss.items()} == {
        "faq": "MSELoss",
        "docs": "LambdaLoss",
    }
    assert (several.queries, several.pairs, several.rows_per_query) == (4, 16, 1)
    assert training(encoder, {"faq": "mse", "docs": "binary_cross_entropy"}).rows_per_query == 4
