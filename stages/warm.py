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
from reranker.common.params import WITHOUT_EFFECT, load_params
from reranker.data.sampling import right_pairs, training_order
from reranker.inference.backends import use_attention
from reranker.inference.loading import check_lengths, choose_precision, load_biencoder, load_retriever
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
    wanted = training_order(tables.queries, params.sources, salt=params.warm_seed)
    if go_on:
        require(PATHS.biencoder)
        label, base, target = "control", str(PATHS.biencoder), PATHS.control
        # where the queries run out, it starts again: the control is to have its minutes on a small corpus too
        places = np.arange(params.warm_queries, params.warm_queries + params.control_queries) % len(wanted)
        wanted = wanted.iloc[places]
    else:
        label, base, target = "warm", resolve(params.base_model), PATHS.biencoder
        wanted = wanted[: params.warm_queries]
    rows = right_pairs(wanted, tables, seed=params.warm_seed)

    static = load_retriever(params.static_model)
    vectors = embed(static, rows["query"].tolist() + rows["passage"].tolist(), label=f"{label}: batches")
    vectors = vectors[: len(rows)] + vectors[len(rows) :]
    rows = rows.iloc[similar_batches(vectors, params.warm_batch_size, seed=params.warm_seed)]

    schedule = Schedule(
        lr=params.warm_lr,
        epochs=1,
        batch_size=params.warm_batch_size,
        warmup=params.warm_warmup,
        weight_decay=params.warm_weight_decay,
        precision=choose_precision(params.precision),
        seed=params.warm_seed,
    )
    model = load_biencoder(base, params.warm_max_length)
    check_lengths(model[0], warm_max_length=params.warm_max_length, biencoder_max_length=params.biencoder_max_length)
    use_attention(model, params.attention, schedule.precision)
    about = (params.model_dump(exclude={*WITHOUT_EFFECT, "launcher"}),)
    kept = Checkpoints(PATHS.checkpoints / label, params.checkpoint_minutes, about)
    training = time.monotonic()
    tune_biencoder(model, rows, schedule, scale=params.warm_scale, label=label, kept=kept)
    training = time.monotonic() - training

    model.max_seq_length = params.biencoder_max_length
    with folder(target) as part:
        model.save_pretrained(str(part), create_model_card=False)
    record_time(f"{label}_training", training)
    record_time(label, time.monotonic() - started)
    kept.remove()
    return f"{label}: bi-encoder tuned on {len(rows):,} queries in {training:,.0f} s -> {target}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
