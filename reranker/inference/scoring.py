"""Score pairs and embed texts with a model: the inputs are sorted by length, and progress is shown."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from reranker.common.engine import LOCAL, Engine
from reranker.common.errors import UserError
from reranker.common.progress import progress
from reranker.inference.compute import PLAIN, Compute

BATCH, TOKENS = 32, 4096
"""Largest number of texts or pairs per pass, and of their tokens. More would not fit into the caches of a CPU."""
GPU = 16
"""Factor of both for a GPU, which would otherwise wait for work."""
STATIC_BATCH = 1024
"""Texts per pass of a static embedding, which neither pads nor multiplies: the overhead of passes decides its speed."""
LENGTHS = 1024
"""Texts or pairs whose tokens are counted in one call of the tokenizer."""
TOGETHER = 32
"""Passes that are sent to a machine of a cluster together: some seconds of work."""
PAIRS = 65_536
"""Pairs whose vectors are in memory at a time."""


class Embedder(Protocol):
    """An object that embeds texts as the function `embed` does, such as `reranker.mining.embedding_cache.Cache`."""

    def embed(
        self,
        model: SentenceTransformer,
        texts: Sequence[str],
        *,
        label: str,
        prompt: str = ...,
        compute: Compute = ...,
    ) -> NDArray[np.float32]:
        """Normalised vectors of the texts, in their order; shape (texts, dimensions)."""


def embed(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    label: str,
    prompt: str = "",
    compute: Compute = PLAIN,
) -> NDArray[np.float32]:
    """Normalised vectors of the texts, in their order; shape (texts, dimensions).

    Args:
        model: a bi-encoder or a static embedding.
        texts: any number of texts.
        label: name of the work, shown beside the progress.
        prompt: text before each text; if it is empty, the model's own default prompt, if there is one.
        compute: see `Compute`.

    Raises:
        UserError: see `batches`.
    """
    vectors = np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    for places, rows in batches(model, texts, label=label, prompt=prompt, compute=compute):
        if not len(vectors):
            vectors = np.empty((len(texts), rows.shape[1]), dtype=np.float32)
        vectors[places] = rows
    return vectors


def batches(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    label: str,
    prompt: str = "",
    compute: Compute = PLAIN,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The vectors that `embed` returns, pass by pass as the model computes them.

    Yields:
        The places of some texts, and their vectors. The longest texts come first, unless the model is static.

    Raises:
        UserError: a vector is not finite.
    """
    if isinstance(model[0], StaticEmbedding):
        order = np.arange(len(texts))
        passes = [order[start : start + STATIC_BATCH] for start in range(0, len(texts), STATIC_BATCH)]
    else:
        passes = _longest_first(model, texts, prompt, compute.engine)
    parts = ([texts[place] for place in places] for places in passes)
    work = partial(_vectors, label=label, prompt=prompt, precision=compute.precision)
    with progress(label, len(texts), "texts") as bar:
        for places, vectors in zip(passes, compute.engine.map(work, model, parts, together=TOGETHER), strict=True):
            yield places, vectors
            bar.advance(len(places))


def _vectors(
    model: SentenceTransformer, parts: Iterable[list[str]], *, label: str, prompt: str, precision: str
) -> Iterator[NDArray[np.float32]]:
    for part in parts:
        with _precision(precision):
            vectors = model.encode(
                part, prompt=prompt or None, batch_size=len(part), normalize_embeddings=True, show_progress_bar=False
            )
        vectors = vectors.astype(np.float32, copy=False)
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            raise UserError(
                f"{label}: the model gives a vector that is not finite for the text '{part[row][:60]}'; "
                "its weights are damaged or too large: train or download it again, or choose another model"
            )
        yield vectors


def pair_cosines(
    model: SentenceTransformer,
    queries: Sequence[str],
    passages: Sequence[str],
    *,
    label: str,
    query_prompt: str = "",
    passage_prompt: str = "",
    compute: Compute = PLAIN,
    cache: Embedder | None = None,
) -> NDArray[np.float64]:
    """Cosine of each query with the passage at the same place; every distinct text is embedded once.

    Args:
        model: a bi-encoder or a static embedding.
        queries: as many as passages.
        passages: as many as queries.
        label: name of the work, shown beside the progress.
        query_prompt: text before each query; if it is empty, the model's own default prompt, if there is one.
        passage_prompt: the same for each passage.
        compute: see `Compute`.
        cache: gives the vectors; None: all of them are computed.
    """
    sides = [[(query_prompt, query) for query in queries], [(passage_prompt, passage) for passage in passages]]
    texts = list(dict.fromkeys([*sides[0], *sides[1]]))
    place = {text: number for number, text in enumerate(texts)}
    embed_texts = cache.embed if cache else embed
    parts = [
        embed_texts(model, [text for own, text in texts if own == prompt], label=label, prompt=prompt, compute=compute)
        for prompt in dict.fromkeys([query_prompt, passage_prompt])
    ]
    vectors = parts[0] if len(parts) == 1 else np.concatenate(parts)  # a single memory map is not copied
    left, right = ([place[text] for text in side] for side in sides)
    cosines = np.zeros(len(left))
    for start in range(0, len(left), PAIRS):
        some = slice(start, start + PAIRS)
        cosines[some] = np.einsum("ij,ij->i", vectors[left[some]], vectors[right[some]])
    return cosines


def score_pairs(
    model: CrossEncoder,
    queries: Sequence[str],
    passages: Sequence[str],
    *,
    label: str,
    compute: Compute = PLAIN,
) -> NDArray[np.float64]:
    """The cross-encoder's score of each query with the passage at the same place.

    Raises:
        UserError: a score is not finite.
    """
    pairs = list(zip(queries, passages, strict=True))
    if not pairs:
        return np.zeros(0)
    passes = _longest_first(model, pairs, engine=compute.engine)
    parts = ([pairs[place] for place in places] for places in passes)
    scores: list[NDArray[np.float32]] = []
    with progress(label, len(pairs), "pairs") as bar:
        work = partial(_scores, label=label, precision=compute.precision)
        for some in compute.engine.map(work, model, parts, together=TOGETHER):
            scores.append(some)
            bar.advance(len(some))
    return np.concatenate(scores)[np.argsort(np.concatenate(passes))].astype(float)


def _scores(
    model: CrossEncoder, parts: Iterable[list[tuple[str, str]]], *, label: str, precision: str
) -> Iterator[NDArray[np.float32]]:
    with _precision(precision):
        for part in parts:
            scores: NDArray[np.float32] = model.predict(part, batch_size=len(part), show_progress_bar=False)
            for place in np.flatnonzero(~np.isfinite(scores).reshape(len(part), -1).all(axis=1)):
                query, passage = part[place]
                raise UserError(
                    f"{label}: the model gives a score that is not finite for '{query[:60]}' and "
                    f"'{passage[:60]}'; its weights are damaged or too large: train or download it again, or choose "
                    "another model"
                )
            yield scores


def _longest_first(
    model: SentenceTransformer | CrossEncoder,
    inputs: Sequence[str] | Sequence[tuple[str, str]],
    prompt: str = "",
    engine: Engine = LOCAL,
) -> list[NDArray[np.int64]]:
    """Places of the inputs in each pass, sorted by the number of tokens after truncation.

    Because the longest inputs come first, a lack of memory shows at once and the time left is not underestimated.
    """
    parts = (list(inputs[start : start + LENGTHS]) for start in range(0, len(inputs), LENGTHS))
    counts = engine.map(partial(_lengths, prompt=prompt), model, parts, together=TOGETHER)
    lengths = [length for part in counts for length in part]
    order = np.argsort(-np.asarray(lengths), kind="stable")
    factor = 1 if model.device.type == "cpu" else GPU
    passes: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        size = min(BATCH, TOKENS // max(1, lengths[order[start]])) * factor
        passes.append(order[start : start + max(1, size)])
        start += len(passes[-1])
    return passes


def _lengths(
    model: SentenceTransformer | CrossEncoder, parts: Iterable[list[str] | list[tuple[str, str]]], *, prompt: str
) -> Iterator[list[int]]:
    for part in parts:
        mask = model.preprocess(part, prompt=prompt or None).get("attention_mask")
        # a model that does not pad has no mask
        yield [0] * len(part) if mask is None else mask.sum(dim=1).tolist()


def _precision(name: str) -> AbstractContextManager[object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16) if name == "bfloat16" else nullcontext()
