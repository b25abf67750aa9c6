"""A static embedding tuned on the training queries: learned word matching that reads the whole passage.

Each text is the mean of its tokens' vectors, so a pass over all pairs takes seconds where a transformer takes
minutes, and no text is too long. In the fused score it says what BM25 would if it had learned which words of
this corpus stand for each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor

from reranker.losses import in_batch_softmax
from reranker.progress import progress

Ids = list[NDArray[np.int64]]


class StaticSchedule(NamedTuple):
    """How a static embedding is tuned."""

    lr: float
    """Learning rate of the first step; it falls to 0 along a line."""
    epochs: int
    batch_size: int
    """Pairs per step at least, and less than twice as many: the rows are spread evenly over the steps."""
    dropout: float
    """Share of the tokens of a text that a step does not see."""
    scale: float
    """Factor of the cosines in the softmax."""
    max_tokens: int
    """Tokens of a text while tuning."""
    seed: int


def weigh_by_rarity(model: SentenceTransformer, passages: Sequence[str]) -> None:
    """Scale each token's vector by its inverse document frequency, so that common words start with little weight.

    Args:
        model: one `StaticEmbedding` module; changed in place.
        passages: the corpus.
    """
    embedding = _embedding(model.to("cpu"))
    seen = np.zeros(embedding.num_embeddings)
    for ids in _tokenise(embedding, passages):
        seen[np.unique(ids)] += 1
    rarity = torch.from_numpy(np.log((len(passages) + 1) / (seen + 1)))
    rarity /= rarity.mean()  # the vectors keep their size, so that a learning rate means the same
    with torch.no_grad():
        embedding.embedding.weight.mul_(rarity[:, None].to(embedding.embedding.weight.dtype))


def tune_static(model: SentenceTransformer, rows: pd.DataFrame, schedule: StaticSchedule, *, label: str) -> None:
    """Tune a static embedding with in-batch negatives.

    Dropped tokens keep it from learning the training pairs by heart, so that it can go over them many times.

    Args:
        model: one `StaticEmbedding` module; changed in place.
        rows: columns query, passage, group (rows of one group are not negatives of each other).
        schedule: see `StaticSchedule`.
        label: shown before the progress.
    """
    embedding = _embedding(model.to("cpu"))  # a mean of vectors is soon done: a GPU would wait for its rows
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
    with progress(label, steps, "steps") as shown:
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
                shown.advance(note=f"loss {loss.item():.3f}")


def _embedding(model: SentenceTransformer) -> StaticEmbedding:
    if not isinstance(model[0], StaticEmbedding):
        raise TypeError(f"a static embedding is tuned here, not a {type(model[0]).__name__}")
    return model[0]


def _tokenise(embedding: StaticEmbedding, texts: Sequence[str]) -> Ids:
    encoded = embedding.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(text.ids, dtype=np.int64) for text in encoded]


def _embed(embedding: StaticEmbedding, texts: Ids, dropout: float, generator: np.random.Generator) -> Tensor:
    kept = [ids[generator.random(len(ids)) >= dropout] for ids in texts]
    offsets = np.cumsum([0, *(len(ids) for ids in kept[:-1])])
    features = {"input_ids": torch.from_numpy(np.concatenate(kept)), "offsets": torch.from_numpy(offsets)}
    vectors: Tensor = F.normalize(embedding(features)["sentence_embedding"].float(), dim=-1)
    return vectors
