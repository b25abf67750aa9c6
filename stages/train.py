"""train: fine-tune a cross-encoder on the mined groups and fit the weights of its fusion on dev.

python -m stages.train
"""

import shutil
import sys
import time
from collections.abc import Sequence

from reranker.common.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

import json
from functools import partial

from reranker.common.artifacts import (
    PATHS,
    folder,
    read_table,
    read_tables,
    record_time,
    require,
    write_csv,
    write_json,
)
from reranker.common.errors import UserError
from reranker.common.model_files import resolve
from reranker.common.params import WITHOUT_EFFECT, load_params
from reranker.evaluation import metrics
from reranker.inference import fusion
from reranker.inference.backends import use_attention
from reranker.inference.excerpts import with_texts
from reranker.inference.loading import choose_precision, one_output
from reranker.inference.model_cards import model_card
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25
from reranker.training import cross_encoder, examples
from reranker.training.arguments import check_trainer, further
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import build_cross_encoder, tune_cross_encoder
from reranker.training.evaluator import check_evaluators, make_evaluator
from reranker.training.examples import choose_losses, make_lesson
from reranker.training.losses import LOSSES, needs_teacher
from reranker.training.trainer import Schedule, seed_everything

FEATURES = examples.SIGNALS["fused"]
TOLD = (
    "base_model", "start_from_biencoder", "num_layers", "frozen_layers", "lora", "max_length", "loss", "loss_arguments",
    "targets", "teacher", "distillation", "lr", "head_lr", "epochs", "batch_size", "warmup", "weight_decay", "trainer",
    "precision", "seed", "top_k",
)  # fmt: skip
"""Parameters that the model card lists."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    check_trainer(params.trainer)
    check_evaluators(params.evaluators)
    if params.lora:
        cross_encoder.check_lora_installed()
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split", *FEATURES])
    negatives = read_table(PATHS.negatives, ["query_id", "passage_id", "kind", "relevance", *FEATURES])
    require(PATHS.biencoder)
    require(PATHS.static)
    judgments = tables.judgments
    negatives["source"] = negatives["query_id"].map(tables.queries.set_index("query_id")["source"])
    losses = choose_losses(params.loss, params.loss_arguments, sorted(negatives["source"].unique()))
    taught = True in {needs_teacher(loss.name, params.targets, params.distillation) for loss in losses.values()}
    outputs = max(LOSSES[loss.name].outputs for loss in losses.values())

    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)].reset_index(drop=True)
    try:
        without_cross_encoder = fusion.fit_weights(dev, judgments, FEATURES)
    except ValueError as error:
        raise UserError(f"params.yaml: on dev {error}; raise top_k or dev_share") from None
    precision = choose_precision(params.precision)
    seed_everything(params.seed)
    start = str(PATHS.biencoder) if params.start_from_biencoder else resolve(params.base_model)
    model = build_cross_encoder(start, params.max_length, params.frozen_layers, outputs, params.num_layers)
    use_attention(model, params.attention, precision)
    if params.lora:
        cross_encoder.attach_lora(model, params.lora, params.frozen_layers)
    counted = bm25.statistics(tables.passages["text"])
    texts = partial(with_texts, texts=tables, tokenizer=model.tokenizer, max_length=params.max_length, counted=counted)
    dev, negatives = texts(dev), texts(negatives)
    if taught:
        negatives["teacher"] = examples.logits(
            params.teacher,
            negatives,
            dev,
            judgments,
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
    watched, judged = (table[table["query_id"].isin(some)] for table in (dev, judgments))
    evaluator = make_evaluator(params.evaluators, watched, judged, texts, precision)
    about = params.model_dump(exclude={*WITHOUT_EFFECT, "launcher"}), watched, judgments
    kept = Checkpoints(PATHS.checkpoints / "train", params.checkpoint_minutes, about)
    training = time.monotonic()
    curve = tune_cross_encoder(
        model,
        lesson.data,
        lesson.loss,
        schedule,
        evaluator=evaluator,
        evaluations=params.evaluations,
        patience=params.patience,
        head_lr=params.head_lr,
        label="train",
        others=evaluator.others,
        further=further(params.trainer, "train"),
        kept=kept,
    )
    if params.lora:
        cross_encoder.merge_lora(model)
    if outputs > 1:
        model = one_output(model)
    training = time.monotonic() - training
    if not first_process():
        return "train: the first process writes the result"

    dev["cross_encoder"] = score_pairs(
        model, dev["query"].tolist(), dev["text"].tolist(), label="train: fusion", precision=precision
    )
    weights = {
        "reranker": fusion.fit_weights(dev, judgments, [*FEATURES, "cross_encoder"]),
        "fusion_without_cross_encoder": without_cross_encoder,
    }
    fused = fusion.cross_validated(dev, judgments, [*FEATURES, "cross_encoder"])
    without = fusion.cross_validated(dev, judgments, FEATURES)
    figures = {
        "pairs": lesson.pairs,
        "groups": lesson.queries,
        "computed_in": precision,
        "learning_rate": curve.peak_lr,
        "steps": curve.steps,
        "final_loss": float(curve.loss["loss"].iloc[-1]),
        "dev_ndcg@10": metrics.mean_ndcg(judgments, dev, fused),
        "dev_ndcg@10_cross_encoder": metrics.mean_ndcg(judgments, dev, dev["cross_encoder"]),
        "dev_ndcg@10_fusion_without_cross_encoder": metrics.mean_ndcg(judgments, dev, without),
        **{f"weight_{feature}": weight for feature, weight in weights["reranker"].items()},
    }
    told = params.model_dump(include=set(TOLD))
    with folder(PATHS.reranker) as part:
        model.save_pretrained(str(part), create_model_card=False)
        shutil.copytree(PATHS.biencoder, part / "biencoder")
        shutil.copytree(PATHS.static, part / "static")
        (part / "words.json").write_text(bm25.dump(counted), encoding="utf-8")
        (part / "fusion.json").write_text(json.dumps(weights, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (part / "README.md").write_text(model_card(params.base_model, told, figures), encoding="utf-8")
    write_csv(curve.loss, PATHS.metrics / "curve_loss.csv")
    write_csv(curve.dev, PATHS.metrics / "curve_dev.csv")
    write_json(figures, PATHS.metrics / "train.json")
    record_time("train_training", training)
    record_time("train", time.monotonic() - started)
    kept.remove()
    return (
        f"train: {figures['pairs']:,} pairs in {training:,.0f} s; NDCG@10 on dev: fused {figures['dev_ndcg@10']:.3f}, "
        f"cross-encoder alone {figures['dev_ndcg@10_cross_encoder']:.3f} -> {PATHS.reranker}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
