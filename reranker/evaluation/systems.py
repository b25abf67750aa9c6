"""Load the systems that are compared: each entry of `systems` becomes a function that scores candidates.

Two kinds of systems combine the scores of several others, query by query: reciprocal rank fusion, and the kind `fused`,
which adds weighted z-scores. The ranks, means and deviations of a query are those of its retrieved candidates. So the
relevant passages that are added in the mode `all_positives` have a score, and do not change the other scores.
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
from reranker.evaluation import experiment_models
from reranker.evaluation.system_schema import (
    BiencoderSystem,
    CrossEncoderSystem,
    ExperimentSystem,
    RetrieverSystem,
    StaticSystem,
    System,
)
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
    """Settings that all systems share."""

    words: bm25.Statistics
    """BM25's statistics of the corpus."""
    max_length: int
    """The length of a text in tokens for a bi-encoder that sets no other."""
    query_prompt: str | None
    """The prompt before each query for a model of `retriever`; None stands for the model's own prompt."""
    passage_prompt: str | None
    """The prompt before each passage, likewise."""
    compute: Compute
    """How models compute; an exported model uses its own graph."""


class Loaded(NamedTuple):
    """A system that is ready to score."""

    scores: Callable[[pd.DataFrame], Scores]
    """Scores pairs with the columns query_id, query, passage and retrieved; one score per row, higher is better."""
    parameters: int
    """The number of parameters of its models; 0 if it has no model."""
    megabytes: float
    """The size of the weights on disk, in units of 1,000,000 bytes."""


@contextmanager
def open_system(system: System, settings: Settings, label: str) -> Iterator[Loaded]:
    """Load a system for the time of a `with` block.

    Args:
        system: a system of any kind but `fused` and `run`, with at most one experiment.
        settings: see `Settings`.
        label: the name of the step, shown beside the progress.

    Raises:
        UserError: a name is not that of a usable model, the model cannot read so many tokens or has fewer layers, the
            revision is unknown, or its reranker cannot be fetched.
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
        yield _biencoder(model, system.biencoder, prompts, settings, label)
    elif isinstance(system, StaticSystem):
        static = load_retriever(system.static)
        if not isinstance(static[0], StaticEmbedding):
            raise UserError(f"model '{system.static}' is not a static embedding; name it under biencoder")
        yield _biencoder(static, system.static, ("", ""), settings._replace(compute=settings.compute.static()), label)
    elif isinstance(system, CrossEncoderSystem):
        yield _cross_encoder(system, settings, label)
    else:
        raise TypeError(f"{type(system).__name__} has no scores of its own")


def shipped(folder: Path, settings: Settings) -> Loaded:
    """Load the fused reranker of a folder."""
    reranker = Reranker(folder, settings.compute)
    parameters = sum(_parameters(model) for model in reranker.models)
    megabytes = sum(_megabytes(str(part)) for part in (folder, folder / "biencoder", folder / "static"))

    def scores(pairs: pd.DataFrame) -> Scores:
        return reranker.scores(pairs["query"].tolist(), pairs["passage"].tolist())

    return Loaded(scores, parameters, megabytes)


def _retriever(names: Sequence[str], settings: Settings, label: str) -> Loaded:
    """Load a retriever; several are merged by reciprocal rank fusion over a query's candidates, not over the corpus."""
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
    model = load_retriever(name)
    if isinstance(model[0], StaticEmbedding):
        settings = settings._replace(compute=settings.compute.static())
    return _biencoder(model, name, prompts, settings, label)


def _biencoder(
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
    """Load a cross-encoder; like the one of `train`, it reads excerpts of passages that are too long."""
    name = system.cross_encoder
    if Path(name).is_relative_to(PATHS.students) and not Path(name).is_dir():
        raise UserError(
            f"{name} does not exist: student_layers in {PATHS.compare_params} says which students are trained"
        )
    if Path(name).is_relative_to(PATHS.export) or graph_file(Path(name)):
        return _load_exported(system, settings)
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
        parts = excerpts(model.tokenizer, model.max_seq_length, settings.words, queries, passages)
        return score_pairs(model, queries, parts, label=label, compute=settings.compute)

    return Loaded(scores, parameters, megabytes)


def _load_exported(system: CrossEncoderSystem, settings: Settings) -> Loaded:
    """Load an exported model, which computes by its own graph whatever the backend is."""
    folder = Path(system.cross_encoder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: run `dvc repro export/dvc.yaml`, or name a folder of {PATHS.export}")
    for key in ("num_layers", "max_length"):
        if getattr(system, key) is not None:
            raise UserError(f"{folder}: an exported model has the {key} that it was exported with; leave {key} out")
    model = ExportedModel(folder, settings.compute.precision)

    def scores(pairs: pd.DataFrame) -> Scores:
        queries, passages = pairs["query"].tolist(), pairs["passage"].tolist()
        parts = excerpts(model.tokenizer, model.max_length, settings.words, queries, passages)
        return model.scores(queries, parts)

    return Loaded(scores, read_about(folder).parameters, graph_bytes(model.graph) / 1e6)


def _parameters(model: SentenceTransformer | CrossEncoder) -> int:
    return sum(part.numel() for part in model.parameters())


def _megabytes(name: str) -> float:
    return sum(path.stat().st_size for path in weight_files(name)) / 1e6


def reciprocal_rank_fusion(scores: Sequence[Scores], pairs: pd.DataFrame) -> Scores:
    """Reciprocal rank fusion over the candidates of each query (Cormack, Clarke and Buettcher, SIGIR 2009).

    Args:
        scores: the scores of each system; shape (pairs,).
        pairs: columns query_id and retrieved, which says whether the retriever returned the candidate.

    Returns:
        The sum of 1 / (60 + rank); a rank is 1 plus the number of retrieved candidates that score higher.
    """
    shares = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        for system in scores:
            ascending = np.sort(system[rows][retrieved[rows]])
            higher = len(ascending) - np.searchsorted(ascending, system[rows], side="right")
            shares[rows] += 1 / (RRF_K + 1 + higher)
    return shares


def weighted_z_scores(scores: Mapping[str, Scores], weights: Mapping[str, float], pairs: pd.DataFrame) -> Scores:
    """The weighted sum of z-scores over the candidates of each query, as in `fusion.fuse` of standardised scores.

    Args:
        scores: the scores of each system; shape (pairs,). Systems without a weight are ignored.
        weights: the weight of each system.
        pairs: columns query_id and retrieved, which says whether the retriever returned the candidate.

    Returns:
        One score per pair. A system that scores all retrieved candidates of a query alike adds 0 to that query.
    """
    total = np.zeros(len(pairs))
    retrieved = pairs["retrieved"].to_numpy(bool)
    for rows in pairs.groupby("query_id").indices.values():
        reference = retrieved[rows]
        for system, weight in weights.items():
            of_query = scores[system][rows]
            deviation = of_query[reference].std() if reference.any() else 0.0
            if deviation > 0:
                total[rows] += weight * (of_query - of_query[reference].mean()) / deviation
    return total
