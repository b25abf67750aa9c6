"""rerank: order passages by how well they answer a query. No stage of the pipeline: a command to try a model by hand.

python -m stages.rerank --query "how to read a csv file" [--model models/reranker] [--top 10] [--json] [passages.txt]

One passage a line, from the file or from standard input. A model is the folder of the shipped reranker, of a
cross-encoder, or of an exported one, which `python -m stages.export` writes.
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
from reranker.inference.reranker import Ranked, load_ranker

LINE = "{rank:>4}  {score:>9.4f}  {passage}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it never returns either
        raise UserError(f"python -m stages.rerank: {message}; --help lists the arguments")


def main(arguments: Sequence[str]) -> str:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passages", nargs="?", type=Path, help="a text file; standard input if none")
    parser.add_argument("--query", required=True)
    parser.add_argument("--model", type=Path, default=PATHS.reranker)
    parser.add_argument("--top", type=int, help="how many to show; all if none")
    parser.add_argument("--json", action="store_true", help="a list of objects: rank, score, line, passage")
    options = parser.parse_args(arguments)
    if options.top is not None and options.top < 1:
        raise UserError(f"python -m stages.rerank: --top: {options.top} is below 1")
    if not options.query.strip():
        raise UserError("python -m stages.rerank: --query: the query is empty")
    lines, passages = read_passages(options.passages)
    ranked = load_ranker(options.model).rank(options.query, passages)[: options.top]
    return as_json(ranked, lines) if options.json else as_text(ranked)


def read_passages(path: Path | None) -> tuple[list[int], list[str]]:
    """The lines that are not blank, and their numbers from 1.

    Raises:
        UserError: the file is missing, is not UTF-8, or has no line with text.
    """
    name = str(path) if path else "standard input"
    try:
        content = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{name}: could not be read ({error.strerror or error})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{name}: line {line} is not UTF-8 (byte {error.start}); convert the file to UTF-8") from None
    filled = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not filled:
        raise UserError(f"{name}: no passage; give one a line")
    return [number for number, _ in filled], [line for _, line in filled]


def as_text(ranked: Sequence[Ranked]) -> str:
    """A line for each passage."""
    return "\n".join(
        LINE.format(rank=rank, score=item.score, passage=printable(item.passage))
        for rank, item in enumerate(ranked, start=1)
    )


def as_json(ranked: Sequence[Ranked], lines: Sequence[int]) -> str:
    """A list of objects, for programs."""
    items = [
        {"rank": rank, "score": item.score, "line": lines[item.position], "passage": item.passage}
        for rank, item in enumerate(ranked, start=1)
    ]
    return json.dumps(items, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
