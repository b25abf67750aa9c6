"""The cross-encoder that is fine-tuned: the model to start from, frozen layers, low-rank adapters, and its training."""

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder import losses
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel

from reranker.common.errors import UserError
from reranker.common.model_files import check_words, loading
from reranker.common.processes import processes
from reranker.inference.loading import check_lengths, keep_first_layers, layers_of, one_output
from reranker.training.arguments import NOTHING, EvaluateAt, Further, ShowProgress, refusals, training_arguments
from reranker.training.batching import SplitBatches, SplitSources, in_passes
from reranker.training.checkpoints import Checkpoints
from reranker.training.evaluator import InSequence
from reranker.training.examples import Chosen, make_lesson
from reranker.training.losses import LOSSES, needs_teacher
from reranker.training.trainer import (
    Place,
    Schedule,
    Surviving,
    fast_on_cpu,
    schedule_arguments,
    train,
    without_dropout,
)

IN_BATCH = (losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss)
"""Losses for which the other rows of a pass are negatives: with smaller passes they would be others."""
NEVER = 2**31
"""Steps that no training has: evaluations and checkpoints are not every so many steps."""


def freeze(body: PreTrainedModel, number: int) -> None:
    """Let the first so many layers, and the embeddings before them, keep their weights.

    Raises:
        UserError: no layer would be left, or it has no list of layers.
    """
    layers = layers_of(body, "frozen_layers", "0")
    if number >= len(layers):
        raise UserError(f"params.yaml: frozen_layers: {number}: of the model's {len(layers)} layers one must be left")
    trained = set(layers[number:].parameters())
    # weights come in the order in which they are passed through
    for weights in itertools.takewhile(lambda weights: weights not in trained, body.parameters()):
        weights.requires_grad_(False)


class Plan(NamedTuple):
    """How a cross-encoder is fine-tuned on mined rows."""

    losses: Mapping[str, Chosen]
    """See `choose_losses`."""
    targets: str
    """`relevance` or `teacher`."""
    distillation: float
    """Share of the teacher in group_softmax."""
    schedule: Schedule
    """Its batches count queries."""
    head_lr: float
    evaluations: int | Sequence[int]
    patience: int

    @property
    def outputs(self) -> int:
        """Of the model while it is trained: one, or one for each class."""
        return max(LOSSES[loss.name].outputs for loss in self.losses.values())

    @property
    def taught(self) -> bool:
        """Whether a loss takes the scores of a teacher."""
        return any(needs_teacher(loss.name, self.targets, self.distillation) for loss in self.losses.values())


class Curve(NamedTuple):
    """What was measured while training: one row a step in each table."""

    loss: pd.DataFrame
    """Columns step, loss: the mean since the row before."""
    dev: pd.DataFrame
    """Columns step, the evaluator's metric and its other figures: on dev."""
    peak_lr: float
    """Learning rate that the optimiser was given for the body of the model."""
    steps: int
    """That training took; fewer than planned where it stopped early."""


class Tuned(NamedTuple):
    """A cross-encoder after its training."""

    model: CrossEncoder
    """Of one output, with adapters merged."""
    curve: Curve
    queries: int
    pairs: int
    """That it was trained on, with the repeated ones that fill up a group."""
    seconds: float


def build_cross_encoder(
    name: str,
    max_length: int,
    frozen_layers: int = 0,
    outputs: int = 1,
    num_layers: int | None = None,
    layers_key: str = "num_layers",
) -> CrossEncoder:
    """A cross-encoder on a bi-encoder's or language model's weights: mean of the joint tokens, then a linear layer.

    Mean pooling is what the sentence-embedding checkpoints were trained through; a first-token head starts
    cold on them.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per pair.
        frozen_layers: so many of the first layers, and the embeddings before them, keep their weights; each
            saves two thirds of its share of the training time.
        outputs: of the linear layer, one for a score or one for each class.
        num_layers: keep the first so many layers, and no others; None: all.
        layers_key: the key of params.yaml that says so.

    Raises:
        UserError: there is no usable model of that name, it has fewer layers or cannot read so many tokens.
    """
    with loading(name):
        transformer = Transformer(name, max_seq_length=max_length, model_kwargs={"dtype": torch.float32})
        check_words(transformer)
    check_lengths(transformer, max_length=max_length)
    if num_layers is not None:
        keep_first_layers(transformer.model, num_layers, layers_key)
    size = transformer.get_embedding_dimension()
    head = Dense(size, outputs, activation_function=nn.Identity(), module_output_name="scores")
    model: CrossEncoder = CrossEncoder(modules=[transformer, Pooling(size), head], activation_fn=nn.Identity())
    without_dropout(model)
    if frozen_layers:
        freeze(transformer.model, frozen_layers)
    return model


class _CrossEncoderTrainer(Surviving, CrossEncoderTrainer):
    """Trains a cross-encoder; with less padding, see `in_passes`, where it is the only process."""

    def compute_loss(self, model: CrossEncoder, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        # several passes before one backward pass are more than the gradients' exchange among processes allows
        with in_passes(model) if processes() == 1 else nullcontext():
            return super().compute_loss(model, *arguments, **named)

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, *arguments: Any, **named: Any
    ) -> Any:
        if processes() > 1 and isinstance(self.train_dataset, DatasetDict):
            # the batches of a source are those of one process until they are split; with several processes the library
            # would drop the last one
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
    evaluator: InSequence,
    *,
    label: str,
    further: Further,
    kept: Checkpoints,
) -> Tuned:
    """Fine-tune a cross-encoder on mined rows.

    Args:
        model: see `build_cross_encoder`, with adapters or without; changed in place.
        negatives: see `make_lesson`.
        plan: see `Plan`.
        evaluator: see `make_evaluator`.
        label: shown before the progress.
        further: see `tune_cross_encoder`.
        kept: see `reranker.training.trainer.train`.

    Raises:
        UserError: see `tune_cross_encoder`.
    """
    started = time.monotonic()
    seed = plan.schedule.seed
    lesson = make_lesson(negatives, model, plan.losses, targets=plan.targets, distillation=plan.distillation, seed=seed)
    curve = tune_cross_encoder(
        model,
        lesson.data,
        lesson.loss,
        plan.schedule._replace(batch_size=plan.schedule.batch_size * lesson.rows_per_query),
        evaluator=evaluator,
        evaluations=plan.evaluations,
        patience=plan.patience,
        head_lr=plan.head_lr,
        label=label,
        others=evaluator.others,
        further=further,
        kept=kept,
    )
    if _body(model)._hf_peft_config_loaded:
        merge_lora(model)
    if plan.outputs > 1:
        model = one_output(model)
    return Tuned(model, curve, lesson.queries, lesson.pairs, time.monotonic() - started)


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
    kept: Checkpoints | None = None,
) -> Curve:
    """Fine-tune a cross-encoder and keep the checkpoint that is best on dev.

    Args:
        model: changed in place; afterwards it has the weights of the best evaluation.
        data: rows in the shape of the loss, or such rows by a name.
        loss: see `loss_table.make_loss`; by the same names where the data have some.
        schedule: see `Schedule`.
        evaluator: its primary metric on dev tells which checkpoint is best; higher is better.
        evaluations: how many there are during training, evenly spread, or after which steps, from 1; the last
            one is at the end in any case.
        patience: evaluations without a gain after which training stops.
        head_lr: learning rate of the head, which starts from nothing.
        label: shown before the progress.
        others: further figures of the evaluator for the curve.
        further: arguments of the trainer over those that follow from the above, and callbacks.
        kept: see `reranker.training.trainer.train`.

    Raises:
        UserError: the trainer refuses an argument, there is no step after which to evaluate, or see
            `reranker.training.trainer.train`.
    """
    model.model_card_data.generate_widget_examples = False
    metric = str(evaluator.primary_metric)
    watched = f"eval_{metric}"
    if processes() > 1 and "batch_sampler" in further.arguments:
        raise UserError(
            "params.yaml: trainer: batch_sampler: several processes split the batches themselves; leave it out"
        )
    given = dict(further.arguments)
    accumulated = int(given.pop("gradient_accumulation_steps", 1))

    def build(place: Place) -> _CrossEncoderTrainer:
        defaults = {
            "eval_strategy": "steps",
            "eval_steps": NEVER,
            "save_strategy": "steps",
            "save_steps": NEVER,
            "load_best_model_at_end": True,
            "metric_for_best_model": watched,
            "greater_is_better": True,
            "learning_rate_mapping": {r"\b2\.linear\.": head_lr},
            **schedule_arguments(schedule, place._replace(passes=place.passes * accumulated)),
        }
        if processes() > 1 and not isinstance(data, DatasetDict):
            defaults["batch_sampler"] = functools.partial(SplitBatches, passes=place.passes * accumulated)
        arguments = training_arguments(defaults, given)
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

    settings = schedule, evaluations, patience, head_lr, dict(further.arguments)
    in_batch = any(isinstance(each, IN_BATCH) for each in (loss.values() if isinstance(loss, dict) else [loss]))
    with fast_on_cpu(), refusals(further.arguments, (ImportError,)):  # a package that an optimiser needs
        trainer = train(
            build, model, data, schedule.batch_size, settings=settings, label=label, kept=kept, split=not in_batch
        )
    scheduler: Any = trainer.lr_scheduler
    history = trainer.state.log_history
    measured = [metric, *others]
    dev = [(entry["step"], *(entry[f"eval_{name}"] for name in measured)) for entry in history if watched in entry]
    return Curve(
        pd.DataFrame(
            [(entry["step"], entry["loss"]) for entry in history if "loss" in entry], columns=["step", "loss"]
        ),
        pd.DataFrame(dev, columns=["step", *measured]),
        float(getattr(scheduler, "base_lrs", [schedule.lr])[0]),  # reduce_lr_on_plateau does not keep it
        trainer.state.global_step,
    )


class Lora(NamedTuple):
    """The arguments of peft's LoraConfig."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: Any
    """Names of the layers, or a pattern; None: those that peft knows for the architecture."""


def attach_lora(model: CrossEncoder, settings: Lora, frozen_layers: int) -> None:
    """Put low-rank adapters into the body (Hu et al., ICLR 2022); they and the head alone are trained from now on.

    Args:
        model: see `build_cross_encoder`; changed in place.
        settings: see `Lora`.
        frozen_layers: the adapters of the first so many layers stay nought.

    Raises:
        UserError: peft is not installed, or it refuses the settings.
    """
    check_lora_installed()
    from peft import LoraConfig

    try:
        model.add_adapter(LoraConfig(**settings._asdict()))
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: lora: {' '.join(str(error).split())}") from None
    if frozen_layers:
        freeze(_body(model), frozen_layers)


def _body(model: CrossEncoder) -> PreTrainedModel:
    body = model.transformers_model
    if body is None:
        raise TypeError("the model has no transformer")
    return body


def check_lora_installed() -> None:
    """Check that peft is there.

    Raises:
        UserError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("params.yaml: lora: peft is not installed; run `.venv/bin/pip install peft`") from None


def merge_lora(model: CrossEncoder) -> None:
    """Add what the adapters have learned to the weights of the body and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = _body(model)
    adapted = [(name, part) for name, part in body.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in adapted:
        part.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        base: nn.Module = part.get_base_layer()
        setattr(body.get_submodule(parent), last, base)
    body._hf_peft_config_loaded = False
    del body.peft_config
