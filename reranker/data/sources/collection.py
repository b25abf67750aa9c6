"""A corpus, queries and judgments in files of their own, joined by ids; also the folders of BEIR."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from reranker.common.artifacts import SPLITS
from reranker.common.errors import UserError
from reranker.common.source_schema import BeirSource, CollectionSource, CorpusColumns, Judgments, Queries
from reranker.data.cleaning import Example, Part
from reranker.data.sources import cells, files
from reranker.data.sources.streams import COMPRESSED, together


def beir(folder: str) -> CollectionSource:
    """The files of a BEIR folder: corpus.jsonl, queries.jsonl (each also packed) and qrels/{train,dev,test}.tsv.

    Raises:
        UserError: the folder lies elsewhere than in data/raw; one of the first two is not there, or none of the last.
    """
    path = files.inside_raw(folder)
    qrels = {split: path / "qrels" / f"{split}.tsv" for split in SPLITS}
    given = {split: [str(file)] for split, file in qrels.items() if files.exists(file)}
    if not given:
        raise UserError(f"{path}/qrels: no train.tsv, dev.tsv or test.tsv; a BEIR folder has its judgments there")
    return CollectionSource.model_validate(
        {
            "corpus": {"files": _packed(path, "corpus"), "columns": {"id": "_id", "title": "title", "text": "text"}},
            "queries": {"files": _packed(path, "queries"), "columns": {"id": "_id", "text": "text"}},
            "judgments": {
                "files": given,
                "columns": {"query": "query-id", "passage": "corpus-id", "label": "score"},
            },
        }
    )


def _packed(folder: Path, name: str) -> str:
    for ending in ("", *COMPRESSED):
        path = folder / f"{name}.jsonl{ending}"
        if files.exists(path):
            return str(path)
    raise UserError(f"{folder}: no {name}.jsonl, plain or as {' or '.join(COMPRESSED)}; a BEIR folder has one")


class Judged(NamedTuple):
    """What was said of a passage."""

    where: str
    query: str
    relevance: int
    split: str


def read(source: CollectionSource | BeirSource) -> Iterator[Part]:
    """Every passage of the corpus, followed by an example for each of its judgments.

    The judged queries and the ids are held in memory, the corpus is streamed. A query that nothing was judged for is
    left out.

    Yields:
        Some passages with their examples. A title is put before the passage, as BEIR's own tools do; in a BEIR folder
        passages may lack it.

    Raises:
        UserError: an id stands twice in the corpus or in the queries, or a judgment names an unknown one; a column is
            missing or a cell holds what it should not; see also `files.find` and `files.read`.
    """
    optional = ["title"] if isinstance(source, BeirSource) else []
    if isinstance(source, BeirSource):
        source = beir(source.beir)
    queries, unused = _queries(source.queries)
    judged, also_unused = _judgments(source.judgments, queries)
    unused += also_unused
    seen: set[str] = set()
    paths = files.find(source.corpus.files)
    columns = source.corpus.columns
    for number, path in enumerate(paths):
        table = files.read(path, columns.names(), source.corpus.header, source.corpus.quoted)
        unused += cells.require(table, columns.names(), optional)
        done = 0
        for some in together(table.rows):
            examples: list[Example] = []
            for line, row in enumerate(some, start=done + 1):
                where = f"{path}: row {line}"
                identifier = _new_id(row, where, columns.id, seen)
                passage = _passage(row, where, columns)
                examples.append(Example(where, None, passage, 0))
                for one in judged.pop(identifier, []):
                    examples.append(Example(one.where, one.query, passage, one.relevance, one.split))
            done += len(some)
            yield Part(examples, (number + table.share()) / len(paths), list(dict.fromkeys(unused)))
    for identifier, [first, *_] in judged.items():
        raise UserError(f"{first.where}: the corpus has no passage with the id '{identifier}'")


def _queries(source: Queries) -> tuple[dict[str, str], list[str]]:
    """The queries by their ids, and the columns that nothing is read from."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    unused: list[str] = []
    for path in files.find(source.files):
        table = files.read(path, source.columns.names(), source.header, source.quoted)
        unused += cells.require(table, source.columns.names())
        for line, row in enumerate(table.rows, start=1):
            where = f"{path}: row {line}"
            identifier = _new_id(row, where, source.columns.id, seen)
            found[identifier] = cells.text(row.get(source.columns.text), where, source.columns.text)
    return found, unused


def _judgments(source: Judgments, queries: Mapping[str, str]) -> tuple[dict[str, list[Judged]], list[str]]:
    """What was said of each passage, by its id, and the columns that nothing is read from."""
    found: dict[str, list[Judged]] = defaultdict(list)
    unused: list[str] = []
    columns = source.columns
    for split, named in source.files.items():
        for path in files.find(named):
            table = files.read(path, columns.names(), source.header, source.quoted)
            unused += cells.require(table, columns.names())
            for line, row in enumerate(table.rows, start=1):
                where = f"{path}: row {line}"
                query = cells.identifier(row.get(columns.query), where, columns.query)
                if query not in queries:
                    raise UserError(f"{where}: the queries have none with the id '{query}'")
                passage = cells.identifier(row.get(columns.passage), where, columns.passage)
                relevance = 1
                if columns.label is not None:
                    relevance = cells.relevance(row.get(columns.label), where, columns.label, negative=True)
                found[passage].append(Judged(where, queries[query], relevance, split))
    return found, unused


def _new_id(row: files.Row, where: str, column: str, seen: set[str]) -> str:
    identifier = cells.identifier(row.get(column), where, column)
    if identifier in seen:
        raise UserError(f"{where}: the id '{identifier}' stands there for the second time; each must be one of its own")
    seen.add(identifier)
    return identifier


def _passage(row: files.Row, where: str, columns: CorpusColumns) -> str:
    text = cells.text(row.get(columns.text), where, columns.text)
    title = cells.text(row.get(columns.title), where, columns.title) if columns.title else ""
    return f"{title} {text}".strip()
