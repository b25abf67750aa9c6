"""The shipped reranker: the cross-encoder's score fused with the bi-encoder's, the static embedding's and BM25."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reranker.progress import quiet_libraries

quiet_libraries()

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker import lexical
from reranker.attention import use_attention
from reranker.compiled import use_backend
from reranker.engine import LOCAL, Engine
from reranker.excerpts import excerpts
from reranker.fusion import fuse
from reranker.models import check_words, loading
from reranker.records import read_weights
from reranker.scoring import choose_precision, pair_cosines, score_pairs


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
        precision: `auto`, `float32` or `bfloat16`.
        backend: `auto`, `torch`, `openvino`, `openvino-int8` or `onnx-int8`.
        engine: what computes.
        attention: see `use_attention`.

    Raises:
        UserError: the folder lacks the fusion's weights or word statistics, or a model in it cannot be loaded or
            computed as asked.
    """

    def __init__(
        self,
        path: str | Path,
        precision: str = "auto",
        backend: str = "auto",
        engine: Engine = LOCAL,
        attention: str = "auto",
    ) -> None:
        path = Path(path)
        self.weights = read_weights(path / "fusion.json", "reranker")["reranker"]
        self._words = lexical.load(path / "words.json")
        with loading(str(path)):
            self._cross_encoder = CrossEncoder(str(path))
            self._biencoder = SentenceTransformer(str(path / "biencoder"))
            self._static = SentenceTransformer(str(path / "static"))
            for part in (self._cross_encoder, self._biencoder):
                check_words(part)
        self._precision, self._engine = choose_precision(precision), engine
        for model in (self._cross_encoder, self._biencoder):
            use_attention(model, attention, self._precision)
            use_backend(model, backend, self._precision)

    @property
    def models(self) -> tuple[CrossEncoder, SentenceTransformer, SentenceTransformer]:
        """The cross-encoder, the bi-encoder and the static embedding."""
        return self._cross_encoder, self._biencoder, self._static

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Score of each query with the passage at the same place; shape (pairs,)."""
        shown = excerpts(
            self._cross_encoder.tokenizer, self._cross_encoder.max_seq_length, self._words, queries, passages
        )
        features = {
            "bm25": lexical.bm25(self._words, queries, passages),
            "static_score": pair_cosines(
                self._static, queries, passages, label="static embedding", engine=self._engine
            ),
            "teacher_score": pair_cosines(
                self._biencoder,
                queries,
                passages,
                label="bi-encoder",
                precision=self._precision,
                engine=self._engine,
            ),
            "cross_encoder": score_pairs(
                self._cross_encoder,
                queries,
                shown,
                label="cross-encoder",
                precision=self._precision,
                engine=self._engine,
            ),
        }
        return fuse(features, self.weights)

    def rank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """The passages, best first; equal scores stay in the order given."""
        return in_order(self.scores([query] * len(passages), passages), passages)


def in_order(scores: NDArray[np.float64], passages: Sequence[str]) -> list[Ranked]:
    """The passages by their scores, best first; equal scores stay in the order given."""
    order = np.argsort(-scores, kind="stable")
    return [Ranked(int(place), float(scores[place]), passages[place]) for place in order]
