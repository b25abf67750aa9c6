"""static: tune a static embedding on most of the training queries, a part of the first stage.

python -m stages.static
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

from reranker.common.artifacts import PATHS, folder, read_tables, record_time
from reranker.common.params import load_params
from reranker.data.sampling import relevant_pairs, set_aside, training_order
from reranker.inference.loading import load_static
from reranker.training.biencoders import StaticSchedule, tune_static, weigh_by_rarity


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    queries, _ = set_aside(training_order(tables.queries, params.sources), params.retriever_share)
    rows = relevant_pairs(queries, tables, seed=params.static.seed)

    model = load_static(params.static.model)
    weigh_by_rarity(model, tables.passages["text"].tolist())
    schedule = StaticSchedule(
        lr=params.static.lr,
        epochs=params.static.epochs,
        batch_size=params.static.batch_size,
        dropout=params.static.dropout,
        scale=params.static.scale,
        max_tokens=params.static.max_tokens,
        seed=params.static.seed,
    )
    training = time.monotonic()
    tune_static(model, rows, schedule, label="static")
    training = time.monotonic() - training

    with folder(PATHS.static) as part:
        model.save_pretrained(str(part), create_model_card=False)
    record_time("static_training", training)
    record_time("static", time.monotonic() - started)
    return f"static: embedding tuned on {len(rows):,} queries in {training:,.0f} s -> {PATHS.static}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
