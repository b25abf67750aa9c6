"""Streams data sets of the Hugging Face Hub, and local folders in the same layout."""

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
"""Errors that `datasets` raises for damaged files or a wrong description in README.md, because it checks neither."""


def read(
    name: str,
    split: str,
    column_names: Sequence[str],
    *,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> files.Table:
    """Open one split of a data set.

    Args:
        name: id on the Hub, or a folder under data/raw.
        split: the data set's own name of the split.
        column_names: the columns to read.
        config: name of a configuration, if the data set has several.
        revision: the 40 digits of a commit of the repository on the Hub. A branch or a tag could move without DVC's
            notice.
        limit: the number of rows to read from the start, or None for all.

    Raises:
        UserError: the revision is missing or is no commit, or the data set cannot be reached or read, lacks the
            configuration or the split, or names a file elsewhere. It may be raised while the rows are read.
    """
    if is_local := files.exists(Path(name)):
        files.inside_raw(name)  # the folder that DVC watches
    elif not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"params.yaml: '{name}': revision: {revision!r}: must be the 40 digits of a commit of the data set, "
            "from the history of its files on the Hub, so that a run can be repeated"
        )
    quiet_libraries()
    import datasets  # this takes a second, which other sources should not wait for

    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # the error repeats what they log on a damaged file

    @contextmanager
    def user_errors() -> Iterator[None]:
        try:
            yield
        except (*FAILURES, datasets.exceptions.DatasetsError) as error:
            hint = "" if is_local else "; set HF_HUB_OFFLINE=0 to reach the Hub"
            raise UserError(f"{name}: could not be read: {' '.join(str(error).split())}{hint}") from None
        except StopIteration:
            raise UserError(f"{name}: could not be read: one of its files has no rows") from None

    with user_errors():
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        for file in (file for some in (builder.config.data_files or {}).values() for file in some):
            check(file, name, revision)
        stream = builder.as_streaming_dataset(split=split)
        sizes = stream.info.splits or {}
        size = sizes[split].num_examples if split in sizes else None
        if stream.column_names is None:  # for CSV only the rows tell the names
            rows = iter(stream)
            first: files.Row = next(rows, {})
            names, rows = [*first], chain([first], rows)
        else:
            names = stream.column_names
            rows = iter(stream.select_columns([column for column in column_names if column in names]))
    expected = min((number for number in (size, limit) if number is not None), default=None)
    done = 0

    def limited() -> Iterator[files.Row]:
        nonlocal done
        with user_errors():
            for row in islice(rows, limit):
                done += 1
                yield row

    return files.Table(name, names, limited(), lambda: min(done / expected, 1.0) if expected else 0.0)


def check(file: str, name: str, revision: str | None) -> None:
    """Check that a file is part of the data set that names it. A data set could name any local file or address.

    Raises:
        UserError: a local folder names a file outside data/raw, or a data set of the Hub one outside the commit.
    """
    place = file.rpartition("::")[2]  # the archive, which follows the path inside it
    if files.exists(Path(name)) and "://" not in place:
        files.inside(Path(place))
    elif not place.startswith(f"hf://datasets/{name}@{revision}/"):
        raise UserError(f"{name}: names {place}, which is not part of it; remove that name, e.g. from its README.md")
