"""Helpers that turn examples into the tables of prepare."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from reranker.common.artifacts import Tables
from reranker.data.cleaning import Cleaner, CleaningResult, Example, Limits
from reranker.data.dataset import build, judgments_table, passages_table, queries_table
from reranker.data.leakage import Leaks, find
from reranker.data.text_store import Spool

ANY = Limits(1, 100, 1)


def clean(examples: Iterable[Example], limits: Limits = ANY) -> CleaningResult:
    """Clean examples."""
    with spool() as texts:
        return _clean(examples, limits, texts)


def tables(
    examples: Iterable[Example], dev_share: float = 0.3, test_share: float = 0.3, near_duplicates: float | None = None
) -> Tables:
    """Build the tables from examples."""
    with spool() as texts:
        rows = _clean(examples, ANY, texts).rows
        plan = build(rows, texts, near_duplicates=near_duplicates, dev_share=dev_share, test_share=test_share)
        parts = passages_table(plan, texts), queries_table(plan, texts, [""]), judgments_table(plan)
        return Tables(*(pd.concat(part, ignore_index=True) for part in parts))


def leaks(examples: Iterable[Example]) -> Leaks:
    """The leaks between given splits."""
    with spool() as texts:
        return find(_clean(examples, ANY, texts).rows, texts)


@contextmanager
def spool() -> Iterator[Spool]:
    """An empty spool that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder) / "spool") as texts:
        yield texts


def _clean(examples: Iterable[Example], limits: Limits, texts: Spool) -> CleaningResult:
    cleaner = Cleaner(limits, [""], texts)
    for example in examples:
        cleaner.add(example)
    return cleaner.finish()
