"""train: fine-tune a cross-encoder on the mined groups and fit the weights of its fusion on dev.

python -m stages.train
"""

import shutil
import sys
import time
from collections.abc import Sequence

from reranker.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

import json

from reranker import fusion, lexical, metrics
from reranker.card import model_card
from reranker.checkpoints import Checkpoints
from reranker.errors import UserError
from reranker.evaluator import DevRanking
from reranker.excerpts import excerpts
from reranker.models import resolve
from reranker.params import load_params
from reranker.records import PATHS, folder, read_table, read_tables, record_time, require, write_csv, write_json
from reranker.rows import training_groups
from reranker.scoring import choose_precision, score_pairs
from reranker.training import (
    LIST_LOSSES,
    Schedule,
    build_cross_encoder,
    group_rows,
    make_loss,
    rows_per_query,
    seed_everything,
    tune_cross_encoder,
)

FEATURES = ("bm25", "static_score", "teacher_score")
TOLD = (
    "base_model", "start_from_biencoder", "frozen_layers", "max_length", "loss", "distillation", "lr", "head_lr",
    "epochs", "batch_size", "warmup", "weight_decay", "precision", "seed", "top_k",
)  # fmt: skip
"""Parameters that the model card lists."""


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split", *FEATURES])
    negatives = read_table(PATHS.negatives, ["query_id", "passage_id", "kind", "relevance", *FEATURES])
    require(PATHS.biencoder)
    require(PATHS.static)
    query_text = tables.queries.set_index("query_id")["text"]
    passage_text = tables.passages.set_index("passage_id")["text"]
    judgments = tables.judgments

    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)].reset_index(drop=True)
    try:
        teacher = fusion.fit_weights(dev, judgments, FEATURES)
    except ValueError as error:
        raise UserError(f"params.yaml: on dev {error}; raise top_k or dev_share") from None
    precision = choose_precision(params.precision)
    seed_everything(params.seed)
    start = str(PATHS.biencoder) if params.start_from_biencoder else resolve(params.base_model)
    model = build_cross_encoder(start, params.max_length, params.frozen_layers)
    counted = lexical.statistics(tables.passages["text"])
    for table in (dev, negatives):
        table["query"] = table["query_id"].map(query_text)
        shown = table["query"].tolist(), table["passage_id"].map(passage_text).tolist()
        table["text"] = excerpts(model.tokenizer, params.max_length, counted, *shown)
    negatives["teacher"] = fusion.fuse(negatives, teacher)
    groups = training_groups(negatives, graded=params.loss in LIST_LOSSES)
    groups = groups.sample(frac=1, random_state=params.seed)

    size = len(groups["passages"].iloc[0])
    loss = make_loss(params.loss, model, distillation=params.distillation, group_size=size)
    schedule = Schedule(
        lr=params.lr,
        epochs=params.epochs,
        batch_size=params.batch_size * rows_per_query(params.loss, size),
        warmup=params.warmup,
        weight_decay=params.weight_decay,
        precision=precision,
        seed=params.seed,
    )
    some = dev["query_id"].drop_duplicates()[: params.eval_queries]
    watched = dev[dev["query_id"].isin(some)]
    evaluator = DevRanking(watched, judgments[judgments["query_id"].isin(some)], precision)
    about = params.model_dump(exclude={"checkpoint_minutes", "launcher"}), watched, judgments
    kept = Checkpoints(PATHS.checkpoints / "train", params.checkpoint_minutes, about)
    training = time.monotonic()
    curve = tune_cross_encoder(
        model,
        group_rows(groups, params.loss),
        loss,
        schedule,
        evaluator=evaluator,
        evaluations=params.evaluations,
        patience=params.patience,
        head_lr=params.head_lr,
        label="train",
        kept=kept,
    )
    training = time.monotonic() - training
    if not first_process():
        return "train: the first process writes the result"

    dev["cross_encoder"] = score_pairs(
        model, dev["query"].tolist(), dev["text"].tolist(), label="train: fusion", precision=precision
    )
    weights = {
        "reranker": fusion.fit_weights(dev, judgments, [*FEATURES, "cross_encoder"]),
        "fusion_without_cross_encoder": teacher,
    }
    fused = fusion.cross_validated(dev, judgments, [*FEATURES, "cross_encoder"])
    without = fusion.cross_validated(dev, judgments, FEATURES)
    figures = {
        "pairs": int(sum(map(len, groups["passages"]))),
        "groups": len(groups),
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
        (part / "words.json").write_text(lexical.dump(counted), encoding="utf-8")
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
