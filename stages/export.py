"""export: the cross-encoder for OpenVINO and ONNX Runtime, in float and in int8, measured on dev.

dvc repro export/dvc.yaml, or python -m stages.export
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence

from reranker.progress import quiet_libraries, run_stage

quiet_libraries()

import torch
from sentence_transformers import CrossEncoder

from reranker import lexical, metrics
from reranker.excerpts import excerpts
from reranker.export_card import export_card
from reranker.exported import FILES, Exported, export
from reranker.models import loading
from reranker.params import load_params
from reranker.quantised import check_installed
from reranker.records import PATHS, folder, read_table, read_tables, record_time, require, write_text
from reranker.scoring import score_pairs


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
    counted = lexical.load(PATHS.reranker / "words.json")
    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)]
    queries = dev["query_id"].map(tables.queries.set_index("query_id")["text"]).tolist()
    passages = dev["passage_id"].map(tables.passages.set_index("passage_id")["text"]).tolist()
    texts = excerpts(model.tokenizer, model.max_seq_length, counted, queries, passages)
    scoring = time.monotonic()
    expected = metrics.mean_ndcg(tables.judgments, dev, score_pairs(model, queries, texts, label="export: torch"))
    torch_seconds = time.monotonic() - scoring
    differences = {}
    with folder(PATHS.export) as part:
        for backend in FILES:
            out = part / backend
            out.mkdir()
            export(model, backend, out)
            shutil.copy(PATHS.reranker / "words.json", out)
            exported = Exported(out)
            scoring = time.monotonic()
            ndcg = metrics.mean_ndcg(tables.judgments, dev, exported.scores(queries, texts))
            seconds = time.monotonic() - scoring
            differences[backend] = ndcg - expected
            figures = {
                "dev queries": dev["query_id"].nunique(),
                "pairs": len(dev),
                "NDCG@10 of torch in float32": expected,
                "NDCG@10": ndcg,
                "difference": differences[backend],
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "pairs a second of torch in float32": len(dev) / torch_seconds,
                "pairs a second": len(dev) / seconds,
                "times as fast": torch_seconds / seconds,
            }
            card = export_card(backend, FILES[backend], model.tokenizer, exported.inputs, exported.max_length, figures)
            write_text(card, out / "README.md")
    record_time("export", time.monotonic() - started)
    told = ", ".join(f"{backend} {difference:+.4f}" for backend, difference in differences.items())
    return f"export: NDCG@10 {expected:.4f} on dev; {told} -> {PATHS.export}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
