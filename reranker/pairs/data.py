"""From the rows of files to labelled pairs: read, cleaned, split."""

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
SHOWN = 100
"""Dropped rows of each reason that are kept to look at."""


class Pair(NamedTuple):
    """Two texts and what is said of them."""

    origin: str
    """Its file and row, for messages."""
    first: str
    second: str
    label: float
    """From 0 to 1; 0 for a class."""
    name: str
    """Of the class; empty in the other tasks."""
    split: str
    """train, dev or test where the file gives it, else unsplit."""
    skipped: bool = False
    """It has one of the labels that say nothing."""


class Cleaned(NamedTuple):
    """What cleaning keeps, and what it drops."""

    pairs: list[Pair]
    dropped: dict[str, int]
    """Rows by the reason for which they were dropped."""
    examples: pd.DataFrame
    """Columns reason, origin, first, second: the first `SHOWN` dropped rows of each reason."""


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
    """One pair per row; white space is collapsed.

    Args:
        table: rows with at least the columns named.
        columns: what is where.
        task: what a label is: a number (score), 0 or 1 (duplicates), or a text or whole number (class).
        lowest: score that becomes 0.
        highest: score that becomes 1.
        skip: labels, as they are written (an empty one is a missing label), whose rows are marked as skipped.
        split: that the file gives its pairs.

    Raises:
        UserError: a column is missing, or a cell holds what is no text or no label of the task; the message names the
            file, the row (from 1) and the column.
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


def clean(pairs: Iterator[Pair], task: Task) -> Cleaned:
    """Drop pairs that cannot be used; of the same pair in the same split the first is kept.

    Two texts are the same pair in either order, but not where the task is class: a premise is no hypothesis. Scores of
    the same pair are averaged; pairs of which two rows say different classes, or duplicate and not, are dropped.
    """
    counted: Counter[str] = Counter()
    shown: list[tuple[str, ...]] = []

    def drop(pair: Pair, reason: str) -> None:
        counted[reason] += 1
        if counted[reason] <= SHOWN:
            shown.append((reason, *(text.encode(errors="replace").decode() for text in pair[:3])))

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
    kept = []
    for rows in same.values():
        if task != "score" and len({(pair.label, pair.name) for pair in rows}) > 1:
            for pair in rows:
                drop(pair, "label_differs")
            continue
        for pair in rows[1:]:
            drop(pair, "same_pair")
        kept.append(rows[0]._replace(label=float(np.mean([pair.label for pair in rows]))))
    examples = pd.DataFrame(shown, columns=["reason", "origin", "first", "second"], dtype="str")
    return Cleaned(kept, {reason: counted[reason] for reason in REASONS}, examples)


def key(pair: Pair, task: Task) -> tuple[str, ...]:
    """What the same pairs have in common."""
    texts = pair.first.casefold(), pair.second.casefold()
    return texts if task == "class" else tuple(sorted(texts))


def leaked(pairs: Sequence[Pair], task: Task) -> list[Pair]:
    """The pairs of dev and test that an earlier split (train, or dev for test) has too, in the same words but for case.

    Pairs in nearly the same words are not looked for.
    """
    place = {split: number for number, split in enumerate(SPLIT_NAMES)}
    first: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        if pair.split != UNSPLIT:
            names = key(pair, task)
            first[names] = min(place[pair.split], first.get(names, len(SPLIT_NAMES)))
    return [pair for pair in pairs if place[pair.split] > first.get(key(pair, task), len(SPLIT_NAMES))]


class Built(NamedTuple):
    """The table of pairs, and what did not fit into it."""

    pairs: pd.DataFrame
    """Columns `PAIR_COLUMNS`, sorted by pair_id; label is from 0 to 1, or the place of the class among the names in
    their order."""
    across: list[Pair]
    """Pairs whose texts belong to groups on two sides of the split."""


def build(pairs: Sequence[Pair], dev_share: float, test_share: float) -> Built:
    """Split the pairs.

    Texts of pairs that are alike (a label above a half) are one group, also through others, as are those with the same
    letters. A hash of its group decides for a pair without a given split; where none is given to dev or to test, it
    takes them from the train pairs. A pair of texts of two groups that fall apart is left out: in either split, it
    would show a text of the other.

    Of a pair with a class the first text, the premise, counts alone: a hypothesis such as "A man is outside." belongs
    to so many premises that it would make one group of them. It may be on several sides.
    """
    names = sorted({pair.name for pair in pairs})
    prints = [(fingerprint(pair.first), fingerprint(pair.first if pair.name else pair.second)) for pair in pairs]
    texts = sorted({text for both in prints for text in both})
    place = {text: number for number, text in enumerate(texts)}
    ends = np.array([[place[text] for text in both] for both in prints]).T
    alike = ends[:, [pair.label > 0.5 for pair in pairs]]
    graph = coo_array((np.ones(alike.shape[1], np.int8), (alike[0], alike[1])), shape=(len(texts), len(texts)))
    group = connected_components(graph, directed=False)[1]
    # texts are sorted, so the first of each group does not depend on the order of the rows
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
    return Built(table, [pair for pair, apart in zip(pairs, split != other, strict=True) if apart])
