"""Up to a million passages of real text from what is installed, with queries, judgments and vectors.

The text is the docstrings, the comments and the documentation files (.md, .rst, .txt) of site-packages. A text that
stands in several places is read once. That is about ten million words, too few for a million passages without a common
word, so a passage is a window of 50 words that begins 9 words after the one before it. They are shuffled with a fixed
seed: of a smaller corpus, few windows overlap. A query is eight words that follow each other in its right passage.

    python -m benchmarks.passages FOLDER [--passages 1000000] [--queries 100000]
"""

import argparse
import ast
import io
import shutil
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from sentence_transformers import SentenceTransformer

from benchmarks.measured import TABLES
from benchmarks.prepare import ROOT, run
from reranker.inference.loading import load_retriever

WORDS, STRIDE, QUERY_WORDS = 50, 9, 8
BATCH = 4096
DOCUMENTS = (".md", ".rst", ".txt")
RETRIEVER = "bundled/static-256"


def main() -> None:
    """Make the corpus and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    texts = passages()
    print(f"{len(texts):,} distinct passages")
    write(options.folder, texts[: options.passages], options.queries)


def passages() -> list[str]:
    """All distinct passages, shuffled."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".pyi", *DOCUMENTS) and path.is_file()]
    read: set[str] = set()
    distinct: dict[str, None] = {}
    with ProcessPoolExecutor() as pool:
        for blocks in pool.map(blocks_of, files, chunksize=64):
            new = [block for block in dict.fromkeys(blocks) if block not in read]
            read.update(new)
            words = " ".join(new).split()
            distinct.update((" ".join(words[at : at + WORDS]), None) for at in starts(len(words)))
    texts = np.array(list(distinct), dtype=object)
    return [str(text) for text in np.random.default_rng(1).permutation(texts)]


def starts(words: int) -> range:
    """Where the windows of a text of so many words begin."""
    return range(0, words - WORDS + 1, STRIDE)


def blocks_of(path: Path) -> list[str]:
    """The docstrings and comments of a source file, or a documentation file as it is."""
    content = path.read_bytes()
    if path.suffix in DOCUMENTS:
        return [content.decode(errors="ignore")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            tree = ast.parse(content)
        documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        return found + list(comments(content))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return []  # templates, and files for Python 2


def comments(content: bytes) -> Iterator[str]:
    """Comments; those on lines that follow each other are one."""
    block: list[str] = []
    line = 0
    for token in tokenize.tokenize(io.BytesIO(content).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != line + 1:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("#:"))
            line = token.start[0]
    yield " ".join(block)


def write(folder: Path, texts: list[str], queries: int) -> None:
    """The tables of a data set, as prepare writes them but with each row a group of its own, and their vectors.

    The queries come from the first passages, so that a smaller corpus has the right passages of the first queries.
    """
    asked: dict[str, int] = {}
    generator = np.random.default_rng(2)
    for place, text in enumerate(texts):
        begin = int(generator.integers(WORDS - QUERY_WORDS + 1))
        asked.setdefault(" ".join(text.split()[begin : begin + QUERY_WORDS]), place)
        if len(asked) == queries:
            break
    passage_ids, query_ids = ids("p", len(texts)), ids("q", len(asked))
    pd.DataFrame({"passage_id": passage_ids, "text": texts, "group": passage_ids}).to_parquet(
        folder / "passages.parquet", index=False
    )
    pd.DataFrame(
        {"query_id": query_ids, "text": list(asked), "group": query_ids, "split": "train", "source": "installed"}
    ).to_parquet(folder / "queries.parquet", index=False)
    pd.DataFrame(
        {"query_id": query_ids, "passage_id": [passage_ids[place] for place in asked.values()], "relevance": 1}
    ).to_parquet(folder / "judgments.parquet", index=False)
    embed(folder)


def ids(letter: str, number: int) -> list[str]:
    """Ids that sort as their rows do."""
    return [f"{letter}{place:07}" for place in range(number)]


def embed(folder: Path) -> None:
    """Write the vectors of a folder's passages and queries as float32, a row each."""
    model = load_retriever(RETRIEVER)
    for name in ("passages", "queries"):
        write_vectors(model, pd.read_parquet(folder / f"{name}.parquet", columns=["text"])["text"], folder, name)


def write_vectors(model: SentenceTransformer, texts: pd.Series, folder: Path, name: str) -> None:
    """Embed in large batches: the texts are of nearly one length, and a static embedding knows no padding."""
    shape = len(texts), model.get_embedding_dimension() or 0
    vectors = open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(texts), 16 * BATCH):
        part = texts.iloc[start : start + 16 * BATCH].tolist()
        vectors[start : start + len(part)] = model.encode(
            part, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
    vectors.flush()


def default_text(folder: Path) -> None:
    """The tables that prepare makes of the docstrings in the committed params.yaml, with its training queries only."""
    shutil.copy(ROOT / "params.yaml", folder)
    run([sys.executable, "-m", "stages.prepare"], folder)
    prepared = folder / "data" / "prepared"
    for name in TABLES:
        (prepared / f"{name}.parquet").rename(folder / f"{name}.parquet")
    queries = pd.read_parquet(folder / "queries.parquet")
    queries = queries[queries["split"] == "train"]
    queries.to_parquet(folder / "queries.parquet", index=False)
    judgments = pd.read_parquet(folder / "judgments.parquet")
    judgments[judgments["query_id"].isin(queries["query_id"])].to_parquet(folder / "judgments.parquet", index=False)
    embed(folder)


def part(source: Path, folder: Path, passages: int, queries: int) -> None:
    """The first passages and queries of a corpus as a smaller one."""
    for name, number in zip(TABLES, (passages, queries, queries), strict=True):
        pd.read_parquet(source / f"{name}.parquet").head(number).to_parquet(folder / f"{name}.parquet", index=False)
    for name, number in (("passages", passages), ("queries", queries)):
        np.save(folder / f"{name}.npy", np.load(source / f"{name}.npy", mmap_mode="r")[:number])


if __name__ == "__main__":
    main()
