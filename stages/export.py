"""export: write the cross-encoder for OpenVINO and ONNX Runtime, in float and in int8, and measure it on dev.

dvc repro export/dvc.yaml, or python -m stages.export
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from reranker.common.artifacts import PATHS, folder, read_table, read_tables, record_time, require, write_text
from reranker.common.model_files import fingerprint, loading
from reranker.common.params import load_params
from reranker.evaluation import metrics
from reranker.inference.excerpts import with_texts
from reranker.inference.export import FILES, ExportedModel, export, precisions
from reranker.inference.graphs import check_installed
from reranker.inference.model_cards import Measurement, export_card
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    for backend in FILES:
        check_installed(backend)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split"])
    require(PATHS.reranker)
    with loading(str(PATHS.reranker)):
        model = CrossEncoder(str(PATHS.reranker), device="cpu")
    statistics = bm25.load(PATHS.reranker / "words.json")
    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)]
    dev = with_texts(dev, tables, model.tokenizer, model.max_seq_length, statistics)
    queries, texts = dev["query"].tolist(), dev["text"].tolist()

    def measure(backend: str, score: Callable[[list[str], list[str]], NDArray[np.float64]]) -> Measurement:
        scoring = time.monotonic()
        scores = score(queries, texts)
        seconds = time.monotonic() - scoring
        return Measurement(backend, metrics.mean_ndcg(tables.judgments, dev, scores), len(dev) / seconds)

    torch_row = measure("torch, float32", partial(score_pairs, model, label="export: torch"))
    figures = {
        "dev queries": dev["query_id"].nunique(),
        "pairs": len(dev),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    origin = fingerprint(str(PATHS.reranker))
    differences = []
    with folder(PATHS.export) as part:
        for backend in FILES:
            out = part / backend
            out.mkdir()
            export(model, backend, out, origin)
            shutil.copy(PATHS.reranker / "words.json", out)
            rows = [torch_row]
            for precision in precisions(backend):
                exported = ExportedModel(out, precision)
                rows.append(measure(f"{backend}, {precision}", exported.scores))
            differences += [f"{row.backend} {row.ndcg - torch_row.ndcg:+.4f}" for row in rows[1:]]
            card = export_card(
                backend, FILES[backend], model.tokenizer, exported.inputs, exported.max_length, rows, figures
            )
            write_text(card, out / "README.md")
    record_time("export", time.monotonic() - started)
    return f"export: NDCG@10 {torch_row.ndcg:.4f} on dev; {'; '.join(differences)} -> {PATHS.export}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
