"""rerank: order passages by how well they answer a query. This is a command to try a model, not a pipeline stage.

python -m stages.rerank --query "how to read a csv file" [--model models/reranker] [--top 10] [--json] [passages.txt]

The file, or standard input, has one passage a line. The model is the folder of the shipped reranker, of a
cross-encoder, or of an exported cross-encoder, which `python -m stages.export` writes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

from reranker.common.artifacts import PATHS
from reranker.common.errors import UserError, printable
from reranker.inference.reranker import RankedPassage, load_ranker

LINE = "{rank:>4}  {score:>9.4f}  {passage}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it never returns either
        raise UserError(f"python -m stages.rerank: {message}; --help lists the arguments")


def main(arguments: Sequence[str]) -> str:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passages", nargs="?", type=Path, help="a text file; default: standard input")
    parser.add_argument("--query", required=True)
    parser.add_argument("--model", type=Path, default=PATHS.reranker)
    parser.add_argument("--top", type=int, help="how many passages to show; default: all")
    parser.add_argument("--json", action="store_true", help="a list of objects: rank, score, line, passage")
    options = parser.parse_args(arguments)
    if options.top is not None and options.top < 1:
        raise UserError(f"python -m stages.rerank: --top: {options.top} is below 1; give a number from 1")
    if not options.query.strip():
        raise UserError("python -m stages.rerank: --query: the query is empty; give a text")
    lines, passages = read_passages(options.passages)
    ranked = load_ranker(options.model).rank(options.query, passages)[: options.top]
    return as_json(ranked, lines) if options.json else as_text(ranked)


def read_passages(path: Path | None) -> tuple[list[int], list[str]]:
    """The numbers, from 1, and the texts of the lines that are not blank.

    Raises:
        UserError: the file is missing, is not UTF-8, or has no line with text.
    """
    name = str(path) if path else "standard input"
    try:
        content = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{name}: could not be read ({error.strerror or error}); name a readable text file") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{name}: line {line} is not UTF-8 (byte {error.start}); convert the file to UTF-8") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{name}: no passage; give one passage a line")
    return [number for number, _ in lines], [line for _, line in lines]


def as_text(ranked: Sequence[RankedPassage]) -> str:
    """The ranking with a line for each passage."""
    return "\n".join(
        LINE.format(rank=rank, score=item.score, passage=printable(item.passage))
        for rank, item in enumerate(ranked, start=1)
    )


def as_json(ranked: Sequence[RankedPassage], lines: Sequence[int]) -> str:
    """The ranking as a list of objects, for programs."""
    items = [
        {"rank": rank, "score": item.score, "line": lines[item.position], "passage": item.passage}
        for rank, item in enumerate(ranked, start=1)
    ]
    return json.dumps(items, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
