"""warm: tune the base model as a bi-encoder, which teaches the cross-encoder and is fused with it.

With --continue, this is the stage control: it tunes the same bi-encoder on further queries, for the minutes that the
static embedding and the cross-encoder take. It is the baseline that the shipped reranker has to beat.

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
    control = list(arguments) == ["--continue"]
    if arguments and not control:
        raise UserError(f"python -m stages.warm: '{' '.join(arguments)}': the only argument is --continue")
    params = load_params(PATHS.params)
    tables = read_tables()
    queries = training_order(tables.queries, params.sources, salt=params.biencoder.seed)
    if control:
        require(PATHS.biencoder)
        label, base, target = "control", str(PATHS.biencoder), PATHS.control
        # on a small corpus the queries are used again, so that the control takes as many minutes as it should
        places = params.biencoder.queries + np.arange(params.evaluation.control_queries)
        queries = queries.iloc[places % len(queries)]
    else:
        label, base, target = "warm", resolve(params.base_model), PATHS.biencoder
        queries = queries[: params.biencoder.queries]
    rows = relevant_pairs(queries, tables, seed=params.biencoder.seed)

    static = load_retriever(params.static.model)
    vectors = embed(static, rows["query"].tolist() + rows["passage"].tolist(), label=f"{label}: embed for batches")
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
    identity = (params.with_effect(),)
    checkpoints = Checkpoints(PATHS.checkpoints / label, params.execution.checkpoint_minutes, identity)
    training = time.monotonic()
    tune_biencoder(model, rows, schedule, scale=params.biencoder.scale, label=label, checkpoints=checkpoints)
    training = time.monotonic() - training

    model.max_seq_length = params.biencoder.max_length
    with folder(target) as part:
        model.save_pretrained(str(part), create_model_card=False)
    record_time(f"{label}_training", training)
    record_time(label, time.monotonic() - started)
    checkpoints.remove()
    return f"{label}: bi-encoder tuned on {len(rows):,} queries in {training:,.0f} s -> {target}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
