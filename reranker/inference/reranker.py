"""Rankers for a user's program: the shipped reranker, which fuses four scores, and cross-encoders in a folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import PreTrainedTokenizerBase

from reranker.common.artifacts import PATHS, PRODUCER, SHIPPED, missing_error, read_weights
from reranker.common.errors import UserError
from reranker.common.model_files import check_words, loading
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.excerpts import excerpts
from reranker.inference.export import ExportedModel, graph_file
from reranker.inference.fusion import fuse
from reranker.inference.loading import load_cross_encoder
from reranker.inference.scoring import embed, pair_cosines, score_pairs
from reranker.retrieval import bm25, index
from reranker.retrieval.ranking import FirstStage
from reranker.retrieval.retrievers import Dense, Lexical, WeightedSum

BM25 = "bm25"
Scores = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""Scores each query with the passage at the same place."""


class RankedPassage(NamedTuple):
    """A passage of a ranking."""

    position: int
    """Position in the list of passages that was ranked."""
    score: float
    """A higher score is better; only scores of one query are comparable."""
    passage: str


class Reranker:
    """Ranks passages by the fused score.

    Args:
        path: the folder that the train stage writes; `CrossEncoder(path)` loads only the cross-encoder.
        compute: see `choose_compute`; None chooses what is fast on this machine.

    Raises:
        UserError: the folder lacks the fusion's weights or word statistics, or a model in it cannot be loaded or
            does not support `compute`.
    """

    def __init__(self, path: str | Path, compute: Compute | None = None) -> None:
        path = Path(path)
        self._compute = compute or choose_compute()
        self.weights = read_weights(path / "fusion.json", SHIPPED)[SHIPPED]
        self._statistics = bm25.load(path / "words.json")
        with loading(str(path)):
            # else a relative path is taken for the name of a repository too, and the Hub is asked for it
            self._cross_encoder = CrossEncoder(str(path), local_files_only=True)
            self._biencoder = SentenceTransformer(str(path / "biencoder"), local_files_only=True)
            self._static = SentenceTransformer(str(path / "static"), local_files_only=True)
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
        texts = excerpts(
            self._cross_encoder.tokenizer, self._cross_encoder.max_seq_length, self._statistics, queries, passages
        )
        pairs, compute = (queries, passages), self._compute
        features = {
            "bm25": bm25.bm25(self._statistics, *pairs),
            "static_score": pair_cosines(self._static, *pairs, label="static embedding", compute=compute.static()),
            "biencoder_score": pair_cosines(self._biencoder, *pairs, label="bi-encoder", compute=compute),
            "cross_encoder": score_pairs(self._cross_encoder, queries, texts, label="cross-encoder", compute=compute),
        }
        return fuse(features, self.weights)

    def rank(self, query: str, passages: Sequence[str]) -> list[RankedPassage]:
        """The passages, best first; passages with equal scores keep their order."""
        return in_order(self.scores([query] * len(passages), passages), passages)


class Search:
    """Searches a corpus as the pipeline was measured: first stage, then reranker.

    Args:
        path: the folder that the train stage writes.
        passages: the corpus; it is embedded and indexed in memory.
        compute: see `Reranker`.

    Raises:
        UserError: see `Reranker`; or the first stage has other parts than BM25 and the two tuned models.
    """

    def __init__(self, path: str | Path, passages: Sequence[str], compute: Compute | None = None) -> None:
        self._weights = read_weights(Path(path) / "fusion.json", "retriever")["retriever"]
        if others := self._weights.keys() - {BM25, str(PATHS.static), str(PATHS.biencoder)}:
            raise UserError(
                f"{path}: its first stage has the part '{min(others)}', which Search does not serve; search with it "
                "yourself, and rank what it finds with Reranker"
            )
        self._reranker = Reranker(path, compute)
        self._passages = passages
        compute = compute or choose_compute()
        _, biencoder, static = self._reranker.models
        models = {str(PATHS.biencoder): (biencoder, compute), str(PATHS.static): (static, compute.static())}
        self._models = {name: model for name, model in models.items() if name in self._weights}
        self._vectors = {
            name: embed(model, passages, label=f"passages, {name}", compute=how)
            for name, (model, how) in self._models.items()
        }
        self._indexes = {name: index.build("auto", vectors, queries=1) for name, vectors in self._vectors.items()}
        self._words = Lexical(passages, [])

    def search(self, query: str, results: int = 10, candidates: int = 30) -> list[RankedPassage]:
        """The best passages for a query; `position` is that in the corpus.

        Args:
            query: a text.
            results: the largest number of passages to return.
            candidates: passages of the first stage that are reranked.
        """
        parts: dict[str, FirstStage] = {BM25: self._words.ask([query])}
        for name, (model, how) in self._models.items():
            vector = embed(model, [query], label="query", compute=how)
            parts[name] = Dense(self._vectors[name], vector, self._indexes[name])
        stage = WeightedSum([parts[name] for name in self._weights], list(self._weights.values()))
        found = stage.search(np.zeros(1, np.int64), candidates, label="search")
        places = found.positions[0][found.positions[0] >= 0]
        ranked = self._reranker.rank(query, [self._passages[place] for place in places])
        return [item._replace(position=int(places[item.position])) for item in ranked[:results]]


def in_order(scores: NDArray[np.float64], passages: Sequence[str]) -> list[RankedPassage]:
    """The passages by their scores, best first; passages with equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")
    return [RankedPassage(int(place), float(scores[place]), passages[place]) for place in order]


class Ranker(Protocol):
    """An object that ranks passages."""

    def rank(self, query: str, passages: Sequence[str]) -> list[RankedPassage]:
        """The passages, best first; passages with equal scores keep their order."""


class CrossEncoderRanker:
    """Ranks only by the scores of a cross-encoder.

    Args:
        scores: scores pairs with the cross-encoder.
        tokenizer: the cross-encoder's tokenizer.
        max_length: tokens of a pair.
        statistics: word statistics; with them the model reads excerpts of long passages, as in training.
    """

    def __init__(
        self, scores: Scores, tokenizer: PreTrainedTokenizerBase, max_length: int, statistics: bm25.Statistics | None
    ) -> None:
        self._scores, self._tokenizer, self._max_length, self._statistics = scores, tokenizer, max_length, statistics

    def rank(self, query: str, passages: Sequence[str]) -> list[RankedPassage]:
        """The passages, best first; passages with equal scores keep their order."""
        queries = [query] * len(passages)
        texts = passages
        if self._statistics:
            texts = excerpts(self._tokenizer, self._max_length, self._statistics, queries, passages)
        return in_order(self._scores(queries, texts), passages)


def load_ranker(folder: Path) -> Ranker:
    """The ranker in a folder.

    Raises:
        UserError: there is no such folder, or it holds no usable model.
    """
    if not folder.is_dir():
        if folder in PRODUCER:
            raise missing_error(folder)
        raise UserError(f"model '{folder}' does not exist; name a folder with a model in it")
    if (folder / "fusion.json").exists():
        return Reranker(folder)
    statistics = bm25.load(folder / "words.json") if (folder / "words.json").exists() else None
    if graph_file(folder):
        exported = ExportedModel(folder)
        return CrossEncoderRanker(exported.scores, exported.tokenizer, exported.max_length, statistics)
    compute = choose_compute()
    model = load_cross_encoder(str(folder), compute=compute)
    scores = partial(score_pairs, model, label="cross-encoder", compute=compute)
    return CrossEncoderRanker(scores, model.tokenizer, model.max_seq_length, statistics)
