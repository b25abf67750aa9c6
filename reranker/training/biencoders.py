"""Tune a bi-encoder, or a static embedding, on the training queries.

A static embedding represents a text by the mean of its tokens' vectors, so an epoch takes seconds where a transformer
takes minutes, and no text is too long. In the fused score it is a BM25 that has learned which words of the corpus are
synonyms.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import (
    DefaultBatchSampler,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor

from reranker.common.progress import progress
from reranker.training.arguments import ShowProgress
from reranker.training.checkpoints import Checkpoints
from reranker.training.losses import InBatchSoftmaxLoss, in_batch_softmax
from reranker.training.trainer import (
    Attempt,
    RobustTrainer,
    Schedule,
    fast_on_cpu,
    schedule_arguments,
    train,
    without_dropout,
)

Ids = list[NDArray[np.int64]]


def similar_batches(vectors: NDArray[np.float32], batch_size: int, *, seed: int) -> NDArray[np.int64]:
    """An order of the rows in which each batch of `batch_size` has similar rows, while the batches are shuffled.

    In-batch negatives are then hard at no cost: this is the topic-aware sampling of Hofstätter et al. (SIGIR 2021).

    Args:
        vectors: one vector per row; shape (rows, dimensions).
        batch_size: rows per batch.
        seed: seed of the clustering and of the order.

    Returns:
        Positions of the rows, each once.
    """
    generator = np.random.default_rng(seed)
    clusters = max(1, len(vectors) // batch_size)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    kmeans = faiss.Kmeans(vectors.shape[1], clusters, niter=8, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    _, nearest = kmeans.index.search(vectors, 1)
    # clusters are sorted along a random line, so that a batch with parts of two clusters has similar rows, too
    assert kmeans.centroids is not None  # noqa: S101 - it has been trained
    rank = np.argsort(np.argsort(kmeans.centroids @ generator.standard_normal(vectors.shape[1])))
    order = np.lexsort((generator.random(len(vectors)), rank[nearest[:, 0]]))
    # the incomplete batch stays last because it would shift the borders of all batches after it
    full = len(order) // batch_size * batch_size
    batches = order[:full].reshape(-1, batch_size)
    generator.shuffle(batches)
    return np.concatenate([batches.ravel(), order[full:]])


class _InOrder(DefaultBatchSampler):
    """Batches of consecutive rows, in the order of the data set."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> None:
        super().__init__(torch.utils.data.SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


class _BiencoderTrainer(RobustTrainer, SentenceTransformerTrainer):
    """Trains a bi-encoder."""


def tune_biencoder(
    model: SentenceTransformer,
    rows: pd.DataFrame,
    schedule: Schedule,
    *,
    scale: float,
    label: str,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Tune a bi-encoder with in-batch negatives; a batch has consecutive rows.

    Args:
        model: changed in place.
        rows: columns query, passage, group (rows of one group are not negatives of each other).
        schedule: see `Schedule`.
        scale: factor of the cosines in the loss.
        label: text before the progress.
        checkpoints: see `reranker.training.trainer.train`.

    Raises:
        UserError: see `reranker.training.trainer.train`.
    """
    model.model_card_data.widget = [{}]  # keeps the library from computing examples for a card that is not written
    without_dropout(model)
    data = Dataset.from_dict(
        {"query": list(rows["query"]), "passage": list(rows["passage"]), "label": list(rows["group"])}
    )

    def build(attempt: Attempt) -> _BiencoderTrainer:
        return _BiencoderTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                **schedule_arguments(schedule, attempt) | {"batch_sampler": _InOrder, "save_strategy": "no"}
            ),
            train_dataset=data,
            loss=InBatchSoftmaxLoss(model, scale),
            callbacks=[ShowProgress(label)],
        )

    # the other rows of a pass are the negatives, so smaller passes would change the loss
    with fast_on_cpu():
        train(
            build,
            model,
            data,
            schedule.batch_size,
            settings=(schedule, scale),
            label=label,
            checkpoints=checkpoints,
            split=False,
        )


class StaticSchedule(NamedTuple):
    """How a static embedding is tuned."""

    lr: float
    """Learning rate of the first step; it falls linearly to 0."""
    epochs: int
    batch_size: int
    """Smallest number of pairs per step; a step has less than twice as many, as the rows are spread evenly."""
    dropout: float
    """Share of the tokens of a text that are left out in a step."""
    scale: float
    """Factor of the cosines in the softmax."""
    max_tokens: int
    """Tokens of a text during tuning."""
    seed: int


def weigh_by_rarity(model: SentenceTransformer, passages: Sequence[str]) -> None:
    """Scale each token's vector by its inverse document frequency, so that common words start with little weight.

    Args:
        model: has one `StaticEmbedding` module; changed in place.
        passages: the corpus.
    """
    embedding = _embedding(model.to("cpu"))
    frequency = np.zeros(embedding.num_embeddings)
    for ids in _tokenise(embedding, passages):
        frequency[np.unique(ids)] += 1
    rarity = torch.from_numpy(np.log((len(passages) + 1) / (frequency + 1)))
    rarity /= rarity.mean()  # keeps the scale of the vectors, so that a learning rate has the same effect
    with torch.no_grad():
        embedding.embedding.weight.mul_(rarity[:, None].to(embedding.embedding.weight.dtype))


def tune_static(model: SentenceTransformer, rows: pd.DataFrame, schedule: StaticSchedule, *, label: str) -> None:
    """Tune a static embedding with in-batch negatives.

    Token dropout keeps the model from overfitting, so that many epochs are possible.

    Args:
        model: has one `StaticEmbedding` module; changed in place.
        rows: columns query, passage, group (rows of one group are not negatives of each other).
        schedule: see `StaticSchedule`.
        label: text before the progress.
    """
    embedding = _embedding(model.to("cpu"))  # a GPU would wait for data, because a mean of vectors takes little time
    generator = np.random.default_rng(schedule.seed)
    texts = [
        [ids[: schedule.max_tokens] for ids in _tokenise(embedding, rows[side].tolist())]
        for side in ("query", "passage")
    ]
    groups = torch.tensor(rows["group"].to_numpy())
    steps_per_epoch = max(1, len(rows) // schedule.batch_size)
    steps = schedule.epochs * steps_per_epoch
    optimiser = torch.optim.Adam(embedding.parameters(), lr=schedule.lr, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    with progress(label, steps, "steps") as bar:
        for _ in range(schedule.epochs):
            order = generator.permutation(len(rows))
            for batch in np.array_split(order, steps_per_epoch):
                left, right = (
                    _embed(embedding, [side[row] for row in batch], schedule.dropout, generator) for side in texts
                )
                loss = in_batch_softmax(left, right, groups[batch], schedule.scale)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                decay.step()
                bar.advance(note=f"loss {loss.item():.3f}")


def _embedding(model: SentenceTransformer) -> StaticEmbedding:
    if not isinstance(model[0], StaticEmbedding):
        raise TypeError(f"a static embedding is tuned here, not a {type(model[0]).__name__}")
    return model[0]


def _tokenise(embedding: StaticEmbedding, texts: Sequence[str]) -> Ids:
    encoded = embedding.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(text.ids, dtype=np.int64) for text in encoded]


def _embed(embedding: StaticEmbedding, texts: Ids, dropout: float, generator: np.random.Generator) -> Tensor:
    texts = [ids[generator.random(len(ids)) >= dropout] for ids in texts]
    offsets = np.cumsum([0, *(len(ids) for ids in texts[:-1])])
    features = {"input_ids": torch.from_numpy(np.concatenate(texts)), "offsets": torch.from_numpy(offsets)}
    vectors: Tensor = F.normalize(embedding(features)["sentence_embedding"].float(), dim=-1)
    return vectors
