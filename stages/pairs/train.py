"""train: fine-tune a cross-encoder on the labelled pairs, and fit its fusion with the base model on dev.

python -m stages.pairs.train
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import json

import pandas as pd
from datasets import Dataset
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
)
from torch import nn

from reranker.common.artifacts import PAIR_COLUMNS, PATHS, folder, read_table, record_time, write_csv, write_json
from reranker.common.model_files import resolve
from reranker.inference.compute import choose_compute
from reranker.inference.loading import load_biencoder
from reranker.pairs import model as pair_model
from reranker.pairs.params import Task, read_params
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import build_cross_encoder, tune_cross_encoder
from reranker.training.trainer import Schedule, seed_everything


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = read_params(PATHS.pair_params)
    pairs = read_table(PATHS.pairs, PAIR_COLUMNS)
    train, dev = (pairs[pairs["split"] == split] for split in ("train", "dev"))
    classes = sorted(pairs["class"].unique())
    seed_everything(params.seed)
    model = build_cross_encoder(resolve(params.base_model), params.max_length, params.frozen_layers, len(classes))
    by_class = params.task == "class"
    loss = losses.CrossEntropyLoss(model) if by_class else losses.BinaryCrossEntropyLoss(model)
    label = train["label"].astype(int if by_class else float)
    data = Dataset.from_dict({"first": list(train["first"]), "second": list(train["second"]), "label": list(label)})
    compute = choose_compute(params.precision, backend="torch")
    schedule = Schedule(
        lr=params.lr,
        epochs=params.epochs,
        batch_size=params.batch_size,
        warmup=params.warmup,
        weight_decay=params.weight_decay,
        precision=compute.precision,
        seed=params.seed,
    )
    about = params.model_dump(exclude={"checkpoint_minutes"}), dev
    checkpoints = Checkpoints(PATHS.checkpoints / "pairs", params.checkpoint_minutes, about)
    training = time.monotonic()
    curve = tune_cross_encoder(
        model,
        data,
        loss,
        schedule,
        evaluator=_evaluator(params.task, dev),
        evaluations=params.evaluations,
        patience=params.patience,
        head_lr=params.head_lr,
        label="train",
        checkpoints=checkpoints,
    )
    training = time.monotonic() - training
    metric = curve.dev.columns[1]
    best = float(curve.dev[metric].max())
    figures = {"steps": curve.steps, "final_loss": float(curve.loss["loss"].iloc[-1]), f"dev_{metric}": best}
    if not by_class:
        model.activation_fn = nn.Sigmoid()  # scores from 0 to 1, as the labels are
    with folder(PATHS.pair_model) as part:
        model.save_pretrained(str(part))
        if by_class:
            (part / "classes.json").write_text(json.dumps(classes, ensure_ascii=False), encoding="utf-8")
        else:
            base = load_biencoder(resolve(params.base_model), params.max_length)
            base.save_pretrained(str(part / "biencoder"), create_model_card=False)
            features = pair_model.features(model, base, dev["first"].tolist(), dev["second"].tolist(), compute)
            weights = pair_model.fit(params.task, features, dev["label"].to_numpy(float))
            (part / "fusion.json").write_text(pair_model.dump(weights), encoding="utf-8")
            figures |= {f"weight_{name}": weights[name] for name in pair_model.FEATURES}
    write_csv(curve.dev, PATHS.pair_metrics / "curve_dev.csv")
    write_json({"pairs": figures}, PATHS.pair_metrics / "train.json")
    record_time("pairs_train", time.monotonic() - started)
    checkpoints.remove()
    return f"train: {len(train):,} pairs in {training:,.0f} s; {metric} on dev {best:.3f} -> {PATHS.pair_model}"


def _evaluator(task: Task, dev: pd.DataFrame) -> BaseEvaluator:
    texts = dev[["first", "second"]].to_numpy().tolist()
    if task == "score":
        return CrossEncoderCorrelationEvaluator(texts, dev["label"].tolist(), write_csv=False)
    evaluator = CrossEncoderClassificationEvaluator(texts, dev["label"].astype(int).tolist(), write_csv=False)
    evaluator.primary_metric = "f1_macro" if task == "class" else "average_precision"  # it says so only after a call
    return evaluator


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
