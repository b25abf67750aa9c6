"""Build the parts of mining from their parameters (retriever, guards, rescorer), and count its figures."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.evaluation import metrics
from reranker.inference import fusion
from reranker.inference.compute import Compute
from reranker.inference.loading import choose_prompt, load_cross_encoder, load_retriever
from reranker.inference.scoring import pair_cosines, score_pairs
from reranker.mining.embedding_cache import Cache
from reranker.mining.false_negatives import Guards
from reranker.mining.judgments import Places
from reranker.mining.negatives import MiningResult, ScorePairs
from reranker.retrieval import bm25, index, ranking
from reranker.retrieval.index import Index
from reranker.retrieval.ranking import FirstStage, Vectors
from reranker.retrieval.retrievers import Dense, Lexical, WeightedSum

Scores = NDArray[np.float64]
BM25 = "bm25"
FITTED_DEPTH = 100
"""The number of passages of each retriever on which the weights of their sum are fitted."""
SAMPLE = 500
"""The number of queries on which an approximate index is compared with exact search."""


class VectorIndex(NamedTuple):
    """An index with the vectors that it was built for."""

    lookup: Index
    passages: Vectors
    queries: Vectors


class Retriever(NamedTuple):
    """The first-stage retriever."""

    stage: FirstStage
    indexes: list[VectorIndex]
    """The indexes that it searches; the list is empty where BM25 ranks alone."""
    weights: dict[str, float]
    """The weight of each part by its name."""


def retriever(
    names: Sequence[str],
    tables: Tables,
    cache: Cache,
    *,
    asked: Places,
    query_prompt: str | None,
    passage_prompt: str | None,
    index_name: str,
    compute: Compute,
) -> Retriever:
    """Build a retriever over the passages and queries of a data set.

    The scores of several retrievers are added up, with weights that are fitted on dev.

    Args:
        names: `bm25` or names of embedding models.
        tables: the data set.
        cache: the cache of vectors.
        asked: positions of the queries that are searched for, those of dev among them; it must not search for others.
        query_prompt: the prompt that is put before each query for a model; None stands for the model's own prompt.
        passage_prompt: the prompt for each passage, likewise.
        index_name: see `index.build`.
        compute: how vectors are computed and indexes searched; those of a static embedding are always in float32.

    Raises:
        UserError: a name is not that of a usable model, or no query of dev has a relevant passage among the first ones.
    """
    parts: dict[str, FirstStage] = {}
    indexes = []
    for name in dict.fromkeys(names):
        if name == BM25:
            parts[name] = lexical(tables)
        else:
            model = load_retriever(name, compute)
            how = compute.static() if isinstance(model[0], StaticEmbedding) else compute
            of_passage = choose_prompt(passage_prompt, model, "document", "passage")
            of_query = choose_prompt(query_prompt, model, "query")
            texts, questions = tables.passages["text"].tolist(), tables.queries["text"].iloc[asked].tolist()
            passages = cache.embed(model, texts, label="mine: passages", prompt=of_passage, compute=how)
            vectors = cache.embed(model, questions, label="mine: queries", prompt=of_query, compute=how)
            queries = np.zeros((len(tables.queries), vectors.shape[1]), dtype=np.float32)
            queries[asked] = vectors
            indexes.append(VectorIndex(index.build(index_name, passages, queries=len(asked)), passages, queries))
            parts[name] = Dense(passages, queries, indexes[-1].lookup, compute.engine)
    if len(parts) == 1:
        (name,) = parts
        return Retriever(parts[name], indexes, {name: 1.0})
    weights = fitted_weights(parts, tables)
    return Retriever(WeightedSum(list(parts.values()), list(weights.values())), indexes, weights)


def lexical(tables: Tables) -> Lexical:
    """BM25 over the passages and queries of a data set."""
    return Lexical(tables.passages["text"].tolist(), tables.queries["text"].tolist())


def fitted_weights(parts: Mapping[str, FirstStage], tables: Tables) -> dict[str, float]:
    """The weight of each retriever's scores, fitted on what any of them finds for the queries of dev.

    Args:
        parts: retrievers by name.
        tables: the data set.

    Raises:
        UserError: no query of dev has a relevant passage among the first ones.
    """
    query_ids, passage_ids = tables.queries["query_id"], tables.passages["passage_id"]
    dev = np.flatnonzero(tables.queries["split"] == "dev")
    found = [
        ranking.candidates(part.search(dev, FITTED_DEPTH, label="mine: weights"), query_ids.iloc[dev], passage_ids)
        for part in parts.values()
    ]
    pairs = pd.concat(found)[["query_id", "passage_id"]].drop_duplicates(ignore_index=True)
    of, at = (pd.Index(ids).get_indexer(pairs[ids.name]) for ids in (query_ids, passage_ids))
    scored = pairs.assign(**{name: part.scores(of, at) for name, part in parts.items()})
    try:
        return fusion.fit_weights(scored, tables.judgments, list(parts))
    except ValueError as error:
        raise UserError(f"params.yaml: retriever: on dev {error}; raise prepare.dev_share") from None


class HeldOut(NamedTuple):
    """What the first stage finds for the queries of dev and test."""

    queries: Places
    rankings: pd.DataFrame
    """Columns query_id, passage_id, rank, score: as deep as the figures need."""
    candidates: pd.DataFrame
    """The same and split: the first ranks, and the relevant passages that are not among them."""


def rank_held_out(stage: FirstStage, tables: Tables, *, depth: int, top_k: int) -> HeldOut:
    """Rank the corpus for the queries of dev and test.

    Args:
        stage: the first stage.
        tables: the data set.
        depth: number of ranks of the rankings, at least `top_k`.
        top_k: number of candidates of a query.
    """
    query_ids, passage_ids = tables.queries["query_id"], tables.passages["passage_id"]
    split = tables.queries.set_index("query_id")["split"]
    queries = np.flatnonzero(tables.queries["split"] != "train")
    found = stage.search(queries, depth, label="mine: dev and test")
    rankings = ranking.candidates(found, query_ids.iloc[queries], passage_ids)
    top = rankings[rankings["rank"] <= top_k]
    judgments = tables.judgments[tables.judgments["query_id"].map(split) != "train"]
    missed = ranking.missed_positives(top, judgments, stage, query_ids, passage_ids)
    candidates = pd.concat([top, missed]).sort_values(["query_id", "rank", "passage_id"], ignore_index=True)
    return HeldOut(queries, rankings, candidates.assign(split=candidates["query_id"].map(split)))


def bm25_run(tables: Tables, depth: int) -> pd.DataFrame:
    """What BM25 alone finds in the whole corpus for the queries of test: what a user has without any training.

    Args:
        tables: the data set.
        depth: number of passages per query.

    Returns:
        Columns query_id, passage_id, rank, score.
    """
    test = np.flatnonzero(tables.queries["split"] == "test")
    found = lexical(tables).search(test, depth, label="mine: BM25 alone")
    return ranking.candidates(found, tables.queries["query_id"].iloc[test], tables.passages["passage_id"])


def index_figures(
    indexes: Sequence[VectorIndex], queries: Places, *, depth: int, min_recall: float
) -> dict[str, float | str]:
    """Name the indexes, and measure the recall of the approximate ones on a sample of these queries.

    Recall is the share of the first `depth` passages of exact search that an index finds. A line is printed for each
    index whose recall is below `min_recall`. There are no figures where all indexes are exact.
    """
    recalls = []
    for lookup, passages, vectors in indexes:
        if lookup.name == "flat":
            continue
        recall = index.measured_recall(lookup, passages, vectors[queries], depth, sample=SAMPLE)
        recalls.append(recall)
        if recall < min_recall:
            print(
                f"mine: the index {lookup.name} finds {recall:.3f} of the exact top {depth}, which is below "
                f"index.min_recall {min_recall}: choose another index.kind, or flat"
            )
    if not recalls:
        return {}
    names = [
        " ".join([lookup.name, *(f"{name}={value}" for name, value in lookup.settings.items())])
        for lookup, *_ in indexes
    ]
    return {"index_chosen": ", ".join(names), f"index_recall@{depth}": min(recalls)}


def guards(
    passages: pd.DataFrame,
    cache: Cache,
    *,
    by_group: bool,
    similarity: float | None,
    model_name: str,
    containment: float | None,
    compute: Compute,
) -> Guards:
    """Build the guards for the passages of a data set, see `Guards`; passages are compared by the model's vectors."""
    texts = passages["text"].tolist()
    vectors = np.empty((len(texts), 0), np.float32)
    if similarity is not None:
        vectors = cache.embed(load_retriever(model_name), texts, label="mine: guards", compute=compute.static())
    groups = pd.factorize(passages["group"])[0].astype(np.int64)
    return Guards(groups, vectors, texts, by_group, similarity, containment)


def cross_encoder(name: str, tables: Tables, compute: Compute) -> ScorePairs:
    """Load a cross-encoder as a function that scores pairs, see `ScorePairs`.

    Args:
        name: a local folder or a Hub id.
        tables: the data set.
        compute: how the model computes.

    Raises:
        UserError: the name is not that of a usable model, or the model has several outputs.
    """
    model = load_cross_encoder(name, "params.yaml: negatives.rescorer:", compute)
    queries, passages = (table["text"] for table in tables[:2][::-1])

    def score(of: Places, at: Places) -> Scores:
        texts = queries.iloc[of].tolist(), passages.iloc[at].tolist()
        return score_pairs(model, *texts, label="mine: rescoring", compute=compute)

    return score


def cosines(model: SentenceTransformer, tables: Tables, compute: Compute, cache: Cache) -> ScorePairs:
    """A function that scores pairs by the cosine of an embedding model.

    Args:
        model: a static embedding or a bi-encoder.
        tables: the data set.
        compute: how the model computes.
        cache: where vectors are kept.
    """
    queries, passages = tables.queries["text"], tables.passages["text"]

    def score(of: Places, at: Places) -> Scores:
        texts = queries.iloc[of].tolist(), passages.iloc[at].tolist()
        return pair_cosines(model, *texts, label="mine: signals", compute=compute, cache=cache)

    return score


def with_signals(rows: pd.DataFrame, tables: Tables, static: ScorePairs, biencoder: ScorePairs) -> pd.DataFrame:
    """Add the scores that the cross-encoder is fused with to rows of pairs.

    Args:
        rows: columns query_id, passage_id.
        tables: the data set.
        static: scores pairs by the tuned static embedding, see `cosines`.
        biencoder: the same by the tuned bi-encoder.

    Returns:
        The rows with columns bm25, static_score, biencoder_score.
    """
    of = pd.Index(tables.queries["query_id"]).get_indexer(rows["query_id"])
    at = pd.Index(tables.passages["passage_id"]).get_indexer(rows["passage_id"])
    texts = tables.queries["text"].iloc[of].tolist(), tables.passages["text"].iloc[at].tolist()
    return rows.assign(
        bm25=bm25.bm25(bm25.statistics(tables.passages["text"]), *texts),
        static_score=static(of, at),
        biencoder_score=biencoder(of, at),
    )


def retriever_figures(judgments: pd.DataFrame, rankings: pd.DataFrame) -> dict[str, float]:
    """NDCG@10 and recall of the first-stage retriever on dev, for mine.json.

    Args:
        judgments: columns query_id, passage_id, relevance.
        rankings: columns query_id, passage_id, rank, score.

    Raises:
        UserError: no query has a relevant passage.
    """
    if not (judgments["relevance"] > 0).any():
        raise UserError("data/prepared/judgments.parquet: no query of dev has a relevant passage; raise dev_share")
    columns = ["query_id", "passage_id", "relevance"]
    dev = metrics.per_query(judgments[columns], rankings, ["nDCG@10", "R@10", "R@30", "R@100"]).mean()
    recalls = {f"retriever_dev_recall@{k}": float(dev[f"R@{k}"]) for k in (10, 30, 100)}
    return {"retriever_dev_ndcg@10": float(dev["nDCG@10"]), **recalls}


def weight_figures(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the first stage's parts, for mine.json; a local folder goes by its last name."""
    return {f"retriever_weight_{PurePath(name).name}": weight for name, weight in weights.items()}


def figures(result: MiningResult) -> dict[str, float]:
    """Count the rows and the refusals of mining, for mine.json."""
    rows = result.rows
    kinds = rows["kind"].value_counts()
    number = rows["query"].nunique()
    negatives = int((rows["relevance"] == 0).sum())
    of_query = rows.assign(hard=rows["kind"].isin(["hard", "judged"])).groupby("query")["hard"].any()
    return {
        "mined_queries": number,
        "negatives": negatives,
        "graded_passages": int(kinds.get("graded", 0)),
        "judged_negatives": int(kinds.get("judged", 0)),
        "random_negatives": int(kinds.get("random", 0)),
        "negatives_per_query": negatives / max(number, 1),
        "queries_without_hard_negatives": int((~of_query).sum()),
        **{f"refused_{reason}": count for reason, count in result.refusal_counts().items()},
    }
