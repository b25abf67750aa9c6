"""Reads a corpus, queries and judgments from separate files that are joined by ids, or from a BEIR folder."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from reranker.common.artifacts import SPLITS
from reranker.common.errors import UserError
from reranker.common.source_schema import BeirSource, CollectionSource, CorpusColumns, Judgments, Queries
from reranker.data.cleaning import Example, Part
from reranker.data.sources import cells, files
from reranker.data.sources.streams import COMPRESSED, chunks


def beir(folder: str) -> CollectionSource:
    """Describe the files of a BEIR folder as a collection.

    They are corpus.jsonl, queries.jsonl (each may be compressed) and at least one of qrels/{train,dev,test}.tsv.

    Raises:
        UserError: the folder is not in data/raw, or lacks one of these files.
    """
    path = files.inside_raw(folder)
    qrels = {split: path / "qrels" / f"{split}.tsv" for split in SPLITS}
    by_split = {split: [str(file)] for split, file in qrels.items() if files.exists(file)}
    if not by_split:
        raise UserError(f"{path}/qrels: no train.tsv, dev.tsv or test.tsv; a BEIR folder has its judgments there")
    return CollectionSource.model_validate(
        {
            "corpus": {"files": _jsonl(path, "corpus"), "columns": {"id": "_id", "title": "title", "text": "text"}},
            "queries": {"files": _jsonl(path, "queries"), "columns": {"id": "_id", "text": "text"}},
            "judgments": {
                "files": by_split,
                "columns": {"query": "query-id", "passage": "corpus-id", "label": "score"},
            },
        }
    )


def _jsonl(folder: Path, name: str) -> str:
    for ending in ("", *COMPRESSED):
        path = folder / f"{name}.jsonl{ending}"
        if files.exists(path):
            return str(path)
    raise UserError(
        f"{folder}: no {name}.jsonl, plain or compressed as {' or '.join(COMPRESSED)}; a BEIR folder has one"
    )


class Judgment(NamedTuple):
    """A judgment of a passage."""

    origin: str
    query: str
    relevance: int
    split: str


def read(source: CollectionSource | BeirSource) -> Iterator[Part]:
    """Read every passage of the corpus, each followed by an example for each of its judgments.

    The queries, the judgments and the ids are held in memory, and the corpus is streamed. A query without a judgment is
    left out.

    Yields:
        Some passages with their examples. A title is put before the passage, as BEIR's own tools do. Passages of a BEIR
        folder may lack a title.

    Raises:
        UserError: an id appears twice in the corpus or in the queries, a judgment names an id that does not exist, a
            column is missing, or a cell holds a wrong value; see also `files.find` and `files.read`.
    """
    optional = ["title"] if isinstance(source, BeirSource) else []
    if isinstance(source, BeirSource):
        source = beir(source.beir)
    queries, unused = _queries(source.queries)
    judgments, unused_of_judgments = _judgments(source.judgments, queries)
    unused += unused_of_judgments
    seen: set[str] = set()
    paths = files.find(source.corpus.files)
    columns = source.corpus.columns
    for number, path in enumerate(paths):
        table = files.read(path, columns.names(), source.corpus.header, source.corpus.quoted)
        unused += cells.require(table, columns.names(), optional)
        done = 0
        for some in chunks(table.rows):
            examples: list[Example] = []
            for line, row in enumerate(some, start=done + 1):
                where = f"{path}: row {line}"
                identifier = _new_id(row, where, columns.id, seen)
                passage = _passage(row, where, columns)
                examples.append(Example(where, None, passage, 0))
                for origin, query, relevance, split in judgments.pop(identifier, []):
                    examples.append(Example(origin, query, passage, relevance, split))
            done += len(some)
            yield Part(examples, (number + table.share()) / len(paths), list(dict.fromkeys(unused)))
    for identifier, [first, *_] in judgments.items():
        raise UserError(f"{first.origin}: the corpus has no passage with the id '{identifier}'")


def _queries(source: Queries) -> tuple[dict[str, str], list[str]]:
    """The texts of the queries by their ids, and the columns that are not read."""
    texts: dict[str, str] = {}
    seen: set[str] = set()
    unused: list[str] = []
    for path in files.find(source.files):
        table = files.read(path, source.columns.names(), source.header, source.quoted)
        unused += cells.require(table, source.columns.names())
        for line, row in enumerate(table.rows, start=1):
            where = f"{path}: row {line}"
            identifier = _new_id(row, where, source.columns.id, seen)
            texts[identifier] = cells.text(row.get(source.columns.text), where, source.columns.text)
    return texts, unused


def _judgments(source: Judgments, queries: Mapping[str, str]) -> tuple[dict[str, list[Judgment]], list[str]]:
    """The judgments of each passage by its id, and the columns that are not read."""
    judgments: dict[str, list[Judgment]] = defaultdict(list)
    unused: list[str] = []
    columns = source.columns
    for split, patterns in source.files.items():
        for path in files.find(patterns):
            table = files.read(path, columns.names(), source.header, source.quoted)
            unused += cells.require(table, columns.names())
            for line, row in enumerate(table.rows, start=1):
                where = f"{path}: row {line}"
                query = cells.identifier(row.get(columns.query), where, columns.query)
                if query not in queries:
                    raise UserError(f"{where}: there is no query with the id '{query}'")
                passage = cells.identifier(row.get(columns.passage), where, columns.passage)
                relevance = 1
                if columns.label is not None:
                    relevance = cells.relevance(row.get(columns.label), where, columns.label, negative=True)
                judgments[passage].append(Judgment(where, queries[query], relevance, split))
    return judgments, unused


def _new_id(row: files.Row, where: str, column: str, seen: set[str]) -> str:
    identifier = cells.identifier(row.get(column), where, column)
    if identifier in seen:
        raise UserError(f"{where}: the id '{identifier}' appears for the second time; each id must be unique")
    seen.add(identifier)
    return identifier


def _passage(row: files.Row, where: str, columns: CorpusColumns) -> str:
    text = cells.text(row.get(columns.text), where, columns.text)
    title = cells.text(row.get(columns.title), where, columns.title) if columns.title else ""
    return f"{title} {text}".strip()
