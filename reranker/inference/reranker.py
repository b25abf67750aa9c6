"""Rankers for a user's program: the shipped reranker, which fuses four scores, and whatever else lies in a folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import PreTrainedTokenizerBase

from reranker.common.artifacts import PRODUCER, missing_error, read_weights
from reranker.common.errors import UserError
from reranker.common.model_files import check_words, loading
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.excerpts import excerpts
from reranker.inference.export import Exported, graph_file
from reranker.inference.fusion import fuse
from reranker.inference.loading import load_cross_encoder
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25

Scores = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""Of each query with the passage at the same place."""


class Ranked(NamedTuple):
    """A passage of a ranking."""

    position: int
    """In the list that was given."""
    score: float
    """Higher is better; comparable between the passages of one query."""
    passage: str


class Reranker:
    """Ranks passages by the fused score.

    Args:
        path: the folder that the train stage writes; `CrossEncoder(path)` loads the cross-encoder alone.
        compute: see `choose_compute`; None: as this machine computes fast.

    Raises:
        UserError: the folder lacks the fusion's weights or word statistics, or a model in it cannot be loaded or
            computed as asked.
    """

    def __init__(self, path: str | Path, compute: Compute | None = None) -> None:
        path = Path(path)
        self._compute = compute or choose_compute()
        self.weights = read_weights(path / "fusion.json", "reranker")["reranker"]
        self._words = bm25.load(path / "words.json")
        with loading(str(path)):
            self._cross_encoder = CrossEncoder(str(path))
            self._biencoder = SentenceTransformer(str(path / "biencoder"))
            self._static = SentenceTransformer(str(path / "static"))
            for part in (self._cross_encoder, self._biencoder):
                check_words(part)
        for model in (self._cross_encoder, self._biencoder):
            self._compute.apply(model)

    @property
    def models(self) -> tuple[CrossEncoder, SentenceTransformer, SentenceTransformer]:
        """The cross-encoder, the bi-encoder and the static embedding."""
        return self._cross_encoder, self._biencoder, self._static

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Score of each query with the passage at the same place; shape (pairs,)."""
        shown = excerpts(
            self._cross_encoder.tokenizer, self._cross_encoder.max_seq_length, self._words, queries, passages
        )
        pairs, compute = (queries, passages), self._compute
        features = {
            "bm25": bm25.bm25(self._words, *pairs),
            "static_score": pair_cosines(self._static, *pairs, label="static embedding", compute=compute.static()),
            "teacher_score": pair_cosines(self._biencoder, *pairs, label="bi-encoder", compute=compute),
            "cross_encoder": score_pairs(self._cross_encoder, queries, shown, label="cross-encoder", compute=compute),
        }
        return fuse(features, self.weights)

    def rank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """The passages, best first; equal scores stay in the order given."""
        return in_order(self.scores([query] * len(passages), passages), passages)


def in_order(scores: NDArray[np.float64], passages: Sequence[str]) -> list[Ranked]:
    """The passages by their scores, best first; equal scores stay in the order given."""
    order = np.argsort(-scores, kind="stable")
    return [Ranked(int(place), float(scores[place]), passages[place]) for place in order]


class Ranker(Protocol):
    """What ranks passages."""

    def rank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """The passages, best first; equal scores stay in the order given."""


class CrossEncoderRanker:
    """Ranks by the scores of a cross-encoder alone.

    Args:
        scores: what the cross-encoder gives.
        tokenizer: of the cross-encoder.
        max_length: tokens of a pair.
        words: word statistics; with them the model is shown excerpts of long passages, as in training.
    """

    def __init__(
        self, scores: Scores, tokenizer: PreTrainedTokenizerBase, max_length: int, words: bm25.Statistics | None
    ) -> None:
        self._scores, self._tokenizer, self._max_length, self._words = scores, tokenizer, max_length, words

    def rank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """The passages, best first; equal scores stay in the order given."""
        queries = [query] * len(passages)
        shown = passages
        if self._words:
            shown = excerpts(self._tokenizer, self._max_length, self._words, queries, passages)
        return in_order(self._scores(queries, shown), passages)


def load_ranker(folder: Path) -> Ranker:
    """The ranker that lies in a folder.

    Raises:
        UserError: there is no such folder, or it holds no usable model.
    """
    if not folder.is_dir():
        if folder in PRODUCER:
            raise missing_error(folder)
        raise UserError(f"model '{folder}' does not exist; name a folder with a model in it")
    if (folder / "fusion.json").exists():
        return Reranker(folder)
    words = bm25.load(folder / "words.json") if (folder / "words.json").exists() else None
    if graph_file(folder):
        exported = Exported(folder)
        return CrossEncoderRanker(exported.scores, exported.tokenizer, exported.max_length, words)
    compute = choose_compute()
    model = load_cross_encoder(str(folder), compute=compute)
    scores = partial(score_pairs, model, label="cross-encoder", compute=compute)
    return CrossEncoderRanker(scores, model.tokenizer, model.max_seq_length, words)
