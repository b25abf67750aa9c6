"""A working directory in which the stage train runs in seconds: tables of a few words, models of a few weights."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from settings import change

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {
    "sort a list": "order numbers in a list",
    "find the path": "the shortest path in a graph",
    "read a csv file": "read the table from a file",
    "red apples": "green apples",
}
PROGRESS = re.compile(r"^.+: [\d,]+ of [\d,]+ \w+ · \S+ left")
RESULT = ("models/reranker/model.safetensors", "metrics/train.json", "metrics/curve_loss.csv", "metrics/curve_dev.csv")


def without_progress(said: str) -> str:
    """The lines of a stage but those with its progress, which a slow machine prints."""
    return "".join(line for line in said.splitlines(keepends=True) if not PROGRESS.search(line))


class Trainable:
    """The directory; training starts from this model, and the mined queries are so many, of these sources in turn."""

    def __init__(
        self, path: Path, model: str, queries: int = 32, sources: Sequence[str] = ("words",), **values: object
    ) -> None:
        self.path = path
        for part in ("biencoder", "static"):  # they are copied, and nothing computes with them
            (path / "models" / part).mkdir(parents=True)
        shutil.copy(ROOT / "params.yaml", path)
        settings = {"base_model": model, "max_length": 32, "frozen_layers": 0, "precision": "float32", "epochs": 2}
        settings |= {"evaluations": 4, "distillation": 0.5}
        self.set(**settings | {"patience": 9, "lr": 1e-3, "checkpoint_minutes": 0} | values)
        self._tables(queries, sources)

    def set(self, **values: object) -> None:
        """Give keys of params.yaml other values."""
        change(self.path / "params.yaml", **values)

    def _tables(self, queries: int, sources: Sequence[str]) -> None:
        passages = list(ABOUT.values())
        asked = [(f"q{n}", list(ABOUT)[n % 4], n % 4, "train") for n in range(queries)]
        asked += [(f"d{n}", query, n, "dev") for n, query in enumerate(ABOUT)]
        ids = [query_id for query_id, *_ in asked]
        self._write("prepared/passages", passage_id=[f"p{n}" for n in range(4)], text=passages, group=["p"] * 4)
        texts, splits = [text for _, text, *_ in asked], [split for *_, split in asked]
        of = [sources[n % len(sources)] for n in range(len(ids))]
        self._write("prepared/queries", query_id=ids, text=texts, group=ids, split=splits, source=of)
        right = [f"p{place}" for _, _, place, _ in asked]
        self._write("prepared/judgments", query_id=ids, passage_id=right, relevance=1)
        for name, split in (("candidates", "dev"), ("negatives", "train")):
            rows = [
                (query_id, f"p{other}", 1 / (rank + 1), (7 * other + place) % 5 / 5, (3 * other + place) % 4 / 4, rank)
                for query_id, _, place, of in asked
                if of == split
                for rank, other in enumerate([place, *(n for n in range(4) if n != place)])
            ]
            columns = ["query_id", "passage_id", "bm25", "static_score", "biencoder_score", "rank"]
            table = pd.DataFrame(rows, columns=columns)
            first = table["rank"] == 0
            table["kind"], table["relevance"] = first.map({True: "positive", False: "hard"}), first.astype(int)
            table["split"], table["rank"], table["score"] = split, table["rank"] + 1, table["bm25"]
            self._write(f"mined/{name}", **table.to_dict("list"))
        (self.path / "data" / "mined" / "retriever.json").write_text('{"bm25": 1.0}', encoding="utf-8")

    def _write(self, name: str, **columns: object) -> None:
        path = self.path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(path)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start the stage with a launcher, `python` if there is none."""
        found = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
        environment = {**os.environ, "PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", *command, "stages.train"],
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *launcher: str) -> str:
        """Run the stage; what it said on the way."""
        process = self.start(*launcher)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert {line.split(":")[0] for line in out.splitlines()} == {"train"}
        assert not (self.path / ".checkpoints" / "train").exists()
        return without_progress(err)

    def error(self, *launcher: str) -> str:
        """The line that the stage ends with."""
        process = self.start(*launcher)
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (1, ""), err
        return err.splitlines()[-1].removeprefix("error: ")

    def die(self, event: str, end: str) -> str:
        """Run the stage until it is killed, see `dying`; what it said before."""
        process = self.start("dying", event, end)
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (-signal.SIGKILL, ""), err
        return without_progress(err)

    def result(self) -> dict[str, bytes]:
        """The files whose bytes must not differ."""
        return {name: (self.path / name).read_bytes() for name in RESULT}

    def checkpoints(self) -> list[Path]:
        """Those that are there, by step."""
        found = self.path.glob(".checkpoints/train/*/checkpoint-*")
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
