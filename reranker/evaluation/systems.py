"""The systems that are compared: from what params.yaml says of one to something that scores candidates.

Two kinds make one score of several systems', query by query: reciprocal rank fusion, and the kind `fused`,
which adds their z-scores with weights. What is taken of a query (ranks, mean, deviation) is taken of the candidates
that the retriever found. So the right passages that are added in the mode `all_positives` have a score, and move none
of the others.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError
from reranker.common.model_files import resolve, weight_files
from reranker.common.system_schema import (
    BiencoderSystem,
    CrossEncoderSystem,
    ExperimentSystem,
    RetrieverSystem,
    StaticSystem,
    System,
)
from reranker.evaluation import experiment_models
from reranker.inference.compute import Compute
from reranker.inference.excerpts import excerpts
from reranker.inference.export import ExportedModel, graph_bytes, graph_file, read_about
from reranker.inference.loading import (
    check_lengths,
    choose_prompt,
    keep_first_layers,
    load_biencoder,
    load_cross_encoder,
    load_retriever,
)
from reranker.inference.reranker import Reranker
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.retrieval import bm25
from reranker.retrieval.retrievers import RRF_K

Scores = NDArray[np.float64]
BM25 = "bm25"


class Settings(NamedTuple):
    """What the systems share."""

    words: bm25.Statistics
    """Of the corpus."""
    max_length: int
    """Tokens of a text for a bi-encoder that says nothing else."""
    query_prompt: str | None
    """Put before each query for a model of `retriever`; None: what the model brings."""
    passage_prompt: str | None
    """The same before each passage."""
    compute: Compute
    """How models compute; an exported model computes here by itself."""


class Loaded(NamedTuple):
    """A system that is ready."""

    scores: Callable[[pd.DataFrame], Scores]
    """Of pairs: columns query_id, query, passage and retrieved, see `combining`; a score per row, higher is better."""
    parameters: int
    """Of its models; 0 where it has none."""
    megabytes: float
    """Of their weights on disk, in units of 1,000,000 bytes."""


@contextmanager
def opened(system: System, settings: Settings, label: str) -> Iterator[Loaded]:
    """A system with a way to score pairs by itself, until the block ends.

    Args:
        system: of any kind but `fused` and `run`; one experiment at most.
        settings: see `Settings`.
        label: shown beside the progress.

    Raises:
        UserError: there is no usable model of a name, it cannot read so many tokens or has fewer layers, or the
            revision is unknown or its reranker cannot be fetched.
    """
    if isinstance(system, ExperimentSystem):
        (name,) = system.experiment
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "reranker"
            experiment_models.fetch(name, folder)
            if system.model == "reranker":
                yield shipped(folder, settings)
            else:
                words = bm25.load(folder / "words.json")
                alone = CrossEncoderSystem(cross_encoder=str(folder))
                yield _cross_encoder(alone, settings._replace(words=words), label)
    elif isinstance(system, RetrieverSystem):
        yield _retriever(system.retriever, settings, label)
    elif isinstance(system, BiencoderSystem):
        model = load_biencoder(resolve(system.biencoder), system.max_length or settings.max_length)
        check_lengths(model[0], max_length=model.max_seq_length or 0)
        prompts = system.query_prompt, system.passage_prompt
        yield _vectors(model, system.biencoder, prompts, settings, label)
    elif isinstance(system, StaticSystem):
        static = load_retriever(system.static)
        if not isinstance(static[0], StaticEmbedding):
            raise UserError(f"model '{system.static}' is not a static embedding; name it under biencoder")
        yield _vectors(static, system.static, ("", ""), settings._replace(compute=settings.compute.static()), label)
    elif isinstance(system, CrossEncoderSystem):
        yield _cross_encoder(system, settings, label)
    else:
        raise TypeError(f"{type(system).__name__} has no scores of its own")


def shipped(folder: Path, settings: Settings) -> Loaded:
    """The fused reranker of a folder."""
    reranker = Reranker(folder, settings.compute)
    parameters = sum(_parameters(model) for model in reranker.models)
    megabytes = sum(_megabytes(str(part)) for part in (folder, folder / "biencoder", folder / "static"))

    def scores(pairs: pd.DataFrame) -> Scores:
        return reranker.scores(pairs["query"].tolist(), pairs["passage"].tolist())

    return Loaded(scores, parameters, megabytes)


def _retriever(names: Sequence[str], settings: Settings, label: str) -> Loaded:
    """Reciprocal rank fusion of several, over the candidates of the query, not over the corpus."""
    parts = [_first_stage(name, settings, label) for name in names]
    if len(parts) == 1:
        return parts[0]

    def scores(pairs: pd.DataFrame) -> Scores:
        return reciprocal_rank_fusion([part.scores(pairs) for part in parts], pairs)

    return Loaded(scores, sum(part.parameters for part in parts), sum(part.megabytes for part in parts))


def _first_stage(name: str, settings: Settings, label: str) -> Loaded:
    if name == BM25:
        words = settings.words
        return Loaded(lambda pairs: bm25.bm25(words, pairs["query"].tolist(), pairs["passage"].tolist()), 0, 0.0)
    prompts = settings.query_prompt, settings.passage_prompt
    return _vectors(load_retriever(name), name, prompts, settings._replace(compute=settings.compute.static()), label)


def _vectors(
    model: SentenceTransformer,
    name: str,
    prompts: tuple[str | None, str | None],
    settings: Settings,
    label: str,
) -> Loaded:
    of_query = choose_prompt(prompts[0], model, "query")
    of_passage = choose_prompt(prompts[1], model, "document", "passage")
    parameters = _parameters(model)
    settings.compute.apply(model)

    def scores(pairs: pd.DataFrame) -> Scores:
        return pair_cosines(
            model,
            pairs["query"].tolist(),
            pairs["passage"].tolist(),
            label=label,
            query_prompt=of_query,
            passage_prompt=of_passage,
            compute=settings.compute,
        )

    return Loaded(scores, parameters, _megabytes(name))


def _cross_encoder(system: CrossEncoderSystem, settings: Settings, label: str) -> Loaded:
    """It reads excerpts of passages that do not fit, as the cross-encoder that `train` makes does."""
    name = system.cross_encoder
    if Path(name).is_relative_to(PATHS.students) and not Path(name).is_dir():
        raise UserError(
            f"{name} does not exist: evaluation.student_layers in params.yaml says which students are trained"
        )
    if Path(name).is_relative_to(PATHS.export) or graph_file(Path(name)):
        return _exported(system, settings)
    model = load_cross_encoder(name)
    megabytes = _megabytes(name)
    if system.num_layers is not None:
        keep_first_layers(model[0].model, system.num_layers)
        megabytes = sum(part.numel() * part.element_size() for part in model.parameters()) / 1e6
    if system.max_length is not None:
        check_lengths(model[0], max_length=system.max_length)
        model.max_seq_length = system.max_length
    parameters = _parameters(model)
    settings.compute.apply(model)

    def scores(pairs: pd.DataFrame) -> Scores:
        queries, passages = pairs["query"].tolist(), pairs["passage"].tolist()
        shown = excerpts(model.tokenizer, model.max_seq_length, settings.words, queries, passages)
        return score_pairs(model, queries, shown, label=label, compute=settings.compute)

    return Loaded(scores, parameters, megabytes)


def _exported(system: CrossEncoderSystem, settings: Settings) -> Loaded:
    """What the export stage wrote, computed by its own graph whatever the backend is."""
    folder = Path(system.cross_encoder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: run `dvc repro export/dvc.yaml`, or name a folder of {PATHS.export}")
    for key in ("num_layers", "max_length"):
        if getattr(system, key) is not None:
            raise UserError(f"{folder}: an exported model has the {key} that it was exported with; leave {key} out")
    model = ExportedModel(folder, settings.compute.precision)

    def scores(pairs: pd.DataFrame) -> Scores:
        queries, passages = pairs["query"].tolist(), pairs["passage"].tolist()
        shown = excerpts(model.tokenizer, model.max_length, settings.words, queries, passages)
        return model.scores(queries, shown)

    return Loaded(scores, read_about(folder).parameters, graph_bytes(model.graph) / 1e6)


def _parameters(model: SentenceTransformer | CrossEncoder) -> int:
    return sum(part.numel() for part in model.parameters())


def _megabytes(name: str) -> float:
    return sum(path.stat().st_size for path in weight_files(name)) / 1e6


def reciprocal_rank_fusion(scores: Sequence[Scores], pairs: pd.DataFrame) -> Scores:
    """Reciprocal rank fusion over the candidates of each query (Cormack, Clarke and Buettcher, SIGIR 2009).

    Args:
        scores: of each system; shape (pairs,).
        pairs: columns query_id and retrieved, which candidates the retriever found.

    Returns:
        The sum of 1 / (60 + rank); a rank is 1 and the number of retrieved candidates that score higher.
    """
    shares = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        for system in scores:
            found = np.sort(system[rows][retrieved[rows]])
            higher = len(found) - np.searchsorted(found, system[rows], side="right")
            shares[rows] += 1 / (RRF_K + 1 + higher)
    return shares


def added_z_scores(scores: Mapping[str, Scores], weights: Mapping[str, float], pairs: pd.DataFrame) -> Scores:
    """The weighted sum of z-scores over the candidates of each query, as in `fusion.fuse` of standardised scores.

    Args:
        scores: by system; shape (pairs,). Those without a weight do not count.
        weights: by system.
        pairs: columns query_id and retrieved, which candidates the retriever found.

    Returns:
        One score a pair. A system that scores all retrieved candidates of a query alike says nothing of it.
    """
    added = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        known = retrieved[rows]
        for system, weight in weights.items():
            of_query = scores[system][rows]
            spread = of_query[known].std() if known.any() else 0.0
            if spread > 0:
                added[rows] += weight * (of_query - of_query[known].mean()) / spread
    return added
