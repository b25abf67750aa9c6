"""Builds the tables that every later stage reads. Duplicates are merged, and related queries go to the same split.

Tables (ids are strings, rows are sorted by id):

    passages   passage_id, text, group
    queries    query_id, text, group, split (train, dev or test), source (the name of a source in params.yaml)
    judgments  query_id, passage_id, relevance (an integer; above 0 means relevant)

A group is named after the smallest id in it. Passages of one group have the same text or nearly the same. Queries of
one group are in the same split, except for those to which their source gives a split.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reranker.common.artifacts import SPLITS
from reranker.data import duplicates
from reranker.data.cleaning import SPLIT_NAMES, number
from reranker.data.text_store import Spool

CHUNK = 100_000
"""Rows of a table that are written at a time."""


class Plan(NamedTuple):
    """The tables as numbers, without their texts."""

    passages: pd.DataFrame
    """Columns row (its number in the spool), name (a hash of 6 bytes), key (one of 8 bytes), collides (whether another
    passage has that name), group (a position in this table)."""
    queries: pd.DataFrame
    """The same columns, split (a position in `SPLIT_NAMES`) and source (a position among the sorted names)."""
    judgments: pd.DataFrame
    """Columns query and passage (positions in these tables), relevance."""
    num_compared: int
    """The number of passages that were compared for near duplicates."""


def build(
    rows: pd.DataFrame, spool: Spool, *, near_duplicates: float | None, dev_share: float, test_share: float
) -> Plan:
    """Merge duplicates and assign splits.

    Passages with the same text become one passage. Queries with the same text, letter case aside, become one query. It
    has the passages of all of them, each with its highest relevance. Ids are hashes of the text, so they stay the same
    when data is added.

    Two queries are in one group when their texts have the same fingerprint, or when each has a relevant passage of the
    same group. Two passages are in one group when they have the same fingerprint or are near duplicates. Both relations
    are transitive.

    A query to which a source gives a split is in that split. If it is given several, it is in the last of train, dev
    and test. The other queries follow the given split of their group, or the hash of the group. As long as no query is
    given to dev, the hash also moves queries from train to dev, and the same holds for test. A query that several
    sources have counts for the first of them by name.

    Args:
        rows: columns as in `CleaningResult.rows`.
        spool: the texts of the rows.
        near_duplicates: similarity from which passages are near duplicates (see `duplicates.near_duplicates`), or None
            to compare none. At most `duplicates.MAX_PASSAGES` passages are compared, those relevant for a query first.
        dev_share: share of the query groups that goes to dev, below 1.
        test_share: the same for test.
    """
    has_query = (rows["query"] != 0).to_numpy()
    passages = _texts(rows, "passage", np.arange(len(rows)))
    # A merged query has the wording with the smallest hash, so that the order of the rows does not matter.
    by_wording = np.argsort(rows["wording"].to_numpy(), kind="stable")
    queries = _texts(rows, "query", by_wording[has_query[by_wording]])
    pairs = pd.DataFrame({"query": _positions(queries, rows["query"][has_query])})
    origins = (
        rows[["split", "source"]][has_query].groupby(pairs["query"].to_numpy()).agg({"split": "max", "source": "min"})
    )
    pairs["passage"] = _positions(passages, rows["passage"][has_query])
    pairs["relevance"] = rows["relevance"].to_numpy()[has_query]
    judgments = pairs.groupby(["query", "passage"], as_index=False)[["relevance"]].max()
    del pairs
    relevant = judgments[judgments["relevance"] > 0]

    alike = np.empty((0, 2), np.int64)
    compared = np.empty(0, np.int64)
    if near_duplicates is not None:
        is_relevant = np.bincount(relevant["passage"], minlength=len(passages)) > 0
        compared = np.sort(np.argsort(~is_relevant, kind="stable")[: duplicates.MAX_PASSAGES])
        texts = spool.texts("passage", passages["row"].to_numpy()[compared])
        alike = compared[duplicates.near_duplicates(texts, near_duplicates)]
    passages["group"] = _groups(passages["print"], alike[:, 0], alike[:, 1])
    group_of = passages["group"].to_numpy()[relevant["passage"]]
    first = pd.Series(relevant["query"].to_numpy()).groupby(group_of).transform("first").to_numpy()
    queries["group"] = _groups(queries["print"], first, relevant["query"].to_numpy())

    names, group = np.unique(queries["group"], return_inverse=True)
    by_hash = assign_splits(_ids("q", queries.iloc[names]), dev_share, test_share)[group]
    queries["split"] = settle_splits(queries["group"].to_numpy(), origins["split"].to_numpy(), by_hash)
    queries["source"] = origins["source"].to_numpy()
    return Plan(passages.drop(columns="print"), queries.drop(columns="print"), judgments, len(compared))


def _texts(rows: pd.DataFrame, kind: str, order: NDArray[np.int64]) -> pd.DataFrame:
    """One row for each distinct text, sorted as the ids will be. The first in `order` stands for rows with one text."""
    first = order[~pd.Series(rows[kind].to_numpy()[order]).duplicated().to_numpy()]
    first = first[np.lexsort((rows[kind].to_numpy()[first], rows[f"{kind}_id"].to_numpy()[first]))]
    names = {"row": rows.index, "name": rows[f"{kind}_id"], "key": rows[kind], "print": rows[f"{kind}_print"]}
    table = pd.DataFrame({name: column.to_numpy()[first] for name, column in names.items()})
    return table.assign(collides=table["name"].duplicated(keep=False))


def _positions(table: pd.DataFrame, keys: pd.Series) -> NDArray[np.int64]:
    """The position in the table of each key."""
    order = np.argsort(table["key"].to_numpy(), kind="stable")
    return order[np.searchsorted(table["key"].to_numpy()[order], keys.to_numpy())]


def _groups(prints: pd.Series, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest position in each row's group. Rows with the same print and rows of a pair are in one group."""
    size = len(prints)
    codes = pd.factorize(prints)[0]
    starts = pd.Series(np.arange(size)).groupby(codes).transform("first").to_numpy()
    ends = np.concatenate([starts, first]), np.concatenate([np.arange(size), second])
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return pd.Series(np.arange(size)).groupby(component).transform("first").to_numpy()


def assign_splits(groups: Sequence[str], dev_share: float, test_share: float) -> NDArray[np.int64]:
    """The split of each group, as a position in `SPLIT_NAMES`. It follows from a hash of the group's name alone."""
    draws = np.fromiter((number(name, 6) / 2**48 for name in groups), float, len(groups))
    ends = [test_share, test_share + dev_share]
    splits = np.array([SPLIT_NAMES.index(split) for split in ("test", "dev", "train")])
    return splits[np.searchsorted(ends, draws, side="right")]


def settle_splits(
    groups: NDArray[np.int64], by_source: NDArray[np.int64], by_hash: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Decide the split of each query, as a position in `SPLIT_NAMES`; see `build`.

    Args:
        groups: number of each query's group.
        by_source: the split that the source gives to the query.
        by_hash: the split by the hash of the group.
    """
    own = np.where(by_source > 0, by_source, pd.Series(by_source).groupby(groups).transform("max"))
    split = np.where(own > 0, own, by_hash)
    for name in SPLITS[1:]:
        if not (by_source == SPLIT_NAMES.index(name)).any():
            split = np.where((own == SPLIT_NAMES.index("train")) & (by_hash == SPLIT_NAMES.index(name)), by_hash, split)
    return split


def passages_table(plan: Plan, spool: Spool) -> Iterator[pd.DataFrame]:
    """The table of passages, in parts of consecutive rows."""
    for part, text in _with_texts(plan.passages, "passage", spool):
        names = {"passage_id": _ids("p", part), "text": text, "group": _ids("p", _at(plan.passages, part["group"]))}
        yield pd.DataFrame(names, dtype="str")


def queries_table(plan: Plan, spool: Spool, sources: Iterable[str]) -> Iterator[pd.DataFrame]:
    """The table of queries, in parts of consecutive rows.

    Args:
        plan: see `Plan`.
        spool: the texts of the rows.
        sources: the names of the sources.
    """
    names = sorted(sources)
    for part, text in _with_texts(plan.queries, "query", spool):
        columns = {
            "query_id": _ids("q", part),
            "text": text,
            "group": _ids("q", _at(plan.queries, part["group"])),
            "split": [SPLIT_NAMES[place] for place in part["split"]],
            "source": [names[place] for place in part["source"]],
        }
        yield pd.DataFrame(columns, dtype="str")


def judgments_table(plan: Plan) -> Iterator[pd.DataFrame]:
    """The table of judgments, in parts of consecutive rows."""
    for start in range(0, max(len(plan.judgments), 1), CHUNK):
        part = plan.judgments[start : start + CHUNK]
        columns = {
            "query_id": _ids("q", _at(plan.queries, part["query"])),
            "passage_id": _ids("p", _at(plan.passages, part["passage"])),
        }
        yield pd.DataFrame(columns, dtype="str").assign(relevance=part["relevance"].to_numpy())


def _with_texts(table: pd.DataFrame, column: str, spool: Spool) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    done = 0
    for texts in spool.ordered(column, table["row"].to_numpy()):
        yield table[done : done + len(texts)], texts
        done += len(texts)


def _at(table: pd.DataFrame, places: pd.Series) -> pd.DataFrame:
    return table.take(places.to_numpy())


def _ids(prefix: str, table: pd.DataFrame) -> list[str]:
    """The ids of a table's rows. They have twelve digits, and sixteen more where two texts have the same twelve."""
    return [
        f"{prefix}{name:012x}" + (f"{key:016x}" if collides else "")
        for name, key, collides in zip(table["name"], table["key"], table["collides"], strict=True)
    ]
