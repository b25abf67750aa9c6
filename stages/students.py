"""students: the cross-encoder with fewer layers, once for each number of them, to see what size buys.

They learn what train's does, from the same rows, loss and teacher and at the same rates; all their layers are trained.

python -m stages.students
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

from functools import partial

from sentence_transformers import CrossEncoder

from reranker.common.artifacts import PATHS, folder, read_table, read_tables, record_time, require
from reranker.common.model_files import resolve
from reranker.common.params import WITHOUT_EFFECT, load_params
from reranker.inference.backends import use_attention
from reranker.inference.excerpts import with_texts
from reranker.inference.loading import choose_precision, one_output
from reranker.retrieval import bm25
from reranker.training import examples
from reranker.training.arguments import check_trainer, further
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import build_cross_encoder, tune_cross_encoder
from reranker.training.evaluator import check_evaluators, make_evaluator
from reranker.training.examples import choose_losses, make_lesson
from reranker.training.losses import LOSSES, needs_teacher
from reranker.training.trainer import Schedule, seed_everything

SIGNALS = examples.SIGNALS["fused"]


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    check_trainer(params.trainer)
    check_evaluators(params.evaluators)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split", *SIGNALS])
    negatives = read_table(PATHS.negatives, ["query_id", "passage_id", "kind", "relevance", *SIGNALS])
    require(PATHS.biencoder)
    negatives["source"] = negatives["query_id"].map(tables.queries.set_index("query_id")["source"])
    losses = choose_losses(params.loss, params.loss_arguments, sorted(negatives["source"].unique()))
    taught = True in {needs_teacher(loss.name, params.targets, params.distillation) for loss in losses.values()}
    outputs = max(LOSSES[loss.name].outputs for loss in losses.values())
    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)].reset_index(drop=True)
    precision = choose_precision(params.precision)
    start = str(PATHS.biencoder) if params.start_from_biencoder else resolve(params.base_model)
    counted = bm25.statistics(tables.passages["text"])
    trained: dict[int, CrossEncoder] = {}
    told = []
    for layers in params.student_layers:
        label = f"student {layers}"
        seed_everything(params.seed)
        model = build_cross_encoder(start, params.max_length, 0, outputs, layers, "student_layers")
        use_attention(model, params.attention, precision)
        texts = partial(
            with_texts, texts=tables, tokenizer=model.tokenizer, max_length=params.max_length, counted=counted
        )
        if not trained:  # they read and are taught the same
            dev, negatives = texts(dev), texts(negatives)
            if taught:
                negatives["teacher"] = examples.logits(
                    params.teacher,
                    negatives,
                    dev,
                    tables.judgments,
                    precision=precision,
                    attention=params.attention,
                    backend=params.backend,
                )
        lesson = make_lesson(
            negatives, model, losses, targets=params.targets, distillation=params.distillation, seed=params.seed
        )
        schedule = Schedule(
            lr=params.lr,
            epochs=params.epochs,
            batch_size=params.batch_size * lesson.rows_per_query,
            warmup=params.warmup,
            weight_decay=params.weight_decay,
            precision=precision,
            seed=params.seed,
        )
        some = dev["query_id"].drop_duplicates()[: params.eval_queries]
        watched, judged = (table[table["query_id"].isin(some)] for table in (dev, tables.judgments))
        evaluator = make_evaluator(params.evaluators, watched, judged, texts, precision)
        about = params.model_dump(exclude={*WITHOUT_EFFECT, "launcher"}), watched, tables.judgments
        kept = Checkpoints(PATHS.checkpoints / f"student-{layers}", params.checkpoint_minutes, about)
        curve = tune_cross_encoder(
            model,
            lesson.data,
            lesson.loss,
            schedule,
            evaluator=evaluator,
            evaluations=params.evaluations,
            patience=params.patience,
            head_lr=params.head_lr,
            label=label,
            others=evaluator.others,
            further=further(params.trainer, label),
            kept=kept,
        )
        trained[layers] = one_output(model) if outputs > 1 else model
        if not first_process():
            continue
        told.append(f"{layers}: {curve.dev['ndcg@10'].max():.3f}")
        kept.remove()
    if not first_process():
        return "students: the first process writes the result"
    with folder(PATHS.students) as part:
        for layers, student in trained.items():
            student.save_pretrained(str(part / str(layers)), create_model_card=False)
    record_time("students", time.monotonic() - started)
    figures = ", ".join(told) or "none is asked for"
    return f"students: NDCG@10 on {params.eval_queries} dev queries by layers: {figures} -> {PATHS.students}"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
