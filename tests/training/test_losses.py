import copy
import math

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from reranker.inference.scoring import embed, score_pairs
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.losses import GroupSoftmaxLoss, InBatchSoftmaxLoss
from reranker.training.trainer import seed_everything

QUERIES = ["sort a list", "find the path"]
GROUPS = [["order numbers", "read a file", "red apples"], ["shortest path in a graph", "green apples", "write csv"]]
TEACHER = [[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]]


@pytest.fixture
def cross_encoder(encoder: str) -> CrossEncoder:
    seed_everything(1)
    return build_cross_encoder(encoder, 32)


def logits(model: CrossEncoder) -> np.ndarray:
    queries = [query for query in QUERIES for _ in range(3)]
    return score_pairs(model, queries, [passage for group in GROUPS for passage in group], label="").reshape(2, 3)


def group_loss(model: CrossEncoder, distillation: float, teacher: list[list[float]] = TEACHER) -> torch.Tensor:
    return GroupSoftmaxLoss(model, distillation)([QUERIES, GROUPS], [torch.tensor(row) for row in teacher])


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)


def test_without_distillation_it_is_the_cross_entropy_of_the_first_passage_of_each_group(cross_encoder):
    expected = -np.log(softmax(logits(cross_encoder))[:, 0]).mean()
    assert group_loss(cross_encoder, 0.0).item() == pytest.approx(expected, rel=1e-5)
    assert group_loss(cross_encoder, 0.0, [[9.0, 9.0, 0.0]] * 2).item() == group_loss(cross_encoder, 0.0).item()


def test_with_distillation_alone_it_is_the_divergence_from_the_teacher(cross_encoder):
    teacher, own = softmax(np.array(TEACHER)), softmax(logits(cross_encoder))
    expected = (teacher * np.log(teacher / own)).sum(axis=1).mean()
    assert group_loss(cross_encoder, 1.0).item() == pytest.approx(expected, rel=1e-4)


def test_model_that_agrees_with_its_teacher_up_to_a_constant_loses_nothing(cross_encoder):
    teacher = np.add(logits(cross_encoder), [[3.0], [-5.0]]).tolist()
    assert group_loss(cross_encoder, 1.0, teacher).item() == pytest.approx(0, abs=1e-6)


def test_between_the_two_it_is_their_mixture(cross_encoder):
    own, distilled, mixed = (group_loss(cross_encoder, share).item() for share in (0.0, 1.0, 0.25))
    assert mixed == pytest.approx(0.75 * own + 0.25 * distilled, rel=1e-5)


def test_step_down_the_gradient_lowers_the_group_loss(cross_encoder):
    before = group_loss(cross_encoder, 0.5)
    before.backward()
    with torch.no_grad():
        for parameter in cross_encoder.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    assert group_loss(cross_encoder, 0.5).item() < before.item()


class TableOfVectors(nn.Module):
    """A bi-encoder whose vectors are its inputs, to test the loss by itself."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["vectors"]}


def in_batch(queries: list[list[float]], passages: list[list[float]], groups: list[int], scale: float = 1.0) -> float:
    features = [{"vectors": torch.tensor(vectors)} for vectors in (queries, passages)]
    return InBatchSoftmaxLoss(TableOfVectors(), scale)(features, torch.tensor(groups)).item()


EAST, NORTH, BETWEEN = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def test_in_batch_loss_is_that_worked_out_by_hand():
    # cosines [[1, 0.6], [0, 0.8]]; the second pair is three times as long, which must not matter
    rows = -math.log(math.e / (math.e + math.exp(0.6))) - math.log(math.exp(0.8) / (1 + math.exp(0.8)))
    columns = -math.log(math.e / (math.e + 1)) - math.log(math.exp(0.8) / (math.exp(0.6) + math.exp(0.8)))
    assert in_batch([EAST, [0.0, 3.0]], [EAST, BETWEEN], [1, 2]) == pytest.approx((rows + columns) / 4, rel=1e-6)


def test_rows_of_one_group_are_no_negatives_of_each_other():
    assert in_batch([EAST, NORTH], [EAST, BETWEEN], [5, 5]) == pytest.approx(0, abs=1e-7)
    # a third row of another group: the first two differ from it only
    alone = in_batch([EAST, NORTH], [EAST, NORTH], [5, 6])
    doubled = in_batch([EAST, EAST, NORTH], [EAST, EAST, NORTH], [5, 5, 6])
    assert doubled < in_batch([EAST, EAST, NORTH], [EAST, EAST, NORTH], [4, 5, 6])
    assert alone < doubled < alone * 1.5  # the third row has two negatives, the others one


def test_queries_and_passages_play_the_same_part_and_the_order_of_the_rows_does_not_matter():
    queries, passages, groups = [EAST, NORTH, BETWEEN], [BETWEEN, EAST, NORTH], [1, 2, 1]
    loss = in_batch(queries, passages, groups, scale=7.0)
    assert in_batch(passages, queries, groups, scale=7.0) == pytest.approx(loss, rel=1e-6)
    assert in_batch(queries[::-1], passages[::-1], groups[::-1], scale=7.0) == pytest.approx(loss, rel=1e-6)


def test_scale_sharpens_the_softmax():
    pairs = ([EAST, NORTH], [EAST, NORTH], [1, 2])
    assert in_batch(*pairs, scale=1.0) == pytest.approx(math.log(1 + math.exp(-1)))
    assert in_batch(*pairs, scale=20.0) == pytest.approx(math.log(1 + math.exp(-20)), abs=1e-7)


def test_in_batch_loss_of_a_real_biencoder_is_that_of_its_vectors_and_reaches_its_weights(biencoder):
    model = SentenceTransformer(biencoder)
    passages = [group[0] for group in GROUPS]
    expected = in_batch(
        embed(model, QUERIES, label="").tolist(), embed(model, passages, label="").tolist(), [0, 1], 30.0
    )
    features = [copy.copy(model.preprocess(texts)) for texts in (QUERIES, passages)]
    loss = InBatchSoftmaxLoss(model, 30.0)(features, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    loss.backward()
    assert all(torch.isfinite(weights.grad).all() for weights in model.parameters() if weights.grad is not None)
    assert any(weights.grad is not None and weights.grad.abs().max() > 0 for weights in model.parameters())
