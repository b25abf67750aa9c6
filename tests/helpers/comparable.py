"""A working directory in which the stages of compare/ run in seconds: tables of a few words, tiny models."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from reranker.common.artifacts import SCORE_STAGE_SYSTEMS
from reranker.evaluation.system_schema import STANDARD_SYSTEMS
from reranker.retrieval import bm25
from settings import change

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["query_id", "passage_id"]
PASSAGES = {
    "p0": "sort a list of numbers",
    "p1": "read a csv file",
    "p2": "find the shortest path in a graph",
    "p3": "write the table to a csv file",
    "p4": "green apples",
    "p5": "order the numbers of the table",
}
QUERIES = {"t0": "sort numbers", "t1": "read the csv file", "t2": "shortest path"}
RIGHT = [("t0", "p0", 2), ("t0", "p5", 1), ("t1", "p1", 1), ("t1", "p3", 0), ("t2", "p2", 1)]
CANDIDATES = {"t0": ["p5", "p1", "p0", "p4"], "t1": ["p3", "p1", "p0", "p2"], "t2": ["p4", "p3", "p0", "p1"]}
MISSED = ("t2", "p2", 6)
"""A right passage that the retriever has on a rank behind its top_k."""
TOP_K = 4
WEIGHTS = {"bm25": 1.0, "cross_encoder": 2.0, "static_score": 3.0, "biencoder_score": 4.0}


def make_static(encoder: str, path: Path) -> None:
    """A static embedding of eight dimensions that knows the words of the encoder."""
    tokenizer = Tokenizer.from_file(f"{encoder}/tokenizer.json")
    tokenizer.no_padding()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save_pretrained(
        str(path), create_model_card=False
    )


def make_reranker(path: Path, cross_encoder: str, static: Path, biencoder: Path) -> None:
    """What the train stage writes, of tiny models."""
    shutil.copytree(cross_encoder, path)
    shutil.copytree(static, path / "static")
    shutil.copytree(biencoder, path / "biencoder")
    (path / "words.json").write_text(bm25.dump(bm25.statistics(PASSAGES.values())), encoding="utf-8")
    weights = {"reranker": WEIGHTS, "fusion_without_cross_encoder": {"bm25": 1.0}, "retriever": {"bm25": 1.0}}
    (path / "fusion.json").write_text(json.dumps(weights), encoding="utf-8")


class Comparable:
    """The directory, with the outputs of the stages before."""

    def __init__(self, path: Path, encoder: str, biencoder: str, cross_encoder: str) -> None:
        self.path = path
        models = path / "models"
        make_static(encoder, models / "static")
        shutil.copytree(biencoder, models / "biencoder")
        make_reranker(models / "reranker", cross_encoder, models / "static", models / "biencoder")
        (path / "data" / "runs").mkdir(parents=True)
        (path / "metrics").mkdir()
        (path / "compare").mkdir()
        for name in ("params.yaml", "compare/params.yaml"):
            shutil.copy(ROOT / name, path / name)
        self.set(base_model=cross_encoder, top_k=TOP_K, max_length=32, precision="float32", backend="torch")
        self.set(**{"biencoder.max_length": 32})
        self.compare(systems={}, baseline="retriever")
        self.tables(QUERIES)

    def set(self, **values: object) -> None:
        """Give keys of params.yaml other values."""
        change(self.path / "params.yaml", **values)

    def compare(self, **values: object) -> None:
        """Give keys of compare/params.yaml other values."""
        change(self.path / "compare" / "params.yaml", **{f"compare.{key}": value for key, value in values.items()})

    def tables(self, queries: dict[str, str]) -> None:
        """The tables, of so many of the test queries."""
        asked = {**queries, "d0": "green apples"}
        ids, texts = list(PASSAGES), list(PASSAGES.values())
        self._write("prepared/passages", passage_id=ids, text=texts, group=ids)
        splits = ["dev" if query == "d0" else "test" for query in asked]
        asked_texts = list(asked.values())
        self._write(
            "prepared/queries", query_id=list(asked), text=asked_texts, group=list(asked), split=splits, source="words"
        )
        right = [row for row in [*RIGHT, ("d0", "p4", 1)] if row[0] in asked]
        query_ids, passage_ids, relevance = zip(*right, strict=True)
        self._write("prepared/judgments", query_id=query_ids, passage_id=passage_ids, relevance=relevance)
        rows = [
            (query, passage, rank)
            for query, passages in CANDIDATES.items()
            for rank, passage in enumerate(passages, start=1)
        ]
        rows = [row for row in [*rows, MISSED] if row[0] in queries]
        pairs = pd.DataFrame(rows, columns=["query_id", "passage_id", "rank"])
        pairs["bm25"] = self._bm25(pairs["query_id"].map(queries), pairs["passage_id"])
        dev = pd.DataFrame({"query_id": ["d0"], "passage_id": ["p4"], "rank": [1], "split": ["dev"], "bm25": [1.0]})
        self._write("mined/candidates", **pd.concat([pairs.assign(split="test"), dev]).to_dict("list"))
        own = pd.DataFrame([(query, passage) for query in queries for passage in ids], columns=KEYS)
        own["score"] = self._bm25(own["query_id"].map(queries), own["passage_id"])
        own["rank"] = own.groupby("query_id")["score"].rank(method="first", ascending=False).astype(int)
        self._write("mined/bm25", **own.to_dict("list"))
        for place, system in enumerate(STANDARD_SYSTEMS):
            if system == "bm25":
                continue
            # the retriever keeps the order of the candidates, the others vary it
            scores = [1 / rank if system == "retriever" else (rank * (place + 2)) % 7 for rank in pairs["rank"]]
            folder = "scored" if system in SCORE_STAGE_SYSTEMS else "evaluated"
            self._write(f"{folder}/{system}", **pairs[KEYS].to_dict("list"), score=scores)

    def run_file(self, text: str, name: str = "other.trec") -> str:
        """Write a run of another system; its path."""
        (self.path / "data" / "runs" / name).write_text(text, encoding="utf-8")
        return f"data/runs/{name}"

    def comparison(self) -> pd.DataFrame:
        """The table of the retrieved candidates, by system."""
        table = pd.read_csv(self.path / "metrics" / "comparison.csv")
        return table[table["mode"] == "retrieved"].set_index("system")

    def scores(self, system: str) -> dict[tuple[str, str], float]:
        """A system's scores by query and passage."""
        table = pd.read_parquet(self.path / "data" / "compared" / f"{system}.parquet")
        return {(row.query_id, row.passage_id): row.score for row in table.itertuples()}

    def _bm25(self, queries: Iterable[str], passages: Iterable[str]) -> list[float]:
        texts = [PASSAGES[passage] for passage in passages]
        return [float(score) for score in bm25.bm25(bm25.statistics(PASSAGES.values()), list(queries), texts)]

    def _write(self, name: str, **columns: object) -> None:
        path = self.path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path)
