"""One way to read every kind of source that params.yaml can name."""

from collections.abc import Iterator

from reranker.params import BeirSource, FileSource, PackageSource, Source
from reranker.records import Part
from reranker.sources import collection, columns, files, pydocs


def read(source: Source) -> Iterator[Part]:
    """The examples of a source, part by part: of a package, or of a run of a file's rows.

    Raises:
        UserError: see `pydocs.read`, `files.find`, `files.read`, `columns.read` and `collection.read`.
    """
    if isinstance(source, PackageSource):
        yield from pydocs.read(source.packages)
    elif isinstance(source, FileSource):
        yield from _files(source)
    else:
        yield from collection.read(collection.beir(source.beir) if isinstance(source, BeirSource) else source)


def _files(source: FileSource) -> Iterator[Part]:
    found = [(split, path) for split, named in source.files.items() for path in files.find(named)]
    for number, (split, path) in enumerate(found):
        table = files.read(path, source.columns.names(), source.header)
        for part in columns.read(table, source.columns, split):
            yield part._replace(share=(number + part.share) / len(found))
