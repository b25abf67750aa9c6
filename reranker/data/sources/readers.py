"""Chooses the reader of a source."""

from collections.abc import Callable, Iterator
from functools import partial

from reranker.common.source_schema import FileSource, HubSource, PackageSource, Source
from reranker.data.cleaning import Part
from reranker.data.sources import collection, columns, files, hub, pydocs


def read(source: Source) -> Iterator[Part]:
    """Read the examples of a source in parts, each from a package or from some rows of a table.

    Raises:
        UserError: see `pydocs.read`, `files.find`, `files.read`, `hub.read`, `columns.read` and `collection.read`.
    """
    if isinstance(source, PackageSource):
        yield from pydocs.read(source.packages)
    elif isinstance(source, (FileSource, HubSource)):
        tables = _files(source) if isinstance(source, FileSource) else _hub(source)
        for number, (split, open_table) in enumerate(tables):
            for part in columns.read(open_table(), source.columns, split):
                yield part._replace(share=(number + part.share) / len(tables))
    else:
        yield from collection.read(source)


SplitTables = list[tuple[str, Callable[[], files.Table]]]
"""For each table, its split and a function that opens it."""


def _files(source: FileSource) -> SplitTables:
    read = partial(files.read, column_names=source.columns.names(), header=source.header, quoted=source.quoted)
    return [(split, partial(read, path)) for split, patterns in source.files.items() for path in files.find(patterns)]


def _hub(source: HubSource) -> SplitTables:
    read = partial(
        hub.read,
        source.hub,
        column_names=source.columns.names(),
        config=source.config,
        revision=source.revision,
        limit=source.limit,
    )
    return [(split, partial(read, split=name)) for split, name in source.split.items()]
