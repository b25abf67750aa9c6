"""How fast prepare is and how much memory it takes, beside plain datasets and pandas code of the same steps.

The rows are made from the docstrings of installed packages: each query and each passage is a run of their words.

    python -m benchmarks.prepare [--rows 2000000] [--without-plain]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from reranker.data.sources import pydocs

ROOT = Path(__file__).resolve().parent.parent
BATCH = 50_000
PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "torch", "transformers", "datasets", "sympy", "networkx")


def main() -> None:
    """Make the rows, run both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--without-plain", action="store_true", help="where its memory does not suffice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "data" / "raw" / "rows.parquet"
        source.parent.mkdir(parents=True)
        write_rows(source, options.rows)
        print(f"{options.rows:,} rows, {source.stat().st_size / 2**20:,.0f} MiB of Parquet")
        print(f"{'':<44} {'seconds':>8} {'rows/s':>9} {'peak MiB':>9}")
        prepare = [sys.executable, "-m", "stages.prepare"]
        for label, near in (("prepare, equal letters only", None), ("prepare, with near-duplicates", 0.9)):
            write_params(folder / "params.yaml", near)
            show(label, options.rows, *run(prepare, folder))
        if not options.without_plain:
            (folder / "plain").mkdir()
            plain = [sys.executable, "-m", "benchmarks.plain_prepare", str(source), str(folder / "plain")]
            show("datasets and pandas, equal letters only", options.rows, *run(plain, folder))


def show(label: str, rows: int, seconds: float, peak: float) -> None:
    """A line of the table."""
    print(f"{label:<44} {seconds:>8,.0f} {rows / seconds:>9,.0f} {peak:>9,.0f}", flush=True)


def write_rows(path: Path, number: int) -> None:
    """Rows of a query and a passage; one in twenty is there twice."""
    text = " ".join(example.passage for part in pydocs.read(PACKAGES) for example in part.examples)
    words = text.split()
    schema = pa.schema([("query", pa.string()), ("passage", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, number, BATCH):
            columns = zip(*made(words, range(start, min(start + BATCH, number))), strict=True)
            writer.write_batch(pa.record_batch([pa.array(column) for column in columns], schema=schema))


def made(words: list[str], numbers: range) -> Iterator[tuple[str, str]]:
    """The rows of these numbers: runs that begin anywhere, of 30 to 109 words for a passage and 9 for a query."""
    for number in numbers:
        row = number - 1 if number % 20 == 19 else number
        begins, lengths = np.divmod(row * 7_919, len(words))[::-1]
        passage = words[begins : begins + 30 + (lengths * 31 + row) % 80]
        at = (row * 104_729) % len(words)
        yield " ".join(words[at : at + 9]), " ".join(passage)


def write_params(path: Path, near_duplicates: float | None) -> None:
    """The committed params.yaml with these rows as the only source."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(ROOT / "params.yaml")
    columns = {"query": "query", "passage": "passage"}
    params["sources"] = {"rows": {"files": "data/raw/rows.parquet", "columns": columns}}
    params["prepare"]["near_duplicates"] = near_duplicates
    yaml.dump(params, path)


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a command.

    Raises:
        SystemExit: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(command)} ended with {status}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
