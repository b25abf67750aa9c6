"""Read rows of files as labelled pairs, clean the pairs and split them."""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reranker.common.artifacts import PAIR_COLUMNS
from reranker.data.cleaning import SPLIT_NAMES, UNSPLIT, fingerprint, is_unicode, number
from reranker.data.dataset import assign_splits, settle_splits
from reranker.data.sources import cells, files
from reranker.pairs.params import PairColumns, Task

REASONS = ("skipped_label", "empty", "not_unicode", "same_pair", "label_differs")
EXAMPLES = 100
"""Dropped rows that are recorded for each reason."""


class Pair(NamedTuple):
    """Two texts with a label."""

    origin: str
    """The file and row of the pair, for messages."""
    first: str
    second: str
    label: float
    """From 0 to 1; always 0 in the task class."""
    name: str
    """The name of the class; empty in the other tasks."""
    split: str
    """train, dev or test if the file defines the split, and otherwise unsplit."""
    skipped: bool = False
    """Whether the label is one of `skip_labels`."""


class CleanPairs(NamedTuple):
    """The clean pairs, and the rows that cleaning dropped."""

    pairs: list[Pair]
    dropped: dict[str, int]
    """The number of dropped rows by reason."""
    examples: pd.DataFrame
    """Columns reason, origin, first, second: the first `EXAMPLES` dropped rows of each reason."""


def read(
    table: files.Table,
    columns: PairColumns,
    task: Task,
    *,
    lowest: float,
    highest: float,
    skip: Container[str] = (),
    split: str = UNSPLIT,
) -> Iterator[Pair]:
    """Read one pair per row; white space is collapsed.

    Args:
        table: rows with at least these columns.
        columns: the names of the columns.
        task: the task, which decides the form of a label: a number (score), 0 or 1 (duplicates), or a text or a whole
            number (class).
        lowest: the score that becomes 0.
        highest: the score that becomes 1.
        skip: labels whose rows are marked as skipped, as they are in the file; an empty one is a missing label.
        split: the split that the file defines for its pairs.

    Raises:
        UserError: a column is missing, or a cell is not a text or not a label of the task; the message names the file,
            the row (from 1) and the column.
    """
    cells.require(table, columns.names())
    for place, row in enumerate(table.rows, start=1):
        where = f"{table.origin}: row {place}"
        first, second = (
            " ".join(cells.text(row.get(name), where, name).split()) for name in (columns.first, columns.second)
        )
        cell, label, name = row.get(columns.label), 0.0, ""
        if ("" if cell is None else str(cell)) in skip:
            yield Pair(where, first, second, label, name, split, skipped=True)
            continue
        if task == "class":
            name = cells.identifier(cell, where, columns.label)
        elif task == "duplicates":
            label = cells.number(cell, where, columns.label, 0, 1, whole=True)
        else:
            label = (cells.number(cell, where, columns.label, lowest, highest) - lowest) / (highest - lowest)
        yield Pair(where, first, second, label, name, split)


def clean(pairs: Iterator[Pair], task: Task) -> CleanPairs:
    """Drop pairs that cannot be used; of equal pairs in one split, only the first stays.

    The order of two texts does not matter, except in the task class, where a premise is not a hypothesis. Scores of
    equal pairs are averaged. Equal pairs with different classes, or with the labels 0 and 1, are dropped.
    """
    counts: Counter[str] = Counter()
    dropped: list[tuple[str, ...]] = []

    def drop(pair: Pair, reason: str) -> None:
        counts[reason] += 1
        if counts[reason] <= EXAMPLES:
            dropped.append((reason, *(text.encode(errors="replace").decode() for text in pair[:3])))

    same: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        if pair.skipped:
            drop(pair, "skipped_label")
        elif not (pair.first and pair.second):
            drop(pair, "empty")
        elif not (is_unicode(pair.first) and is_unicode(pair.second)):
            drop(pair, "not_unicode")
        else:
            same.setdefault((pair.split, *key(pair, task)), []).append(pair)
    clean_pairs = []
    for rows in same.values():
        if task != "score" and len({(pair.label, pair.name) for pair in rows}) > 1:
            for pair in rows:
                drop(pair, "label_differs")
            continue
        for pair in rows[1:]:
            drop(pair, "same_pair")
        clean_pairs.append(rows[0]._replace(label=float(np.mean([pair.label for pair in rows]))))
    examples = pd.DataFrame(dropped, columns=["reason", "origin", "first", "second"], dtype="str")
    return CleanPairs(clean_pairs, {reason: counts[reason] for reason in REASONS}, examples)


def key(pair: Pair, task: Task) -> tuple[str, ...]:
    """The key that equal pairs share."""
    texts = pair.first.casefold(), pair.second.casefold()
    return texts if task == "class" else tuple(sorted(texts))


def find_leaks(pairs: Sequence[Pair], task: Task) -> list[Pair]:
    """Find the pairs of dev and test that are also in an earlier split, in the same words but for case.

    An earlier split is train, or dev for a pair of test. Near-duplicates are not searched.
    """
    place = {split: number for number, split in enumerate(SPLIT_NAMES)}
    first: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        if pair.split != UNSPLIT:
            names = key(pair, task)
            first[names] = min(place[pair.split], first.get(names, len(SPLIT_NAMES)))
    return [pair for pair in pairs if place[pair.split] > first.get(key(pair, task), len(SPLIT_NAMES))]


class SplitPairs(NamedTuple):
    """The table of pairs, and the pairs that fit into no split."""

    pairs: pd.DataFrame
    """Columns `PAIR_COLUMNS`, sorted by pair_id; label is from 0 to 1, or the place of the class among the sorted
    names of classes."""
    across: list[Pair]
    """Pairs whose two texts belong to groups in different splits."""


def split_pairs(pairs: Sequence[Pair], dev_share: float, test_share: float) -> SplitPairs:
    """Split the pairs.

    Two texts are in one group if they have the same letters or are a similar pair (a label above a half), directly or
    through other texts. A pair without a split in its file gets a split by a hash of its group. If no file defines dev
    or test, its pairs are taken from train in the same way. A pair whose texts are in groups of different splits is
    left out, because in either split it would leak a text of the other.

    For a pair with a class, only the first text (the premise) counts. A hypothesis such as "A man is outside." belongs
    to so many premises that it would join them into one group. So a hypothesis may be in several splits.
    """
    names = sorted({pair.name for pair in pairs})
    prints = [(fingerprint(pair.first), fingerprint(pair.first if pair.name else pair.second)) for pair in pairs]
    texts = sorted({text for both in prints for text in both})
    place = {text: number for number, text in enumerate(texts)}
    ends = np.array([[place[text] for text in both] for both in prints]).T
    alike = ends[:, [pair.label > 0.5 for pair in pairs]]
    graph = coo_array((np.ones(alike.shape[1], np.int8), (alike[0], alike[1])), shape=(len(texts), len(texts)))
    group = connected_components(graph, directed=False)[1]
    # texts are sorted, so the first text of each group does not depend on the order of the rows
    first = [texts[number] for number in np.unique(group, return_index=True)[1]]
    drawn = assign_splits([f"{number(text):x}" for text in first], dev_share, test_share)
    given = np.array([SPLIT_NAMES.index(pair.split) for pair in pairs])
    split, other = (settle_splits(groups, given, drawn[groups]) for groups in group[ends])
    rows = [
        (f"{number(pair.first + chr(0) + pair.second):016x}", *pair[1:3],
         names.index(pair.name) if pair.name else pair.label, pair.name, SPLIT_NAMES[own])
        for pair, own, others in zip(pairs, split, other, strict=True)
        if own == others
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(PAIR_COLUMNS)).sort_values(["pair_id", "split"], ignore_index=True)
    return SplitPairs(table, [pair for pair, apart in zip(pairs, split != other, strict=True) if apart])
