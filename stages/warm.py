"""warm: tune the base model as a bi-encoder. It teaches the cross-encoder and is fused with it.

With --continue, the stage control: the same bi-encoder goes on for the minutes that the static embedding and
the cross-encoder take, on further queries. It is the system that the shipped reranker has to beat.

    python -m stages.warm [--continue]
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np

from reranker.common.artifacts import PATHS, folder, read_tables, record_time, require
from reranker.common.errors import UserError
from reranker.common.model_files import resolve
from reranker.common.params import load_params
from reranker.data.sampling import relevant_pairs, training_order
from reranker.inference.compute import choose_compute
from reranker.inference.loading import check_lengths, load_biencoder, load_retriever
from reranker.inference.scoring import embed
from reranker.training.biencoders import similar_batches, tune_biencoder
from reranker.training.checkpoints import Checkpoints
from reranker.training.trainer import Schedule


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    go_on = list(arguments) == ["--continue"]
    if arguments and not go_on:
        raise UserError(f"python -m stages.warm: '{' '.join(arguments)}': the only argument is --continue")
    params = load_params(PATHS.params)
    tables = read_tables()
    wanted = training_order(tables.queries, params.sources, salt=params.biencoder.seed)
    if go_on:
        require(PATHS.biencoder)
        label, base, target = "control", str(PATHS.biencoder), PATHS.control
        # where the queries run out, it starts again: the control is to have its minutes on a small corpus too
        places = params.biencoder.queries + np.arange(params.evaluation.control_queries)
        wanted = wanted.iloc[places % len(wanted)]
    else:
        label, base, target = "warm", resolve(params.base_model), PATHS.biencoder
        wanted = wanted[: params.biencoder.queries]
    rows = relevant_pairs(wanted, tables, seed=params.biencoder.seed)

    static = load_retriever(params.static.model)
    vectors = embed(static, rows["query"].tolist() + rows["passage"].tolist(), label=f"{label}: batches")
    vectors = vectors[: len(rows)] + vectors[len(rows) :]
    rows = rows.iloc[similar_batches(vectors, params.biencoder.batch_size, seed=params.biencoder.seed)]

    compute = choose_compute(**dict(params.compute)).training()
    schedule = Schedule(
        lr=params.biencoder.lr,
        epochs=1,
        batch_size=params.biencoder.batch_size,
        warmup=params.biencoder.warmup,
        weight_decay=params.biencoder.weight_decay,
        precision=compute.precision,
        seed=params.biencoder.seed,
    )
    lengths = {"train_max_length": params.biencoder.train_max_length, "max_length": params.biencoder.max_length}
    model = load_biencoder(base, params.biencoder.train_max_length, compute)
    check_lengths(model[0], **{f"biencoder.{key}": length for key, length in lengths.items()})
    about = (params.with_effect(),)
    kept = Checkpoints(PATHS.checkpoints / label, params.execution.checkpoint_minutes, about)
    training = time.monotonic()
    tune_biencoder(model, rows, schedule, scale=params.biencoder.scale, label=label, kept=kept)
    training = time.monotonic() - training

    model.max_seq_length = params.biencoder.max_length
    with folder(target) as part:
        model.save_pretrained(str(part), create_model_card=False)
    record_time(f"{label}_training", training)
    record_time(label, time.monotonic() - started)
    kept.remove()
    return f"{label}: bi-encoder tuned on {len(rows):,} queries in {training:,.0f} s -> {target}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
