"""Every test query with what the retriever and the reranker put first, and a guess at why a right passage is not.

What the page's script reads is packed here: texts once, figures as integers, deflated and in base64. All that is
decided is decided here; the script searches, sorts and shows.
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
MOST_RIGHT = 5
"""Right passages of a query that are shown beside them."""
TEXT = 300
"""Characters of a passage at most."""
SHORTEST = 80
"""Characters of a passage at least, however many there are."""
BUDGET = 9_000_000
"""Characters of all passages: beyond it each is cut shorter, so that the page has a few megabytes."""
UNIT = 1_000_000
"""NDCG is counted in such parts of 1: fewer would turn differences into ties, more the last bits into differences."""
Mark = int
RIGHT, UNJUDGED, WRONG = 1, 0, -1
MISSED = "right passage not retrieved"
NEAR = "unjudged near-duplicate of the right answer"
CUT = "right passage cut at max_length"
NONE = ""
REASONS = (NONE, MISSED, NEAR, CUT)
"""In the order in which they are looked for."""
CONTAINED = 0.8
"""Share of the shorter passage's runs of words from which two passages are taken to be nearly the same."""
runs = lru_cache(100_000)(duplicates.shingles)
"""A passage stands in the rankings of many queries."""


class Passage(NamedTuple):
    """A passage as far as it is needed here."""

    text: str
    group: str
    """The same for passages that are nearly the same by MinHash, see `dataset`."""


class Hit(NamedTuple):
    """A passage in a ranking."""

    passage_id: str
    score: float
    other: int
    """Its rank in the other of the two rankings, from 1."""
    mark: Mark


class Right(NamedTuple):
    """A right passage; its ranks are 0 where it was not retrieved."""

    passage_id: str
    retriever: int
    reranker: int


class Query(NamedTuple):
    """A test query and what became of it."""

    query_id: str
    text: str
    ndcg: Mapping[str, float]
    """NDCG@10 by system, candidates as retrieved."""
    retriever: Sequence[Hit]
    reranker: Sequence[Hit]
    right: Sequence[Right]
    reason: str
    """A guess at why no right passage is first, see `reasons`; empty where one is, or where there is none."""

    def gain(self) -> float:
        """NDCG@10 of the reranker less that of the retriever; parts of `UNIT` aside."""
        return round(self.ndcg[SHIPPED] - self.ndcg[BASELINE], 6)


def explore(
    per_query: pd.DataFrame,
    texts: Mapping[str, str],
    passages: Mapping[str, Passage],
    judgments: pd.DataFrame,
    scored: Mapping[str, pd.DataFrame],
    holds: Callable[[str, str], bool],
) -> list[Query]:
    """The test queries, sorted by their text.

    Args:
        per_query: query_id and one column a system: its NDCG@10.
        texts: of the queries, by query_id.
        passages: by passage_id; all those of the other tables.
        judgments: columns query_id, passage_id, relevance; those of other queries are left out.
        scored: the retrieved candidates of the retriever and the reranker by their names; columns query_id, passage_id,
            score.
        holds: see `reasons.guess`.
    """
    ids = per_query["query_id"]
    judged = _by_query(judgments[judgments["query_id"].isin(ids)], "relevance")
    orders = {system: _by_query(_ranked(run), "score") for system, run in scored.items()}
    figures = per_query.set_index("query_id").to_dict("index")
    found = [
        _query(
            query_id,
            texts[query_id],
            {str(system): float(value) for system, value in figures[query_id].items()},
            {system: order.get(query_id, {}) for system, order in orders.items()},
            {passage_id: int(value) for passage_id, value in judged.get(query_id, {}).items()},
            passages,
            holds,
        )
        for query_id in ids
    ]
    return sorted(found, key=lambda query: (query.text.casefold(), query.query_id))


def lookup(passages: pd.DataFrame, *used: pd.DataFrame) -> dict[str, Passage]:
    """The passages that other tables name, by passage_id.

    Args:
        passages: columns passage_id, text, group.
        used: tables with a column passage_id.
    """
    named = set().union(*(table["passage_id"] for table in used))
    found = passages[passages["passage_id"].isin(named)]
    return {
        passage_id: Passage(text, group)
        for passage_id, text, group in zip(found["passage_id"], found["text"], found["group"], strict=True)
    }


def _ranked(run: pd.DataFrame) -> pd.DataFrame:
    # as in the measures: trec_eval compares scores in single precision
    return rank(run.assign(score=run["score"].astype("float32")))


def _by_query(table: pd.DataFrame, value: str) -> dict[str, dict[str, float]]:
    """By query and passage, in the order of the table."""
    found: dict[str, dict[str, float]] = {}
    for query_id, passage_id, own in zip(table["query_id"], table["passage_id"], table[value], strict=True):
        found.setdefault(query_id, {})[passage_id] = own
    return found


def _query(
    query_id: str,
    text: str,
    ndcg: dict[str, float],
    scores: dict[str, dict[str, float]],
    judged: dict[str, int],
    passages: Mapping[str, Passage],
    holds: Callable[[str, str], bool],
) -> Query:
    ranks = {system: {passage_id: place for place, passage_id in enumerate(own, 1)} for system, own in scores.items()}
    first, second = ranks[BASELINE], ranks[SHIPPED]
    right = [Right(passage, first.get(passage, 0), second.get(passage, 0)) for passage in judged if judged[passage] > 0]
    right.sort(key=lambda one: (one.reranker == 0, one.reranker, one.passage_id))
    retrieved = [one for one in right if one.reranker]
    reason = NONE
    if right and right[0].reranker != 1:
        best = right[0].reranker
        above = [passages[passage] for passage, place in second.items() if place < best and passage not in judged]
        reason = guess(text, [passages[one.passage_id] for one in retrieved], above, holds)
    return Query(
        query_id,
        text,
        ndcg,
        _hits(scores[BASELINE], second, judged),
        _hits(scores[SHIPPED], first, judged),
        right,
        reason,
    )


def _hits(scores: dict[str, float], others: dict[str, int], judged: dict[str, int]) -> list[Hit]:
    return [
        Hit(passage_id, float(score), others.get(passage_id, 0), _mark(judged.get(passage_id)))
        for passage_id, score in list(scores.items())[:TOP]
    ]


def _mark(relevance: int | None) -> Mark:
    return UNJUDGED if relevance is None else RIGHT if relevance > 0 else WRONG


def worst(queries: Sequence[Query], most: int) -> list[Query]:
    """The queries that the reranker loses most on against the retriever, the worst first, ties in their order."""
    return sorted((query for query in queries if query.gain() < 0), key=Query.gain)[:most]


def pack(queries: Sequence[Query], passages: Mapping[str, Passage]) -> str:
    """The queries and the passages that they show, for the page's script.

    JSON in zlib's format, in base64. Objects are lists, named in `explorer.js`. zlib's format has no time in it, so the
    same queries give the same text.

    Args:
        queries: in the order in which the page lists them by text; one at least.
        passages: by passage_id.
    """
    shown = {hit.passage_id for query in queries for hit in (*query.retriever, *query.reranker)}
    shown |= {one.passage_id for query in queries for one in query.right[:MOST_RIGHT]}
    # sorted by text, nearly equal ones stand beside each other, which packs them better
    ids = sorted(shown, key=lambda passage_id: (passages[passage_id].text, passage_id))
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
                [[place[one.passage_id], one.retriever, one.reranker] for one in query.right[:MOST_RIGHT]],
                len(query.right),
            ]
            for query in queries
        ],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")


def _packed(hit: Hit, place: Mapping[str, int]) -> list[int | float]:
    return [place[hit.passage_id], float(f"{hit.score:.4g}"), hit.other, hit.mark]


def cut(text: str, size: int) -> str:
    """A text in one line of so many characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 1].rstrip()}…"


def guess(query: str, right: Sequence[Passage], above: Sequence[Passage], holds: Callable[[str, str], bool]) -> str:
    """Why no right passage of a query stands first.

    Args:
        query: its text.
        right: the right passages that were retrieved, the best ranked first.
        above: the passages that the reranker put above the first of them and that nobody has judged.
        holds: whether the cross-encoder can read all the words of a query that a passage has, see `reach.can_hold`.

    Returns:
        One of `REASONS`.
    """
    if not right:
        return MISSED
    if any(alike(one, other) for one in above for other in right):
        return NEAR
    return NONE if holds(query, right[0].text) else CUT


def alike(first: Passage, second: Passage) -> bool:
    """Whether two passages are of one group, or one has most of the other's runs of words."""
    if first.group == second.group:
        return True
    own, others = runs(first.text), runs(second.text)
    common = len(np.intersect1d(own, others, assume_unique=True))
    return common >= CONTAINED * min(len(own), len(others))
