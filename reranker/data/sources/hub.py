"""Data sets of the Hugging Face Hub, or folders of data files laid out like one, streamed."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import yaml

from reranker.common.errors import UserError
from reranker.common.progress import quiet_libraries
from reranker.data.sources import files

FAILURES = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    RecursionError,
    pa.ArrowException,
    yaml.YAMLError,
)
"""What `datasets` ends with where a file, or what its README.md says of the files, is damaged; it checks neither."""


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
        UserError: the revision is missing or is none, the data set cannot be reached or read, lacks the configuration
            or the split, or names a file elsewhere; also while the rows are read.
    """
    if here := files.exists(Path(name)):
        files.inside_raw(name)  # DVC watches what is there
    elif not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"params.yaml: '{name}': revision: {revision!r}: must be the 40 digits of a commit of the data set, "
            "from the history of its files on the Hub, so that a run can be repeated"
        )
    quiet_libraries()
    import datasets  # takes a second, which other sources need not wait for

    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they log of a damaged file is in the error too

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        except (*FAILURES, datasets.exceptions.DatasetsError) as error:
            hint = "" if here else "; set HF_HUB_OFFLINE=0 to reach the Hub"
            raise UserError(f"{name}: could not be read: {' '.join(str(error).split())}{hint}") from None
        except StopIteration:
            raise UserError(f"{name}: could not be read: a file of it holds no rows") from None

    with failing():
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        for file in (file for some in (builder.config.data_files or {}).values() for file in some):
            check(file, name, revision)
        stream = builder.as_streaming_dataset(split=split)
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


def check(file: str, name: str, revision: str | None) -> None:
    """Refuse a file of a data set that is no part of it: it may name any file of the machine, and any address.

    Raises:
        UserError: it lies outside data/raw or, of a data set of the Hub, outside that commit of it.
    """
    place = file.rpartition("::")[2]  # of an archive; before it stands what is taken from there
    if files.exists(Path(name)) and "://" not in place:
        files.inside(Path(place))
    elif not place.startswith(f"hf://datasets/{name}@{revision}/"):
        raise UserError(
            f"{name}: names {place}, which is not part of it; take out what names it, e.g. in its README.md"
        )
