"""The tables that every later stage reads: duplicates are merged, and the splits are free of leaks.

Tables (ids are strings, rows are sorted by id):

    passages   passage_id, text, group
    queries    query_id, text, group, split (train, dev or test), source (its name in params.yaml)
    judgments  query_id, passage_id, relevance (integer, above 0 means right)

A group is named after the smallest id in it. Passages of one group are the same text or nearly so; queries of one group
are on one side of the split but for those to which their source gives a split.
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
from reranker.data.cleaning import GIVEN, number
from reranker.data.text_store import Spool

CHUNK = 100_000
"""Rows of a table that are written together."""


class Plan(NamedTuple):
    """The tables without their texts, in numbers."""

    passages: pd.DataFrame
    """Columns row (in the spool), name (a hash), key (another), twice (another passage has that name), group (a place
    in this table)."""
    queries: pd.DataFrame
    """The same columns, split, and source (a place among the names in their order)."""
    judgments: pd.DataFrame
    """Columns query and passage (places in these tables), relevance."""
    compared: int
    """Passages that were compared for near duplicates."""


def build(
    rows: pd.DataFrame, spool: Spool, *, near_duplicates: float | None, dev_share: float, test_share: float
) -> Plan:
    """Merge duplicates and split.

    Passages with the same text are one passage. Queries with the same text, letter case aside, are one query that has
    the passages of all of them, each with its highest relevance. Ids are hashes of the text, so they stay the same when
    data is added.

    Two queries are in one group when their texts have the same fingerprint, or when they have a right passage of one
    group; also through a third query. Two passages are in one group when they have the same fingerprint or are near
    duplicates; also through a third passage.

    A query that a source gives to a split is in that split; of several, in the one that is looked at latest. The others
    go where their group goes, or where its hash says; so do those given to train as long as none is given to dev or
    to test. A query that several sources have counts for the first of them by name.

    Args:
        rows: columns as in `Cleaned.rows`.
        spool: has the texts.
        near_duplicates: likeness from which passages are near duplicates, see `duplicates.near_duplicates`; None for
            none. Of more than `duplicates.MOST` passages so many are compared, those that are right for a query first.
        dev_share: share of the query groups that goes to dev, below 1.
        test_share: the same for test.
    """
    asked = (rows["query"] != 0).to_numpy()
    passages = _texts(rows, "passage", np.arange(len(rows)))
    # the wording with the smallest hash stands for a merged query, so that the order of the rows does not matter
    by_wording = np.argsort(rows["wording"].to_numpy(), kind="stable")
    queries = _texts(rows, "query", by_wording[asked[by_wording]])
    pairs = pd.DataFrame({"query": _places(queries, rows["query"][asked])})
    told = rows[["split", "source"]][asked].groupby(pairs["query"].to_numpy()).agg({"split": "max", "source": "min"})
    given = told["split"].to_numpy()
    pairs["passage"] = _places(passages, rows["passage"][asked])
    pairs["relevance"] = rows["relevance"].to_numpy()[asked]
    judgments = pairs.groupby(["query", "passage"], as_index=False)[["relevance"]].max()
    del pairs
    right = judgments[judgments["relevance"] > 0]

    alike = np.empty((0, 2), np.int64)
    compared = np.empty(0, np.int64)
    if near_duplicates is not None:
        is_right = np.bincount(right["passage"], minlength=len(passages)) > 0
        compared = np.sort(np.argsort(~is_right, kind="stable")[: duplicates.MOST])
        texts = spool.texts("passage", passages["row"].to_numpy()[compared])
        alike = compared[duplicates.near_duplicates(texts, near_duplicates)]
    passages["group"] = _groups(passages["print"], alike[:, 0], alike[:, 1])
    joined = passages["group"].to_numpy()[right["passage"]]
    first = pd.Series(right["query"].to_numpy()).groupby(joined).transform("first").to_numpy()
    queries["group"] = _groups(queries["print"], first, right["query"].to_numpy())

    names, group = np.unique(queries["group"], return_inverse=True)
    drawn = assign_splits(_ids("q", queries.iloc[names]), dev_share, test_share)[group]
    queries["split"] = settle_splits(queries["group"].to_numpy(), given, drawn)
    queries["source"] = told["source"].to_numpy()
    return Plan(passages.drop(columns="print"), queries.drop(columns="print"), judgments, len(compared))


def _texts(rows: pd.DataFrame, kind: str, order: NDArray[np.int64]) -> pd.DataFrame:
    """One row for each text, sorted as the ids will be; of equal ones the first in the given order of the rows."""
    first = order[~pd.Series(rows[kind].to_numpy()[order]).duplicated().to_numpy()]
    first = first[np.lexsort((rows[kind].to_numpy()[first], rows[f"{kind}_id"].to_numpy()[first]))]
    names = {"row": rows.index, "name": rows[f"{kind}_id"], "key": rows[kind], "print": rows[f"{kind}_print"]}
    table = pd.DataFrame({name: column.to_numpy()[first] for name, column in names.items()})
    return table.assign(twice=table["name"].duplicated(keep=False))


def _places(table: pd.DataFrame, keys: pd.Series) -> NDArray[np.int64]:
    order = np.argsort(table["key"].to_numpy(), kind="stable")
    return order[np.searchsorted(table["key"].to_numpy()[order], keys.to_numpy())]


def _groups(prints: pd.Series, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest place of each one's group: those with one print, those that pairs join, and so on."""
    size = len(prints)
    codes = pd.factorize(prints)[0]
    starts = pd.Series(np.arange(size)).groupby(codes).transform("first").to_numpy()
    ends = np.concatenate([starts, first]), np.concatenate([np.arange(size), second])
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return pd.Series(np.arange(size)).groupby(component).transform("first").to_numpy()


def assign_splits(groups: Sequence[str], dev_share: float, test_share: float) -> NDArray[np.int64]:
    """Place in `GIVEN` of each group's split, by a hash of its name: it depends on the group alone."""
    place = np.fromiter((number(name, 6) / 2**48 for name in groups), float, len(groups))
    ends = [test_share, test_share + dev_share]
    splits = np.array([GIVEN.index(split) for split in ("test", "dev", "train")])
    return splits[np.searchsorted(ends, place, side="right")]


def settle_splits(groups: NDArray[np.int64], given: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """The split of each query from what its source gives and what the hash of its group says.

    Args:
        groups: number of each query's group.
        given: place of the given split in `GIVEN`.
        drawn: the same of the split by the hash.
    """
    own = np.where(given > 0, given, pd.Series(given).groupby(groups).transform("max"))
    split = np.where(own > 0, own, drawn)
    for name in SPLITS[1:]:
        if not (given == GIVEN.index(name)).any():
            split = np.where((own == GIVEN.index("train")) & (drawn == GIVEN.index(name)), drawn, split)
    return split


def passages_table(plan: Plan, spool: Spool) -> Iterator[pd.DataFrame]:
    """The table of passages, run by run."""
    for part, text in _with_texts(plan.passages, "passage", spool):
        names = {"passage_id": _ids("p", part), "text": text, "group": _ids("p", _at(plan.passages, part["group"]))}
        yield pd.DataFrame(names, dtype="str")


def queries_table(plan: Plan, spool: Spool, sources: Iterable[str]) -> Iterator[pd.DataFrame]:
    """The table of queries, run by run.

    Args:
        plan: see `Plan`.
        spool: has the texts.
        sources: the names.
    """
    names = sorted(sources)
    for part, text in _with_texts(plan.queries, "query", spool):
        columns = {
            "query_id": _ids("q", part),
            "text": text,
            "group": _ids("q", _at(plan.queries, part["group"])),
            "split": [GIVEN[place] for place in part["split"]],
            "source": [names[place] for place in part["source"]],
        }
        yield pd.DataFrame(columns, dtype="str")


def judgments_table(plan: Plan) -> Iterator[pd.DataFrame]:
    """The table of judgments, run by run."""
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
    """The ids: twelve digits, and sixteen more where two texts have the same twelve."""
    return [
        f"{prefix}{name:012x}" + (f"{key:016x}" if twice else "")
        for name, key, twice in zip(table["name"], table["key"], table["twice"], strict=True)
    ]
