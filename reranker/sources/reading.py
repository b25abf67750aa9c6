"""One way to read every kind of source that params.yaml can name."""

from collections.abc import Iterator

from reranker.params import FileSource, Source
from reranker.records import Part
from reranker.sources import columns, files, pydocs


def read(source: Source) -> Iterator[Part]:
    """The examples of a source, part by part: of a package, or of a run of a file's rows.

    Raises:
        UserError: see `pydocs.read`, `files.find`, `files.read` and `columns.read`.
    """
    if not isinstance(source, FileSource):
        yield from pydocs.read(source.packages)
        return
    paths = files.find(source.files)
    for number, path in enumerate(paths):
        for part in columns.read(files.read(path, source.columns.names()), source.columns):
            yield part._replace(share=(number + part.share) / len(paths))
