"""How fast a cross-encoder is trained, beside the plain `CrossEncoderTrainer` of Sentence Transformers.

All sides train on the same pairs in the same precision, order and number of steps with the same loss, each in a process
of its own, in turn. The last two train the same model; the first is the script of the documentation, whose model has
dropout and scores the first token. The pairs are the mined ones of a project, whole passages. `times` are medians
of the ratios to the second side, `peak` the share of the fastest large matrix product of this machine in that precision
that the products of the pairs make up, padding not counted; NDCG@10 is that of the candidates of some dev queries after
the steps. Seconds are medians over the seeds, NDCG@10 is a mean.

    python -m benchmarks.train PROJECT [--precision float32 bfloat16] [--max-length 256] [--steps 20] [--seeds 1 2 3]

A PROJECT is a copy of this repository after `dvc repro mine`. With minutes, the documentation's whole recipe gets that
long, beside the figures of the project's own run; see benchmarks/plain_recipe.py:

    python -m benchmarks.train PROJECT --minutes 10 [--max-length 72]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.measured import Moment
from benchmarks.plain_recipe import with_texts
from benchmarks.prepare import run
from benchmarks.trained import Asked
from reranker.common.artifacts import PATHS
from reranker.common.model_files import resolve
from reranker.common.params import load_params
from reranker.evaluation import metrics
from reranker.inference.compute import choose_precision
from reranker.training.cpu_kernels import OneDnnLinears

DOCUMENTED, PLAIN, OURS = "documentation, with dropout", "CrossEncoderTrainer, our model", "ours"
SIDES = {DOCUMENTED: "plain_train", PLAIN: "plain_train", OURS: "our_training"}
MAX_LENGTH = 256
TIMED = ("static_seconds", "biencoder_seconds", "mine_seconds", "train_seconds")
"""Stages that make the reranker of prepared tables."""


def main() -> None:
    """Run both sides, or the documentation's recipe; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"], help="what the hardware has, if none"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help=f"tokens, {MAX_LENGTH} if none; with minutes those that the recipe reads, all 512 if none",
    )
    parser.add_argument("--batch-size", type=int, default=24, help="pairs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--without-documented", action="store_true", help="its dropout takes minutes on a CPU")
    parser.add_argument("--queries", type=int, help="of dev, 30 if none; with minutes those of test, all if none")
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {hardware()}")
    with tempfile.TemporaryDirectory() as name:
        if options.minutes:
            limits = {"minutes": options.minutes, "queries": options.queries, "max-length": options.max_length}
            recipe(options.project.absolute(), Path(name), limits)
            return
        print(
            f"{'':<30} {'seconds':>8} {'pairs/s':>8} {'times':>6} {'CPU s':>8} {'times':>6} {'peak':>6} {'NDCG@10':>8}"
        )
        for precision in options.precision or [choose_precision("auto")]:
            compare(options, Path(name), precision)


def hardware() -> str:
    """The GPU, or that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: peak is that of the processor"


def compare(options: argparse.Namespace, folder: Path, precision: str) -> None:
    """All sides with every seed, a line each: the median of their seconds, the mean of NDCG@10."""
    base = resolve(load_params(options.project / PATHS.params).base_model)
    max_length = options.max_length or MAX_LENGTH
    dev = dev_pairs(options.project, options.queries or 30)
    dev.to_parquet(folder / "dev.parquet", index=False)
    sides = dict(list(SIDES.items())[options.without_documented :])
    taken: dict[str, list[Moment]] = {side: [] for side in sides}
    ndcg: dict[str, list[float]] = {side: [] for side in sides}
    work: list[float] = []
    judgments = pd.read_parquet(options.project / PATHS.judgments)
    for seed in options.seeds:
        rows = training_pairs(options.project, options.steps * options.batch_size, seed)
        rows.to_parquet(folder / "rows.parquet", index=False)
        work.append(operations(base, rows, max_length))
        for side, module in sides.items():
            out = folder / f"{module}.parquet"
            task = Asked(
                base, folder / "rows.parquet", folder / "dev.parquet", out,
                max_length, options.batch_size, precision, side == DOCUMENTED, seed,
            )  # fmt: skip
            run([sys.executable, "-m", f"benchmarks.{module}", json.dumps(task._asdict(), default=str)], folder)
            taken[side].append(Moment(*json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))))
            ndcg[side].append(metrics.mean_ndcg(judgments, dev, pd.read_parquet(out)["score"]))
    highest = peak(precision)
    print(f"{precision}, {len(rows):,} pairs, {highest / 1e9:,.0f} GFLOP/s")
    plain = np.array(taken[PLAIN])
    for side, moments in taken.items():
        own = np.array(moments)
        seconds, cpu = np.median(own, axis=0)
        times, cpu_times = np.median(plain / own, axis=0)
        share = np.median(work / own[:, 0]) / highest
        print(
            f"{side:<30} {seconds:>8.1f} {len(rows) / seconds:>8.1f} {times:>6.2f} {cpu:>8.1f} {cpu_times:>6.2f} "
            f"{share:>6.0%} {statistics.mean(ndcg[side]):>8.4f}",
            flush=True,
        )


def training_pairs(project: Path, number: int, seed: int) -> pd.DataFrame:
    """Columns query, passage, label: so many of the mined pairs, drawn at random."""
    mined = pd.read_parquet(project / PATHS.negatives, columns=["query_id", "passage_id", "kind"])
    rows = with_texts(project, mined[mined["kind"] != "graded"].sample(number, random_state=seed))
    rows["label"] = (rows["kind"] == "positive").astype(float)
    return rows.rename(columns={"text": "passage"})[["query", "passage", "label"]].reset_index(drop=True)


def dev_pairs(project: Path, queries: int) -> pd.DataFrame:
    """Columns query_id, passage_id, query, text: the candidates of the first dev queries."""
    candidates = pd.read_parquet(project / PATHS.candidates, columns=["query_id", "passage_id", "rank", "split"])
    top_k = load_params(project / PATHS.params).top_k
    candidates = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= top_k)]
    some = candidates["query_id"].drop_duplicates()[:queries]
    return with_texts(project, candidates[candidates["query_id"].isin(some)][["query_id", "passage_id"]])


def operations(base: str, rows: pd.DataFrame, max_length: int) -> float:
    """Multiplications and additions of the pairs' training, forward and backward, without padding.

    Six for each token and weight of the layers, and twelve for each pair of tokens, dimension and layer in attention
    (Kaplan et al., 2020, appendix B of Chowdhery et al., 2022); embeddings are looked up.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = tokenizer(rows["query"].tolist(), rows["passage"].tolist(), truncation=True, max_length=max_length)
    lengths = np.array([len(ids) for ids in found["input_ids"]], dtype=float)
    shape = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        body = AutoModel.from_config(shape)
    looked_up = {id(part.weight) for part in body.modules() if isinstance(part, torch.nn.Embedding)}
    weights = sum(part.numel() for part in body.parameters() if id(part) not in looked_up)
    attention = 12 * shape.num_hidden_layers * shape.hidden_size
    return float(6 * weights * lengths.sum() + attention * (lengths**2).sum())


def peak(precision: str) -> float:
    """Operations a second of a large matrix product, the best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    taken = []
    with OneDnnLinears(), torch.no_grad():
        for _ in range(6):
            started = time.monotonic()
            F.linear(matrix, matrix)
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.monotonic() - started)
    return 2 * size**3 / min(taken[1:])


def recipe(project: Path, folder: Path, limits: Mapping[str, float | None]) -> None:
    """The documentation's recipe beside what the pipeline wrote, a line each."""
    out = folder / "recipe.parquet"
    told = [f"--{name}={limit}" for name, limit in limits.items() if limit is not None]
    run([sys.executable, "-m", "benchmarks.plain_recipe", str(project), str(out), *told], folder)
    found = pd.read_parquet(out)
    took = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    ndcg = metrics.mean_ndcg(pd.read_parquet(project / PATHS.judgments), found, found["score"])
    committed, timing = (
        json.loads((project / path).read_text(encoding="utf-8"))
        for path in (PATHS.metrics / "evaluate.json", PATHS.timing)
    )
    print(f"{'':<44} {'minutes':>8} {'pairs':>8} {'queries':>8} {'NDCG@10':>8}")
    line("documentation's recipe", took["seconds"], took["pairs"], found["query_id"].nunique(), ndcg)
    seconds = sum(timing[stage] for stage in TIMED)
    pairs = json.loads((project / PATHS.metrics / "train.json").read_text(encoding="utf-8"))["pairs"]
    systems: Sequence[tuple[str, str]] = (("reranker", "ndcg@10"), ("cross-encoder alone", "ndcg@10_cross_encoder"))
    for label, key in systems:
        line(f"{label} of the pipeline", seconds, pairs, committed["queries"], committed[key])


def line(label: str, seconds: float, pairs: int, queries: int, ndcg: float) -> None:
    """A line of the second table."""
    print(f"{label:<44} {seconds / 60:>8.1f} {pairs:>8,} {queries:>8,} {ndcg:>8.4f}", flush=True)


if __name__ == "__main__":
    main()
