"""biencoder: tune a transformer as a bi-encoder, the third part of the first stage.

With --control N, this is the stage control of compare/: it tunes the same model on N queries, so that a comparison can
give it the minutes that the reranker takes.

    python -m stages.biencoder [--control QUERIES]
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np

from reranker.common.artifacts import PATHS, folder, read_tables, record_time
from reranker.common.errors import UserError
from reranker.common.model_files import resolve
from reranker.common.params import load_params
from reranker.data.sampling import relevant_pairs, set_aside, training_order
from reranker.inference.compute import choose_compute
from reranker.inference.loading import check_lengths, load_biencoder, load_retriever
from reranker.inference.scoring import embed
from reranker.training.biencoders import similar_batches, tune_biencoder
from reranker.training.checkpoints import Checkpoints
from reranker.training.trainer import Schedule


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    number = _control_queries(arguments)
    label, target = ("control", PATHS.control) if number else ("biencoder", PATHS.biencoder)
    params = load_params(PATHS.params)
    tuning = params.biencoder
    tables = read_tables()
    queries = training_order(tables.queries, params.sources)
    if number:  # on a small corpus the queries are used again, so that the control takes as many minutes as it should
        queries = queries.iloc[np.arange(number) % len(queries)]
    else:
        queries = set_aside(queries, params.retriever_share)[0][: tuning.queries]
    rows = relevant_pairs(queries, tables, seed=tuning.seed)

    static = load_retriever(params.static.model)
    vectors = embed(static, rows["query"].tolist() + rows["passage"].tolist(), label=f"{label}: embed for batches")
    vectors = vectors[: len(rows)] + vectors[len(rows) :]
    rows = rows.iloc[similar_batches(vectors, tuning.batch_size, seed=tuning.seed)]

    compute = choose_compute(**dict(params.compute)).training()
    schedule = Schedule(
        lr=tuning.lr,
        epochs=1,
        batch_size=tuning.batch_size,
        warmup=tuning.warmup,
        weight_decay=tuning.weight_decay,
        precision=compute.precision,
        seed=tuning.seed,
    )
    model = load_biencoder(resolve(tuning.base_model), tuning.train_max_length, compute)
    lengths = {"train_max_length": tuning.train_max_length, "max_length": tuning.max_length}
    check_lengths(model[0], **{f"biencoder.{key}": length for key, length in lengths.items()})
    checkpoints = Checkpoints(PATHS.checkpoints / label, params.execution.checkpoint_minutes, (params.with_effect(),))
    training = time.monotonic()
    tune_biencoder(model, rows, schedule, scale=tuning.scale, label=label, checkpoints=checkpoints)
    training = time.monotonic() - training

    model.max_seq_length = tuning.max_length
    with folder(target) as part:
        model.save_pretrained(str(part), create_model_card=False)
    record_time(f"{label}_training", training)
    record_time(label, time.monotonic() - started)
    checkpoints.remove()
    return f"{label}: bi-encoder tuned on {len(rows):,} queries in {training:,.0f} s -> {target}"


def _control_queries(arguments: Sequence[str]) -> int | None:
    """The number of queries of the control; None for the bi-encoder of the first stage."""
    if not arguments:
        return None
    if len(arguments) != 2 or arguments[0] != "--control" or not arguments[1].isdecimal() or not int(arguments[1]):
        raise UserError(f"python -m stages.biencoder: '{' '.join(arguments)}': the only argument is --control QUERIES")
    return int(arguments[1])


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
