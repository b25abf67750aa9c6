"""train: fine-tune a cross-encoder on the mined groups and fit the weights of its fusion on dev.

With --students, the stage students: cross-encoders of fewer layers, one for each number of them, to see what size buys.
They learn from the same rows, loss and teacher and at the same rates; all their layers are trained.

    python -m stages.train [--students]
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from reranker.common.progress import first_process, quiet_libraries, run_stage

quiet_libraries()

from typing import NamedTuple

import pandas as pd
from sentence_transformers import CrossEncoder

from reranker.common.artifacts import (
    PATHS,
    Tables,
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
from reranker.common.params import Params, load_params
from reranker.evaluation import metrics
from reranker.inference import fusion
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.excerpts import with_texts
from reranker.inference.model_cards import model_card
from reranker.inference.scoring import score_pairs
from reranker.retrieval import bm25
from reranker.training.arguments import check_trainer, further
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import (
    Lora,
    Plan,
    Tuned,
    attach_lora,
    build_cross_encoder,
    check_lora_installed,
    fine_tune,
)
from reranker.training.evaluator import check_evaluators, make_evaluator
from reranker.training.examples import SIGNALS, choose_losses, logits
from reranker.training.trainer import Schedule, seed_everything

FEATURES = SIGNALS["fused"]
TOLD = (
    "base_model", "start_from_biencoder", "num_layers", "frozen_layers", "lora", "max_length", "loss", "loss_arguments",
    "targets", "teacher", "distillation", "lr", "head_lr", "epochs", "batch_size", "warmup", "weight_decay", "trainer",
    "seed", "top_k",
)  # fmt: skip
"""Parameters that the model card lists, beside the precision."""


class Inputs(NamedTuple):
    """What a cross-encoder is trained with."""

    tables: Tables
    dev: pd.DataFrame
    """Candidates of the dev queries."""
    negatives: pd.DataFrame
    words: bm25.Statistics
    plan: Plan
    compute: Compute


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    students = list(arguments) == ["--students"]
    if arguments and not students:
        raise UserError(f"python -m stages.train: '{' '.join(arguments)}': the only argument is --students")
    params = load_params(PATHS.params)
    check_trainer(params.trainer)
    check_evaluators(params.dev.evaluators)
    stage = "students" if students else "train"
    line = _train_students(params) if students else _train_reranker(params)
    if not first_process():
        return f"{stage}: the first process writes the result"
    record_time(stage, time.monotonic() - started)
    return line


def _read(params: Params) -> Inputs:
    tables = read_tables()
    candidates = read_table(PATHS.candidates, ["query_id", "passage_id", "rank", "split", *FEATURES])
    negatives = read_table(PATHS.negatives, ["query_id", "passage_id", "kind", "relevance", *FEATURES])
    require(PATHS.biencoder)
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
    """The model before its training."""
    start = str(PATHS.biencoder) if params.start_from_biencoder else resolve(params.base_model)
    seed_everything(params.seed)
    model = build_cross_encoder(start, params.max_length, frozen, inputs.plan.outputs, layers, key)
    inputs.compute.training().apply(model)
    return model


def _with_texts(params: Params, inputs: Inputs, model: CrossEncoder) -> Inputs:
    """The same with what the model reads of each pair, and with the teacher's scores where a loss takes them."""
    texts = _reader(params, inputs, model)
    dev, negatives = texts(inputs.dev), texts(inputs.negatives)
    if inputs.plan.taught:
        negatives["teacher"] = logits(params.teacher, negatives, dev, inputs.tables.judgments, inputs.compute)
    return inputs._replace(dev=dev, negatives=negatives)


def _reader(params: Params, inputs: Inputs, model: CrossEncoder) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return partial(
        with_texts,
        texts=inputs.tables,
        tokenizer=model.tokenizer,
        max_length=params.max_length,
        statistics=inputs.words,
    )


def _tuned(params: Params, inputs: Inputs, model: CrossEncoder, label: str, folder: str) -> tuple[Tuned, Checkpoints]:
    """The model after its training on inputs with texts, and its checkpoints, which are of no use once it is saved."""
    some = inputs.dev["query_id"].drop_duplicates()[: params.dev.queries]
    watched, judged = (table[table["query_id"].isin(some)] for table in (inputs.dev, inputs.tables.judgments))
    texts = _reader(params, inputs, model)
    evaluator = make_evaluator(params.dev.evaluators, watched, judged, texts, inputs.compute.training())
    about = params.with_effect(), watched, inputs.tables.judgments
    checkpoints = Checkpoints(PATHS.checkpoints / folder, params.execution.checkpoint_minutes, about)
    options = further(params.trainer, label)
    tuned = fine_tune(model, inputs.negatives, inputs.plan, evaluator, label=label, further=options, kept=checkpoints)
    return tuned, checkpoints


def _train_students(params: Params) -> str:
    inputs = _read(params)
    students: dict[int, CrossEncoder] = {}
    figures = []
    for layers in params.evaluation.student_layers:
        model = _model(params, inputs, frozen=0, layers=layers, key="evaluation.student_layers")
        if not students:  # all read the same, and are taught the same
            inputs = _with_texts(params, inputs, model)
        tuned, checkpoints = _tuned(params, inputs, model, f"student {layers}", f"student-{layers}")
        students[layers] = tuned.model
        if first_process():
            figures.append(f"{layers}: {tuned.curve.dev['ndcg@10'].max():.3f}")
            checkpoints.remove()
    if first_process():
        with folder(PATHS.students) as part:
            for layers, student in students.items():
                student.save_pretrained(str(part / str(layers)), create_model_card=False)
    shown = ", ".join(figures) or "none is asked for"
    return f"students: NDCG@10 on {params.dev.queries} dev queries by layers: {shown} -> {PATHS.students}"


def _train_reranker(params: Params) -> str:
    if params.lora:
        check_lora_installed()
    inputs = _read(params)
    require(PATHS.static)
    try:
        without_cross_encoder = fusion.fit_weights(inputs.dev, inputs.tables.judgments, FEATURES)
    except ValueError as error:
        raise UserError(f"params.yaml: on dev {error}; raise top_k or prepare.dev_share") from None
    model = _model(params, inputs, frozen=params.frozen_layers, layers=params.num_layers, key="num_layers")
    if params.lora:
        attach_lora(model, Lora(**params.lora.model_dump()), params.frozen_layers)
    inputs = _with_texts(params, inputs, model)
    tuned, checkpoints = _tuned(params, inputs, model, "train", "train")
    if not first_process():
        return ""

    dev, judgments = inputs.dev, inputs.tables.judgments
    dev["cross_encoder"] = score_pairs(
        tuned.model,
        dev["query"].tolist(),
        dev["text"].tolist(),
        label="train: fusion",
        compute=inputs.compute.training(),
    )
    every = [*FEATURES, "cross_encoder"]
    weights = {
        "reranker": fusion.fit_weights(dev, judgments, every),
        "fusion_without_cross_encoder": without_cross_encoder,
    }
    figures = {
        "pairs": tuned.pairs,
        "groups": tuned.queries,
        "computed_in": inputs.compute.precision,
        "learning_rate": tuned.curve.peak_lr,
        "steps": tuned.curve.steps,
        "final_loss": float(tuned.curve.loss["loss"].iloc[-1]),
        "dev_ndcg@10": metrics.mean_ndcg(judgments, dev, fusion.cross_validated(dev, judgments, every)),
        "dev_ndcg@10_cross_encoder": metrics.mean_ndcg(judgments, dev, dev["cross_encoder"]),
        "dev_ndcg@10_fusion_without_cross_encoder": metrics.mean_ndcg(
            judgments, dev, fusion.cross_validated(dev, judgments, FEATURES)
        ),
        **{f"weight_{feature}": weight for feature, weight in weights["reranker"].items()},
    }
    told = params.model_dump(include=set(TOLD)) | {"precision": params.compute.precision}
    with folder(PATHS.reranker) as part:
        tuned.model.save_pretrained(str(part), create_model_card=False)
        shutil.copytree(PATHS.biencoder, part / "biencoder")
        shutil.copytree(PATHS.static, part / "static")
        (part / "words.json").write_text(bm25.dump(inputs.words), encoding="utf-8")
        (part / "fusion.json").write_text(json.dumps(weights, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (part / "README.md").write_text(model_card(params.base_model, told, figures), encoding="utf-8")
    write_csv(tuned.curve.loss, PATHS.metrics / "curve_loss.csv")
    write_csv(tuned.curve.dev, PATHS.metrics / "curve_dev.csv")
    write_json(figures, PATHS.metrics / "train.json")
    record_time("train_training", tuned.seconds)
    checkpoints.remove()
    return (
        f"train: {tuned.pairs:,} pairs in {tuned.seconds:,.0f} s; NDCG@10 on dev: fused {figures['dev_ndcg@10']:.3f}, "
        f"cross-encoder alone {figures['dev_ndcg@10_cross_encoder']:.3f} -> {PATHS.reranker}"
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
