import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers import CrossEncoder

from reranker.training.batching import PASS_TOKENS, in_passes, split
from reranker.training.cross_encoder import build_cross_encoder, tune_cross_encoder
from reranker.training.evaluator import DevRanking
from reranker.training.examples import group_rows
from reranker.training.losses import GroupSoftmaxLoss, make_loss
from reranker.training.trainer import Schedule, seed_everything

SHORT, LONG = "sort a list", "find the shortest path in a graph " * 9
GROUPS = [[SHORT, LONG, "read csv"], ["write csv", SHORT, "red apples"], *[[SHORT, "a list", "order numbers"]] * 8]
QUERIES = ["sort"] * len(GROUPS)
TEACHER = [torch.tensor([2.0, 0.0, -1.0])] * len(GROUPS)


@pytest.fixture
def model(encoder: str) -> CrossEncoder:
    seed_everything(1)
    return build_cross_encoder(encoder, 64)


def read(model: CrossEncoder) -> list[tuple[int, int]]:
    """Shapes of the batches that the model reads; the list grows with each batch."""
    shapes: list[tuple[int, int]] = []
    model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    return shapes


def loss_and_gradient(model: CrossEncoder) -> tuple[float, torch.Tensor]:
    model.train().zero_grad()
    loss = GroupSoftmaxLoss(model, 0.5)([QUERIES, GROUPS], TEACHER)
    loss.backward()
    gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
    return loss.item(), torch.cat([part.flatten() for part in gradients])


@pytest.mark.parametrize("side", ["right", "left"])
def test_passes_read_fewer_tokens_and_give_the_same_loss_and_gradient(model: CrossEncoder, side: str):
    model.tokenizer.padding_side = side
    positions = model[0].model.embeddings.position_embeddings.weight  # which padding on the left moves
    positions.data.zero_()
    positions.requires_grad_(side == "right")
    shapes = read(model)
    loss, gradient = loss_and_gradient(model)
    with in_passes(model):
        same_loss, same_gradient = loss_and_gradient(model)
    whole, parts = shapes[0], shapes[1:]
    assert len(parts) > 1
    assert sum(rows for rows, _ in parts) == whole[0]
    assert sum(rows * tokens for rows, tokens in parts) < whole[0] * whole[1] - PASS_TOKENS
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_scores_come_in_the_order_of_the_pairs_and_evaluation_is_left_alone(model: CrossEncoder):
    features = model.preprocess([("sort", passage) for group in GROUPS for passage in group])
    shapes = read(model)
    whole = model.eval()(dict(features))["scores"]
    with in_passes(model):
        torch.testing.assert_close(model(dict(features))["scores"], whole, rtol=0, atol=0)
        assert len(shapes) == 2
        torch.testing.assert_close(model.train()(dict(features))["scores"], whole, rtol=1e-4, atol=1e-5)
        assert len(shapes) > 3
    assert "forward" not in vars(model)


def test_what_was_around_the_model_before_is_back_afterwards(model: CrossEncoder):
    around = model.forward = lambda features, **_: {"scores": torch.zeros(len(features["attention_mask"]), 1)}
    with in_passes(model):
        assert model.forward is not around
    assert model.forward is around


def test_trainer_reads_long_and_short_passages_apart(model: CrossEncoder):
    groups = pd.DataFrame({"query": QUERIES, "passages": GROUPS, "teacher": [[1.0, 0.0, 0.0]] * len(GROUPS)})
    dev = pd.DataFrame({"query_id": ["q"], "passage_id": ["p"], "query": ["sort"], "text": [SHORT]})
    shapes = read(model)
    tune_cross_encoder(
        model,
        group_rows(groups, "group_softmax", "teacher"),
        make_loss("group_softmax", model, {}, distillation=0.5, group_size=3),
        Schedule(1e-3, 1, len(GROUPS), 0.0, 0.0, "float32", 1),
        evaluator=DevRanking(dev, dev.assign(relevance=1)),
        evaluations=1,
        patience=1,
        head_lr=1e-3,
        label="",
    )
    assert [rows for rows, tokens in shapes if tokens > 60] == [1]
    assert sum(rows for rows, _ in shapes) == sum(map(len, GROUPS)) + 1


def cost(lengths: list[int], parts: list[np.ndarray]) -> int:
    return sum(len(part) * max(lengths[place] for place in part) + PASS_TOKENS for part in parts)


@pytest.mark.parametrize(
    "lengths", [[7], [70] * 24, [300, 10, 300, 10], [512, 20, 90, 33, 512, 64, 21, 400, 8, 8]], ids=str
)
def test_split_is_the_cheapest_there_is(lengths: list[int]):
    actual = split(np.array(lengths))
    assert sorted(np.concatenate(actual).tolist()) == list(range(len(lengths)))
    order = np.argsort(lengths, kind="stable")
    borders = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(lengths)), number) for number in range(min(4, len(lengths)))
    )
    assert cost(lengths, actual) == min(cost(lengths, np.split(order, some)) for some in borders)


def test_lengths_that_differ_little_stay_one_pass():
    assert len(split(np.array([72] * 20 + [62] * 4))) == 1
