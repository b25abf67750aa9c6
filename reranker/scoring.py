"""Scores of pairs and vectors of texts from a model: sorted by length, with progress."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from reranker.errors import UserError
from reranker.models import BUNDLED, bundled_weights, is_static, loading, resolve, tokenizer_file
from reranker.progress import progress

BATCH = 32
"""Texts or pairs per pass: a CPU's caches hold no more, and batches of equal length waste nothing."""


def choose_precision(wish: str) -> str:
    """`float32` or `bfloat16`: what was asked for, or for `auto` what the hardware is fast at.

    Raises:
        UserError: bfloat16 is asked for and a GPU is there that does not have it.
    """
    if torch.cuda.is_available():
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wish == "bfloat16" and not has_bfloat16:
            raise UserError("params.yaml: precision: this GPU has no bfloat16; use auto or float32")
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if wish == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return wish


def load_retriever(name: str) -> SentenceTransformer:
    """The first-stage model by its name in params.yaml; a bundled static one is built from its two files."""
    if name in BUNDLED and is_static(file := bundled_weights(name)):
        from safetensors.numpy import load_file

        (weights,) = load_file(file).values()
        tokenizer = Tokenizer.from_file(str(tokenizer_file(name)))
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))])
    path = resolve(name)
    with loading(name):
        return SentenceTransformer(path)


def load_static(name: str) -> SentenceTransformer:
    """A static embedding by its name in params.yaml.

    Raises:
        UserError: the model is there but is not static.
    """
    model = load_retriever(name)
    if not isinstance(model[0], StaticEmbedding):
        raise UserError(f"params.yaml: static_model: '{name}' is not a static embedding; use bundled/static-256")
    return model


def load_biencoder(name: str, max_length: int) -> SentenceTransformer:
    """A bi-encoder in float32.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per text.

    Raises:
        UserError: there is no usable model of that name.
    """
    with loading(name):
        model = SentenceTransformer(name, model_kwargs={"dtype": torch.float32})
    model.max_seq_length = max_length
    return model


def check_lengths(transformer: nn.Module, **lengths: int) -> None:
    """Check that a model has a position for every token.

    Args:
        transformer: the first module of the model; one that is no transformer reads any length.
        lengths: tokens by their key in params.yaml.

    Raises:
        UserError: it has fewer.
    """
    if not isinstance(transformer, Transformer):
        return
    for key, length in lengths.items():
        limit = getattr(transformer.model.config, "max_position_embeddings", length)
        if length > limit:
            raise UserError(f"params.yaml: {key}: {length} is more than the {limit} tokens that the model can read")


def embed(
    model: SentenceTransformer, texts: Sequence[str], *, label: str, precision: str = "float32"
) -> NDArray[np.float32]:
    """Normalised vectors of the texts, in their order; shape (texts, dimensions)."""
    if len(texts) == 0:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    order = _longest_first(model, texts)
    vectors: list[NDArray[np.float32]] = []
    with progress(label, len(texts), "texts") as shown, _precision(precision):
        for start in range(0, len(order), BATCH):
            part = [texts[place] for place in order[start : start + BATCH]]
            vectors.append(model.encode(part, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False))
            shown.advance(len(part))
    return np.concatenate(vectors)[np.argsort(order)].astype(np.float32)


def pair_cosines(
    model: SentenceTransformer,
    queries: Sequence[str],
    passages: Sequence[str],
    *,
    label: str,
    precision: str = "float32",
) -> NDArray[np.float64]:
    """Cosine of each query with the passage at the same place; every distinct text is embedded once."""
    texts = list(dict.fromkeys([*queries, *passages]))
    place = {text: number for number, text in enumerate(texts)}
    vectors = embed(model, texts, label=label, precision=precision)
    left = vectors[[place[text] for text in queries]]
    right = vectors[[place[text] for text in passages]]
    cosines: NDArray[np.float64] = np.einsum("ij,ij->i", left, right).astype(float)
    return cosines


def score_pairs(
    model: CrossEncoder, queries: Sequence[str], passages: Sequence[str], *, label: str, precision: str = "float32"
) -> NDArray[np.float64]:
    """The cross-encoder's score of each query with the passage at the same place."""
    pairs = list(zip(queries, passages, strict=True))
    if not pairs:
        return np.zeros(0)
    order = _longest_first(model, pairs)
    scores: list[NDArray[np.float32]] = []
    with progress(label, len(pairs), "pairs") as shown, _precision(precision):
        for start in range(0, len(order), BATCH):
            part = [pairs[place] for place in order[start : start + BATCH]]
            scores.append(model.predict(part, batch_size=BATCH, show_progress_bar=False))
            shown.advance(len(part))
    return np.concatenate(scores)[np.argsort(order)].astype(float)


def _longest_first(
    model: SentenceTransformer | CrossEncoder, inputs: Sequence[str] | Sequence[tuple[str, str]]
) -> NDArray[np.int64]:
    """Order of the inputs by their tokens, as the model cuts them.

    Longest first: running out of memory shows at once, and the time left is not underestimated.
    """
    lengths: list[int] = []
    for start in range(0, len(inputs), 1024):
        part = list(inputs[start : start + 1024])
        mask = model.preprocess(part).get("attention_mask")
        # a static embedding has no padding, and so no mask
        lengths += [0] * len(part) if mask is None else mask.sum(dim=1).tolist()
    return np.argsort(-np.asarray(lengths), kind="stable")


def _precision(name: str) -> AbstractContextManager[object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16) if name == "bfloat16" else nullcontext()
