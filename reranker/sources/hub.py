"""Data sets of the Hugging Face Hub, or folders of data files laid out like one, streamed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from reranker.errors import UserError
from reranker.progress import quiet_libraries
from reranker.sources import files


def read(
    name: str,
    split: str,
    wanted: Sequence[str],
    *,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> files.Table:
    """Open one split of a data set.

    Args:
        name: id on the Hub, or a folder under data/raw.
        split: name that the data set gives it.
        wanted: columns that are needed; no other is read.
        config: name of one of its configurations, if it has several.
        revision: commit of the repository on the Hub, all 40 digits: a branch or a tag may move, unseen by DVC.
        limit: rows to read, the first ones; None for all.

    Raises:
        UserError: the revision is missing or is none, the data set cannot be reached or read, or lacks the
            configuration or the split; also while the rows are read.
    """
    if Path(name).exists():
        files.inside_raw(name)  # DVC watches what is there
    elif not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"params.yaml: '{name}': revision: {revision!r}: must be the 40 digits of a commit of the data set, "
            "from the history of its files on the Hub, so that a run can be repeated"
        )
    quiet_libraries()
    import datasets  # takes a second, which other sources need not wait for

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            hint = "" if Path(name).exists() else "; set HF_HUB_OFFLINE=0 to reach the Hub"
            raise UserError(f"{name}: could not be read: {' '.join(str(error).split())}{hint}") from None
        except StopIteration:
            raise UserError(f"{name}: could not be read: a file of it holds no rows") from None

    with failing():
        stream = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
        sizes = stream.info.splits or {}
        size = sizes[split].num_examples if split in sizes else None
        if stream.column_names is None:  # of CSV, only the rows tell
            rows = iter(stream)
            first: files.Row = next(rows, {})
            names, rows = [*first], chain([first], rows)
        else:
            names = stream.column_names
            rows = iter(stream.select_columns([column for column in wanted if column in names]))
    expected = min((number for number in (size, limit) if number is not None), default=None)
    done = 0

    def counted() -> Iterator[files.Row]:
        nonlocal done
        with failing():
            for row in islice(rows, limit):
                done += 1
                yield row

    return files.Table(name, names, counted(), lambda: min(done / expected, 1.0) if expected else 0.0)
