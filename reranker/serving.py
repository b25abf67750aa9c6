"""A ranker from a folder, whatever is in it: the shipped reranker, a cross-encoder alone, or an exported one."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from reranker import lexical
from reranker.compiled import use_backend
from reranker.errors import UserError
from reranker.excerpts import excerpts
from reranker.exported import Exported, graph_file
from reranker.fused import Ranked, Reranker, in_order
from reranker.records import PRODUCER, missing
from reranker.scoring import choose_precision, load_cross_encoder, score_pairs

Scores = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""Of each query with the passage at the same place."""


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
        self, scores: Scores, tokenizer: PreTrainedTokenizerBase, max_length: int, words: lexical.Statistics | None
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
            raise missing(folder)
        raise UserError(f"model '{folder}' does not exist; name a folder with a model in it")
    if (folder / "fusion.json").exists():
        return Reranker(folder)
    words = lexical.load(folder / "words.json") if (folder / "words.json").exists() else None
    if graph_file(folder):
        exported = Exported(folder)
        return CrossEncoderRanker(exported.scores, exported.tokenizer, exported.max_length, words)
    model = load_cross_encoder(str(folder))
    precision = choose_precision("auto")
    use_backend(model, "auto", precision)
    scores = partial(score_pairs, model, label="cross-encoder", precision=precision)
    return CrossEncoderRanker(scores, model.tokenizer, model.max_seq_length, words)
