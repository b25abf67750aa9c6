"""train: fine-tune a cross-encoder on the mined groups and fit the weights of its fusion on dev.

With --student N, this is the stage students of compare/: it trains a cross-encoder of the first N layers, to show how
quality depends on size. It learns from the same rows, loss and teacher at the same learning rates, and all its layers
are trained.

    python -m stages.train [--student N]
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

from reranker.common.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from reranker.common.artifacts import (
    PATHS,
    SHIPPED,
    WITHOUT,
    Tables,
    folder,
    read_json,
    read_table,
    read_tables,
    record_time,
    require,
    write_csv,
    write_json,
)
from reranker.common.errors import UserError
from reranker.common.model_files import resolve
from reranker.common.params import Params, load_params
from reranker.evaluation import metrics
from reranker.inference import fusion
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.excerpts import with_texts
from reranker.inference.loading import load_cross_encoder
from reranker.inference.model_cards import dev_verdict, model_card
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25
from reranker.training.arguments import check_trainer, further
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import (
    Plan,
    TrainingResult,
    attach_lora,
    build_cross_encoder,
    check_lora_installed,
    fine_tune,
)
from reranker.training.evaluator import check_evaluators, make_evaluator
from reranker.training.examples import choose_losses, logits
from reranker.training.trainer import Schedule, seed_everything

FEATURES = fusion.SIGNALS
CARD_PARAMS = (
    "base_model", "num_layers", "frozen_layers", "lora", "max_length", "loss", "loss_arguments", "targets", "teacher",
    "distillation", "lr", "head_lr", "epochs", "batch_size", "warmup", "weight_decay", "trainer", "seed", "top_k",
)  # fmt: skip
"""Parameters that the model card lists, beside the precision."""


class Inputs(NamedTuple):
    """The inputs of the training of a cross-encoder."""

    tables: Tables
    dev: pd.DataFrame
    """Candidates of the dev queries."""
    negatives: pd.DataFrame
    """Mined passages of the training queries: the relevant ones and the negatives."""
    statistics: bm25.Statistics
    plan: Plan
    compute: Compute


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    layers = _student(arguments)
    params = load_params(PATHS.params)
    check_trainer(params.trainer)
    check_evaluators(params.dev.evaluators)
    stage = f"student_{layers}" if layers else "train"
    line = _train_student(params, layers) if layers else _train_reranker(params)
    if not first_process():
        return f"{stage}: the first process writes the result"
    record_time(stage, time.monotonic() - started)
    return line


def _student(arguments: Sequence[str]) -> int | None:
    """The number of layers of the student to train; None for the reranker."""
    if not arguments:
        return None
    if len(arguments) != 2 or arguments[0] != "--student" or not arguments[1].isdecimal() or not int(arguments[1]):
        raise UserError(f"python -m stages.train: '{' '.join(arguments)}': the only argument is --student LAYERS")
    return int(arguments[1])


def _read(params: Params) -> Inputs:
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split", *FEATURES])
    negatives = read_table(PATHS.negatives, ["query_id", "passage_id", "kind", "relevance", *FEATURES])
    negatives["source"] = negatives["query_id"].map(tables.queries.set_index("query_id")["source"])
    compute = choose_compute(**dict(params.compute))
    schedule = Schedule(
        lr=params.lr,
        epochs=params.epochs,
        batch_size=params.batch_size,
        warmup=params.warmup,
        weight_decay=params.weight_decay,
        precision=compute.precision,
        seed=params.seed,
    )
    plan = Plan(
        losses=choose_losses(params.loss, params.loss_arguments, sorted(negatives["source"].unique())),
        targets=params.targets,
        distillation=params.distillation,
        schedule=schedule,
        head_lr=params.head_lr,
        evaluations=params.dev.evaluations,
        patience=params.dev.patience,
    )
    dev = candidates[(candidates["split"] == "dev") & (candidates["rank"] <= params.top_k)].reset_index(drop=True)
    return Inputs(tables, dev, negatives, bm25.statistics(tables.passages["text"]), plan, compute)


def _model(params: Params, inputs: Inputs, *, frozen: int, layers: int | None, key: str) -> CrossEncoder:
    """The model before training."""
    seed_everything(params.seed)
    model = build_cross_encoder(resolve(params.base_model), params.max_length, frozen, inputs.plan.outputs, layers, key)
    inputs.compute.training().apply(model)
    return model


def _with_texts(params: Params, inputs: Inputs, model: CrossEncoder) -> Inputs:
    """The inputs with the texts that the model reads, and with the teacher's scores if a loss takes them."""
    add_texts = _reader(params, inputs, model)
    dev, negatives = add_texts(inputs.dev), add_texts(inputs.negatives)
    if inputs.plan.needs_teacher:
        negatives["teacher"] = logits(params.teacher, negatives, dev, inputs.tables.judgments, inputs.compute)
    return inputs._replace(dev=dev, negatives=negatives)


def _reader(params: Params, inputs: Inputs, model: CrossEncoder) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A function that adds the texts that the model reads to a table of pairs."""
    return partial(
        with_texts,
        texts=inputs.tables,
        tokenizer=model.tokenizer,
        max_length=params.max_length,
        statistics=inputs.statistics,
    )


def _fine_tune(
    params: Params, inputs: Inputs, model: CrossEncoder, label: str, folder: str
) -> tuple[TrainingResult, Checkpoints]:
    """Fine-tune the model on inputs with texts; the caller removes the checkpoints when the model is saved."""
    some = inputs.dev["query_id"].drop_duplicates()[: params.dev.queries]
    dev, judgments = (table[table["query_id"].isin(some)] for table in (inputs.dev, inputs.tables.judgments))
    add_texts = _reader(params, inputs, model)
    evaluator = make_evaluator(params.dev.evaluators, dev, judgments, add_texts, inputs.compute.training())
    identity = params.with_effect(), dev, inputs.tables.judgments
    checkpoints = Checkpoints(PATHS.checkpoints / folder, params.execution.checkpoint_minutes, identity)
    options = further(params.trainer, label)
    before = evaluator(model)
    result = fine_tune(
        model, inputs.negatives, inputs.plan, evaluator, label=label, further=options, checkpoints=checkpoints
    )
    dev_curve = pd.concat([pd.DataFrame([{"step": 0, **before}]), result.curve.dev], ignore_index=True)
    return result._replace(curve=result.curve._replace(dev=dev_curve)), checkpoints


def _train_student(params: Params, layers: int) -> str:
    inputs = _read(params)
    model = _model(params, inputs, frozen=0, layers=layers, key="student_layers")
    inputs = _with_texts(params, inputs, model)
    result, checkpoints = _fine_tune(params, inputs, model, f"student {layers}", f"student-{layers}")
    target = PATHS.students / str(layers)
    if first_process():
        with folder(target) as part:
            result.model.save_pretrained(str(part), create_model_card=False)
        checkpoints.remove()
    best = result.curve.dev["ndcg@10"].iloc[1:].max()
    return f"student {layers}: NDCG@10 {best:.3f} on {params.dev.queries} dev queries -> {target}"


def _scores_as_served(model: CrossEncoder, pairs: pd.DataFrame, compute: Compute) -> NDArray[np.float64]:
    """Scores of pairs as the saved model computes them, for which the weights of the sum are then right."""
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved, create_model_card=False)
        served = load_cross_encoder(saved, compute=compute)
    return score_pairs(served, pairs["query"].tolist(), pairs["text"].tolist(), label="train: fusion", compute=compute)


def _train_reranker(params: Params) -> str:
    if params.lora:
        check_lora_installed()
    inputs = _read(params)
    require(PATHS.static)
    require(PATHS.biencoder)
    try:
        without_cross_encoder = fusion.fit_weights(inputs.dev, inputs.tables.judgments, FEATURES)
    except ValueError as error:
        raise UserError(f"params.yaml: on dev {error}; raise top_k or prepare.dev_share") from None
    model = _model(params, inputs, frozen=params.frozen_layers, layers=params.num_layers, key="num_layers")
    if params.lora:
        attach_lora(model, params.lora, params.frozen_layers)
    inputs = _with_texts(params, inputs, model)
    result, checkpoints = _fine_tune(params, inputs, model, "train", "train")
    if not first_process():
        return ""

    dev, judgments = inputs.dev, inputs.tables.judgments
    dev["cross_encoder"] = _scores_as_served(result.model, dev, inputs.compute)
    features = [*FEATURES, "cross_encoder"]
    weights = {
        SHIPPED: fusion.fit_weights(dev, judgments, features),
        WITHOUT: without_cross_encoder,
        "retriever": read_json(PATHS.retriever),
    }
    figures: dict[str, float | str] = {
        "pairs": result.pairs,
        "groups": result.queries,
        "computed_in": inputs.compute.precision,
        "learning_rate": result.curve.peak_lr,
        "steps": result.curve.steps,
        "final_loss": float(result.curve.loss["loss"].iloc[-1]),
        "dev_ndcg@10": metrics.mean_ndcg(judgments, dev, fusion.cross_validated(dev, judgments, features)),
        "dev_ndcg@10_before": float(result.curve.dev["ndcg@10"].iloc[0]),
        "dev_ndcg@10_best": float(result.curve.dev["ndcg@10"].iloc[1:].max()),
        "dev_ndcg@10_cross_encoder": metrics.mean_ndcg(judgments, dev, dev["cross_encoder"]),
        "dev_ndcg@10_fusion_without_cross_encoder": metrics.mean_ndcg(
            judgments, dev, fusion.cross_validated(dev, judgments, FEATURES)
        ),
        **{f"weight_{feature}": weight for feature, weight in weights[SHIPPED].items()},
    }
    card_params = params.model_dump(include=set(CARD_PARAMS)) | {"precision": params.compute.precision}
    with folder(PATHS.reranker) as part:
        result.model.save_pretrained(str(part), create_model_card=False)
        shutil.copytree(PATHS.biencoder, part / "biencoder")
        shutil.copytree(PATHS.static, part / "static")
        (part / "words.json").write_text(bm25.dump(inputs.statistics), encoding="utf-8")
        (part / "fusion.json").write_text(json.dumps(weights, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (part / "README.md").write_text(model_card(params.base_model, card_params, figures), encoding="utf-8")
    write_csv(result.curve.loss, PATHS.metrics / "curve_loss.csv")
    write_csv(result.curve.dev, PATHS.metrics / "curve_dev.csv")
    write_json(figures, PATHS.metrics / "train.json")
    record_time("train_training", result.seconds)
    checkpoints.remove()
    return (
        f"train: {result.pairs:,} pairs in {result.seconds:,.0f} s; NDCG@10 on dev: "
        f"fused {figures['dev_ndcg@10']:.3f}, without the cross-encoder "
        f"{figures['dev_ndcg@10_fusion_without_cross_encoder']:.3f}; the cross-encoder alone "
        f"{figures['dev_ndcg@10_cross_encoder']:.3f}. {dev_verdict(figures)} -> {PATHS.reranker}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
