"""The test queries with the first passages of both rankings, and a guess at why no relevant passage is first.

This module decides what the page shows and packs it for the page's script: each text once, figures as integers,
compressed and in base64. The script only searches, sorts and displays.
"""

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from reranker.data import duplicates
from reranker.evaluation.metrics import rank
from reranker.report.tables import BASELINE, SHIPPED, label

TOP = 10
"""Passages of each ranking that are shown."""
MOST_RELEVANT = 5
"""The largest number of relevant passages that are shown for a query."""
TEXT = 300
"""The largest number of characters of a passage."""
SHORTEST = 80
"""The length in characters below which no passage is cut, however many passages there are."""
BUDGET = 9_000_000
"""Characters of all passages. If they have more, each is cut shorter, so that the page has only a few megabytes."""
UNIT = 1_000_000
"""NDCG is packed as an integer number of these parts of 1. Fewer parts would turn small differences into ties, and more
would turn rounding errors into differences."""
Mark = int
RELEVANT, UNJUDGED, IRRELEVANT = 1, 0, -1
MISSED = "relevant passage not retrieved"
NEAR = "unjudged near-duplicate of a relevant passage"
CUT = "relevant passage cut at max_length"
NONE = ""
REASONS = (NONE, MISSED, NEAR, CUT)
"""The possible guesses, in the order in which they are tried."""
CONTAINED = 0.8
"""Two passages that share this part of the shorter one's runs of words count as near-duplicates."""
runs = lru_cache(100_000)(duplicates.shingles)
"""Runs of words are cached, because a passage occurs in the rankings of many queries."""


class Passage(NamedTuple):
    """The text and the group of a passage."""

    text: str
    group: str
    """Passages that are near-duplicates by MinHash have the same group, see `dataset`."""


class Hit(NamedTuple):
    """A passage in a ranking."""

    passage_id: str
    score: float
    other: int
    """Its rank in the other of the two rankings, from 1; 0 if it is not there."""
    mark: Mark


class RelevantPassage(NamedTuple):
    """A relevant passage with its ranks in both rankings; they are 0 if it was not retrieved."""

    passage_id: str
    retriever: int
    reranker: int


class Query(NamedTuple):
    """A test query with its rankings and figures."""

    query_id: str
    text: str
    ndcg: Mapping[str, float]
    """NDCG@10 by system, candidates as retrieved; of BM25 that of a ranking of its own."""
    retriever: Sequence[Hit]
    reranker: Sequence[Hit]
    relevant: Sequence[RelevantPassage]
    reason: str
    """A guess at why no relevant passage is first, see `guess`; empty where one is first or there is no guess."""

    def gain(self) -> float:
        """NDCG@10 of the reranker minus that of the retriever, rounded to parts of `UNIT`."""
        return round(self.ndcg[SHIPPED] - self.ndcg[BASELINE], 6)


def explore(
    per_query: pd.DataFrame,
    texts: Mapping[str, str],
    passages: Mapping[str, Passage],
    judgments: pd.DataFrame,
    scored: Mapping[str, pd.DataFrame],
    holds: Callable[[str, str], bool],
) -> list[Query]:
    """Describe the test queries, sorted by their text.

    Args:
        per_query: query_id, and NDCG@10 in one column per system.
        texts: the texts of the queries by query_id.
        passages: all passages of the other tables by passage_id.
        judgments: columns query_id, passage_id, relevance; judgments of other queries are ignored.
        scored: for the names of the retriever and the reranker, the retrieved candidates with columns query_id,
            passage_id, score.
        holds: see `guess`.
    """
    ids = per_query["query_id"]
    relevance = _by_query(judgments[judgments["query_id"].isin(ids)], "relevance")
    orders = {system: _by_query(_ranked(run), "score") for system, run in scored.items()}
    figures = per_query.set_index("query_id").to_dict("index")
    queries = [
        _query(
            query_id,
            texts[query_id],
            {str(system): float(value) for system, value in figures[query_id].items()},
            {system: order.get(query_id, {}) for system, order in orders.items()},
            {passage_id: int(value) for passage_id, value in relevance.get(query_id, {}).items()},
            passages,
            holds,
        )
        for query_id in ids
    ]
    return sorted(queries, key=lambda query: (query.text.casefold(), query.query_id))


def lookup(passages: pd.DataFrame, *used: pd.DataFrame) -> dict[str, Passage]:
    """The passages that other tables name, by passage_id.

    Args:
        passages: columns passage_id, text, group.
        used: tables with a column passage_id.
    """
    ids = set().union(*(table["passage_id"] for table in used))
    rows = passages[passages["passage_id"].isin(ids)]
    return {
        passage_id: Passage(text, group)
        for passage_id, text, group in zip(rows["passage_id"], rows["text"], rows["group"], strict=True)
    }


def _ranked(run: pd.DataFrame) -> pd.DataFrame:
    # like the measures: trec_eval compares scores in single precision
    return rank(run.assign(score=run["score"].astype("float32")))


def _by_query(table: pd.DataFrame, value: str) -> dict[str, dict[str, float]]:
    """The values of a column by query and passage, in the order of the table."""
    values: dict[str, dict[str, float]] = {}
    for query_id, passage_id, own in zip(table["query_id"], table["passage_id"], table[value], strict=True):
        values.setdefault(query_id, {})[passage_id] = own
    return values


def _query(
    query_id: str,
    text: str,
    ndcg: dict[str, float],
    scores: dict[str, dict[str, float]],
    relevance: dict[str, int],
    passages: Mapping[str, Passage],
    holds: Callable[[str, str], bool],
) -> Query:
    ranks = {system: {passage_id: place for place, passage_id in enumerate(own, 1)} for system, own in scores.items()}
    first, second = ranks[BASELINE], ranks[SHIPPED]
    relevant = [
        RelevantPassage(passage, first.get(passage, 0), second.get(passage, 0))
        for passage, grade in relevance.items()
        if grade > 0
    ]
    relevant.sort(key=lambda one: (one.reranker == 0, one.reranker, one.passage_id))
    retrieved = [one for one in relevant if one.reranker]
    reason = NONE
    if relevant and relevant[0].reranker != 1:
        best = relevant[0].reranker
        above = [passages[passage] for passage, place in second.items() if place < best and passage not in relevance]
        reason = guess(text, [passages[one.passage_id] for one in retrieved], above, holds)
    return Query(
        query_id,
        text,
        ndcg,
        _hits(scores[BASELINE], second, relevance),
        _hits(scores[SHIPPED], first, relevance),
        relevant,
        reason,
    )


def _hits(scores: dict[str, float], others: dict[str, int], relevance: dict[str, int]) -> list[Hit]:
    return [
        Hit(passage_id, float(score), others.get(passage_id, 0), _mark(relevance.get(passage_id)))
        for passage_id, score in list(scores.items())[:TOP]
    ]


def _mark(relevance: int | None) -> Mark:
    return UNJUDGED if relevance is None else RELEVANT if relevance > 0 else IRRELEVANT


def worst(queries: Sequence[Query], most: int) -> list[Query]:
    """The queries with the largest losses against the retriever, the worst first; ties keep their order."""
    return sorted((query for query in queries if query.gain() < 0), key=Query.gain)[:most]


def pack(queries: Sequence[Query], passages: Mapping[str, Passage]) -> str:
    """Pack the queries and their passages for the page's script.

    The result is JSON in zlib's format, in base64. Objects are packed as lists, whose items `explorer.js` names. zlib's
    format contains no time, so equal queries give equal text.

    Args:
        queries: at least one query, in the order in which the page lists them by text.
        passages: the passages by passage_id.
    """
    used = {hit.passage_id for query in queries for hit in (*query.retriever, *query.reranker)}
    used |= {one.passage_id for query in queries for one in query.relevant[:MOST_RELEVANT]}
    # sorting by text puts similar texts beside each other, which compresses better
    ids = sorted(used, key=lambda passage_id: (passages[passage_id].text, passage_id))
    size = min(TEXT, max(SHORTEST, BUDGET // max(len(ids), 1)))
    place = {passage_id: number for number, passage_id in enumerate(ids)}
    systems = list(queries[0].ndcg)
    content = {
        "systems": [label(system) for system in systems],
        "retriever": systems.index(BASELINE),
        "reranker": systems.index(SHIPPED),
        "unit": UNIT,
        "reasons": REASONS,
        "passages": [ids, [cut(passages[passage_id].text, size) for passage_id in ids]],
        "queries": [
            [
                query.query_id,
                query.text,
                [round(query.ndcg[system] * UNIT) for system in systems],
                REASONS.index(query.reason),
                *([_packed(hit, place) for hit in hits] for hits in (query.retriever, query.reranker)),
                [[place[one.passage_id], one.retriever, one.reranker] for one in query.relevant[:MOST_RELEVANT]],
                len(query.relevant),
            ]
            for query in queries
        ],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")


def _packed(hit: Hit, place: Mapping[str, int]) -> list[int | float]:
    return [place[hit.passage_id], float(f"{hit.score:.4g}"), hit.other, hit.mark]


def cut(text: str, size: int) -> str:
    """Put a text into one line of at most `size` characters."""
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 1].rstrip()}…"


def guess(query: str, relevant: Sequence[Passage], above: Sequence[Passage], holds: Callable[[str, str], bool]) -> str:
    """Guess why no relevant passage of a query is first.

    Args:
        query: the text of the query.
        relevant: the relevant passages that were retrieved, the best ranked first.
        above: the unjudged passages that the reranker ranks above the first relevant one.
        holds: whether the cross-encoder can read all the words of a query that are in a passage, see
            `excerpts.can_hold`.

    Returns:
        One of `REASONS`.
    """
    if not relevant:
        return MISSED
    if any(alike(one, other) for one in above for other in relevant):
        return NEAR
    return NONE if holds(query, relevant[0].text) else CUT


def alike(first: Passage, second: Passage) -> bool:
    """Whether two passages are of one group or share most runs of words of the shorter one."""
    if first.group == second.group:
        return True
    own, others = runs(first.text), runs(second.text)
    common = len(np.intersect1d(own, others, assume_unique=True))
    return common >= CONTAINED * min(len(own), len(others))
