"""Which reader reads which source."""

from collections.abc import Callable, Iterator
from functools import partial

from reranker.common.source_schema import FileSource, HubSource, PackageSource, Source
from reranker.data.cleaning import Part
from reranker.data.sources import collection, columns, files, hub, pydocs


def read(source: Source) -> Iterator[Part]:
    """The examples of a source, part by part: of a package, or of a run of a table's rows.

    Raises:
        UserError: see `pydocs.read`, `files.find`, `files.read`, `hub.read`, `columns.read` and `collection.read`.
    """
    if isinstance(source, PackageSource):
        yield from pydocs.read(source.packages)
    elif isinstance(source, (FileSource, HubSource)):
        opened = _files(source) if isinstance(source, FileSource) else _hub(source)
        for number, (split, table) in enumerate(opened):
            for part in columns.read(table(), source.columns, split):
                yield part._replace(share=(number + part.share) / len(opened))
    else:
        yield from collection.read(source)


Opened = list[tuple[str, Callable[[], files.Table]]]
"""Tables that are opened in their turn, with the split that each gives."""


def _files(source: FileSource) -> Opened:
    read = partial(files.read, wanted=source.columns.names(), header=source.header, quoted=source.quoted)
    return [(split, partial(read, path)) for split, named in source.files.items() for path in files.find(named)]


def _hub(source: HubSource) -> Opened:
    read = partial(
        hub.read,
        source.hub,
        wanted=source.columns.names(),
        config=source.config,
        revision=source.revision,
        limit=source.limit,
    )
    return [(split, partial(read, split=name)) for split, name in source.split.items()]
