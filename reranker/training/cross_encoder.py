"""Build and fine-tune a cross-encoder, also with frozen layers or low-rank adapters."""

import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel

from reranker.common.errors import UserError
from reranker.common.model_files import check_words, loading
from reranker.common.params import LoraSection
from reranker.common.processes import processes
from reranker.common.progress import first_process
from reranker.inference.loading import (
    check_lengths,
    freeze,
    has_trained_head,
    keep_first_layers,
    one_output,
    two_outputs,
)
from reranker.training.arguments import NOTHING, EvaluateAt, Further, ShowProgress, refusals, training_arguments
from reranker.training.batching import SplitBatches, SplitSources, in_passes
from reranker.training.checkpoints import Checkpoints
from reranker.training.evaluator import EvaluatorSequence
from reranker.training.examples import LossChoice, make_training_data
from reranker.training.losses import LOSSES, needs_teacher
from reranker.training.trainer import (
    Attempt,
    RobustTrainer,
    Schedule,
    fast_on_cpu,
    schedule_arguments,
    train,
    without_dropout,
)

IN_BATCH = (losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss)
"""Losses that take the other rows of a pass as negatives, so that smaller passes would change the loss."""
FLOAT32 = {"dtype": torch.float32}
NEW_HEAD = "head_is_new"
"""Attribute of a model whose head has random weights before the training."""
TRAINED = "trained.safetensors"
"""File of a checkpoint with the weights that are trained beside frozen ones."""
NEVER = 2**31
"""More steps than any training has: the trainer's own interval of evaluations and checkpoints is switched off."""


class Plan(NamedTuple):
    """How a cross-encoder is fine-tuned on mined rows."""

    losses: Mapping[str, LossChoice]
    """See `choose_losses`."""
    targets: str
    """`relevance` or `teacher`."""
    distillation: float
    """Weight of the teacher in group_softmax."""
    schedule: Schedule
    """Its batch size counts queries."""
    head_lr: float
    evaluations: int | Sequence[int]
    patience: int

    @property
    def outputs(self) -> int:
        """Outputs of the model during training: one, or one for each class."""
        return max(LOSSES[loss.name].outputs for loss in self.losses.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss takes the scores of a teacher."""
        return any(needs_teacher(loss.name, self.targets, self.distillation) for loss in self.losses.values())


class Curve(NamedTuple):
    """Measurements of a training; each table has a row for each step with a measurement."""

    loss: pd.DataFrame
    """Columns step, loss: the mean since the previous row."""
    dev: pd.DataFrame
    """Columns step, the evaluator's metric and its other figures on dev."""
    peak_lr: float
    """Learning rate of the optimiser for the body of the model."""
    steps: int
    """Steps of the training: fewer than planned if it stopped early."""


class TrainingResult(NamedTuple):
    """A cross-encoder after its training."""

    model: CrossEncoder
    """The model with one output and with the adapters merged."""
    curve: Curve
    queries: int
    pairs: int
    """Training pairs, with the repeated ones that fill up a group."""
    seconds: float


def build_cross_encoder(
    name: str,
    max_length: int,
    frozen_layers: int = 0,
    outputs: int = 1,
    num_layers: int | None = None,
    layers_key: str = "num_layers",
) -> CrossEncoder:
    """A cross-encoder in float32 without dropout that starts from a model.

    A reranker keeps its head and its pooling. An encoder or a bi-encoder gets mean pooling and a linear layer of
    random weights: such checkpoints were trained with mean pooling over all tokens, so a head on the first token would
    have to learn from nothing. A line says so.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per pair.
        frozen_layers: number of the first layers to freeze, with the embeddings before them; each of them saves two
            thirds of its share of the training time.
        outputs: outputs of the model: one for a score, or one for each class. A head of one output becomes the
            log-odds of two classes; for more classes it is replaced.
        num_layers: number of the first layers to keep; None: all.
        layers_key: the key of params.yaml that gives `num_layers`, for errors.

    Raises:
        UserError: there is no usable model with this name, it has another number of outputs, it has fewer layers or
            reads fewer tokens.
    """
    with loading(name):
        model = _with_own_head(name, outputs) if has_trained_head(name) else None
        new = model is None
        if model is None:
            model = _with_new_head(name, outputs)
        check_words(model)
    check_lengths(model[0], max_length=max_length)
    model.max_seq_length = max_length
    if num_layers is not None:
        keep_first_layers(_body(model), num_layers, layers_key)
    without_dropout(model)
    if frozen_layers:
        freeze(_body(model), frozen_layers)
    if new:
        setattr(model, NEW_HEAD, True)
        if first_process():
            print(f"train: '{name}' has no trained ranking head, so it gets a new one with random weights")
    return model


def _with_own_head(name: str, outputs: int) -> CrossEncoder | None:
    """A reranker with this number of outputs; None if its head is of no use for them.

    Raises:
        UserError: the model has several outputs where one is needed.
    """
    model: CrossEncoder = CrossEncoder(name, model_kwargs=FLOAT32, activation_fn=nn.Identity())
    if isinstance(model[-1], LogitScore):
        return None  # a row of the language model's own table of words
    if model.num_labels == outputs:
        return model
    if outputs > 2:
        return None
    if model.num_labels != 1:
        raise UserError(f"params.yaml: base_model '{name}' has {model.num_labels} outputs; it must have one")
    return two_outputs(model)


def _with_new_head(name: str, outputs: int) -> CrossEncoder:
    transformer = Transformer(name, model_kwargs=FLOAT32)
    size = transformer.get_embedding_dimension()
    head = Dense(size, outputs, activation_function=nn.Identity(), module_output_name="scores")
    model: CrossEncoder = CrossEncoder(modules=[transformer, Pooling(size), head], activation_fn=nn.Identity())
    return model


class _CrossEncoderTrainer(RobustTrainer, CrossEncoderTrainer):
    """Trains a cross-encoder; a single process reduces the padding, see `in_passes`.

    A checkpoint of a model with adapters holds the weights that are trained: the library would write the adapters
    without a head that is part of the body, and load the body from the folder where it once was.
    """

    def compute_loss(self, model: CrossEncoder, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        # DistributedDataParallel does not allow several forward passes before one backward pass
        with in_passes(model) if processes() == 1 else nullcontext():
            return super().compute_loss(model, *arguments, **named)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not _body(self.model)._hf_peft_config_loaded:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: weights.detach() for name, weights in self._trained().items()}, folder / TRAINED)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        file = Path(checkpoint_path) / TRAINED
        if not file.exists():
            super()._load_from_checkpoint(checkpoint_path)
            return
        with torch.no_grad():
            for name, saved in load_file(file).items():
                self._trained()[name].copy_(saved)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weights for name, weights in self.model.named_parameters() if weights.requires_grad}

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, *arguments: Any, **named: Any
    ) -> Any:
        if processes() > 1 and isinstance(self.train_dataset, DatasetDict):
            # SplitSources splits the batches of one process later; the library would drop the last batch of a source
            batch_size, drop_last = batch_size * processes(), False
        return super().get_batch_sampler(dataset, batch_size, drop_last, *arguments, **named)

    def get_multi_dataset_batch_sampler(self, *arguments: Any, **named: Any) -> Any:
        whole: Any = super().get_multi_dataset_batch_sampler(*arguments, **named)
        sources: Any = self.train_dataset
        return SplitSources(whole, list(sources)) if processes() > 1 else whole


def fine_tune(
    model: CrossEncoder,
    negatives: pd.DataFrame,
    plan: Plan,
    evaluator: EvaluatorSequence,
    *,
    label: str,
    further: Further,
    checkpoints: Checkpoints,
) -> TrainingResult:
    """Fine-tune a cross-encoder on mined rows.

    Args:
        model: see `build_cross_encoder`, with adapters or without; changed in place.
        negatives: see `make_training_data`.
        plan: see `Plan`.
        evaluator: see `make_evaluator`.
        label: text before the progress.
        further: see `tune_cross_encoder`.
        checkpoints: see `reranker.training.trainer.train`.

    Raises:
        UserError: see `tune_cross_encoder`.
    """
    started = time.monotonic()
    seed = plan.schedule.seed
    training = make_training_data(
        negatives, model, plan.losses, targets=plan.targets, distillation=plan.distillation, seed=seed
    )
    curve = tune_cross_encoder(
        model,
        training.data,
        training.loss,
        plan.schedule._replace(batch_size=plan.schedule.batch_size * training.rows_per_query),
        evaluator=evaluator,
        evaluations=plan.evaluations,
        patience=plan.patience,
        head_lr=plan.head_lr,
        label=label,
        others=evaluator.others,
        further=further,
        checkpoints=checkpoints,
    )
    if _body(model)._hf_peft_config_loaded:
        merge_lora(model)
    if plan.outputs > 1:
        model = one_output(model)
    return TrainingResult(model, curve, training.queries, training.pairs, time.monotonic() - started)


def tune_cross_encoder(
    model: CrossEncoder,
    data: Dataset | DatasetDict,
    loss: nn.Module | dict[str, nn.Module],
    schedule: Schedule,
    *,
    evaluator: BaseEvaluator,
    evaluations: int | Sequence[int],
    patience: int,
    head_lr: float,
    label: str,
    others: Sequence[str] = (),
    further: Further = NOTHING,
    checkpoints: Checkpoints | None = None,
) -> Curve:
    """Fine-tune a cross-encoder and keep the checkpoint that is best on dev.

    Args:
        model: changed in place; afterwards it has the weights of the best evaluation.
        data: rows in the shape of the loss, or such rows by a name.
        loss: see `reranker.training.losses.make_loss`; by the same names if the data have names.
        schedule: see `Schedule`.
        evaluator: its primary metric on dev decides which checkpoint is best; higher is better.
        evaluations: number of evaluations, spread evenly over the training, or the steps after which they take place,
            from 1; the last evaluation is always at the end.
        patience: evaluations without a gain after which training stops.
        head_lr: learning rate of a new head, whose initial weights are random; a kept one learns as the body does.
        label: text before the progress.
        others: further figures of the evaluator for the curve.
        further: callbacks, and arguments of the trainer that override those that follow from the above.
        checkpoints: see `reranker.training.trainer.train`.

    Raises:
        UserError: the trainer refuses an argument, a step of `evaluations` does not exist, or see
            `reranker.training.trainer.train`.
    """
    model.model_card_data.generate_widget_examples = False
    metric = str(evaluator.primary_metric)
    best_metric = f"eval_{metric}"
    if processes() > 1 and "batch_sampler" in further.arguments:
        raise UserError(
            "params.yaml: trainer: batch_sampler: several processes split the batches themselves; leave it out"
        )
    overrides = dict(further.arguments)
    accumulated = int(overrides.pop("gradient_accumulation_steps", 1))
    head_rate = {r"\b2\.linear\.": head_lr} if getattr(model, NEW_HEAD, False) else {}

    def build(attempt: Attempt) -> _CrossEncoderTrainer:
        defaults = {
            "eval_strategy": "steps",
            "eval_steps": NEVER,
            "save_strategy": "steps",
            "save_steps": NEVER,
            "load_best_model_at_end": True,
            "metric_for_best_model": best_metric,
            "greater_is_better": True,
            "learning_rate_mapping": head_rate,
            **schedule_arguments(schedule, attempt._replace(passes=attempt.passes * accumulated)),
        }
        if processes() > 1 and not isinstance(data, DatasetDict):
            defaults["batch_sampler"] = functools.partial(SplitBatches, passes=attempt.passes * accumulated)
        arguments = training_arguments(defaults, overrides)
        with refusals(further.arguments, (ImportError, ValueError)):
            return _CrossEncoderTrainer(
                model=model,
                args=arguments,
                train_dataset=data,
                loss=loss,
                evaluator=evaluator,
                callbacks=[
                    ShowProgress(label, metric),
                    EvaluateAt(evaluations),
                    EarlyStoppingCallback(patience),
                    *further.callbacks,
                ],
            )

    settings = schedule, evaluations, patience, head_rate, dict(further.arguments)
    in_batch = any(isinstance(each, IN_BATCH) for each in (loss.values() if isinstance(loss, dict) else [loss]))
    with fast_on_cpu(), refusals(further.arguments, (ImportError,)):  # an optimiser may need a package
        trainer = train(
            build,
            model,
            data,
            schedule.batch_size,
            settings=settings,
            label=label,
            checkpoints=checkpoints,
            split=not in_batch,
        )
    scheduler: Any = trainer.lr_scheduler
    history = trainer.state.log_history
    figures = [metric, *others]
    dev = [(entry["step"], *(entry[f"eval_{name}"] for name in figures)) for entry in history if best_metric in entry]
    return Curve(
        pd.DataFrame(
            [(entry["step"], entry["loss"]) for entry in history if "loss" in entry], columns=["step", "loss"]
        ),
        pd.DataFrame(dev, columns=["step", *figures]),
        float(getattr(scheduler, "base_lrs", [schedule.lr])[0]),  # reduce_lr_on_plateau has no `base_lrs`
        trainer.state.global_step,
    )


def attach_lora(model: CrossEncoder, settings: LoraSection, frozen_layers: int) -> None:
    """Add low-rank adapters to the body (Hu et al., ICLR 2022); from then on only they and the head are trained.

    A head that is part of the transformer, as that of a classifier of sequences is, gets no adapters.

    Args:
        model: see `build_cross_encoder`; changed in place.
        settings: the arguments of peft's LoraConfig; without `target_modules`, peft takes those that it knows.
        frozen_layers: number of the first layers whose adapters stay zero.

    Raises:
        UserError: peft is not installed, or it refuses the settings.
    """
    check_lora_installed()
    from peft import LoraConfig

    body = _body(model)
    inner = {*body.base_model.modules()}
    linears = [name for name, part in body.named_modules() if isinstance(part, nn.Linear) and part not in inner]
    head = {*body.parameters()} - {*body.base_model.parameters()}
    try:
        model.add_adapter(LoraConfig(**settings.model_dump(), exclude_modules=linears or None))
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: lora: {' '.join(str(error).split())}") from None
    for weights in head:
        weights.requires_grad_(True)
    if frozen_layers:
        freeze(body, frozen_layers)


def _body(model: CrossEncoder) -> PreTrainedModel:
    body = model.transformers_model
    if body is None:
        raise TypeError("the model has no transformer")
    return body


def check_lora_installed() -> None:
    """Check that peft is installed.

    Raises:
        UserError: peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("params.yaml: lora: peft is not installed; run `.venv/bin/pip install peft`") from None


def merge_lora(model: CrossEncoder) -> None:
    """Add the adapters to the weights of the body and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = _body(model)
    adapters = [(name, part) for name, part in body.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in adapters:
        part.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        base: nn.Module = part.get_base_layer()
        setattr(body.get_submodule(parent), last, base)
    body._hf_peft_config_loaded = False
    del body.peft_config
