"""Fine-tuning: models to start from, the order of the rows, the trainers' set-up."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import faiss
import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    DefaultBatchSampler,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder import losses
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import EarlyStoppingCallback

from reranker.attention import Float32Attention
from reranker.callbacks import EvaluateAt, ShowProgress
from reranker.checkpoints import Checkpoints
from reranker.errors import UserError
from reranker.layers import freeze, keep_first, without_dropout
from reranker.losses import InBatchSoftmaxLoss
from reranker.models import check_words, loading
from reranker.onednn import OneDnnLinears
from reranker.passes import in_passes
from reranker.processes import SplitBatches, SplitSources, processes
from reranker.resuming import Place, Surviving, train
from reranker.scoring import check_lengths
from reranker.trainer_arguments import NOTHING, Further, refusals, training_arguments

IN_BATCH = (losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss)
"""Losses for which the other rows of a pass are negatives: with smaller passes they would be others."""
NEVER = 2**31
"""Steps that no training has: evaluations and checkpoints are not every so many steps."""


class Schedule(NamedTuple):
    """How a model is optimised; `_arguments` says which arguments of the trainer these are."""

    lr: float
    epochs: int
    batch_size: int
    """Rows per step."""
    warmup: float
    """Share of the steps."""
    weight_decay: float
    precision: str
    """`float32` or `bfloat16`."""
    seed: int


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


def seed_everything(seed: int) -> None:
    """Seed torch and NumPy; call it before a model is built, for its head is initialised at random."""
    torch.manual_seed(seed)
    np.random.seed(seed)


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
        keep_first(transformer.model, num_layers, layers_key)
    size = transformer.get_embedding_dimension()
    head = Dense(size, outputs, activation_function=nn.Identity(), module_output_name="scores")
    model: CrossEncoder = CrossEncoder(modules=[transformer, Pooling(size), head], activation_fn=nn.Identity())
    without_dropout(model)
    if frozen_layers:
        freeze(transformer.model, frozen_layers)
    return model


def similar_batches(vectors: NDArray[np.float32], batch_size: int, *, seed: int) -> NDArray[np.int64]:
    """An order of the rows in which each run of `batch_size` holds similar rows, the runs themselves shuffled.

    In-batch negatives are then hard at no cost: the topic-aware sampling of Hofstätter et al. (SIGIR 2021).

    Args:
        vectors: one vector per row; shape (rows, dimensions).
        batch_size: rows per batch.
        seed: of the clustering and of the order.

    Returns:
        Positions of the rows, each once.
    """
    generator = np.random.default_rng(seed)
    clusters = max(1, len(vectors) // batch_size)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    kmeans = faiss.Kmeans(vectors.shape[1], clusters, niter=8, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    _, nearest = kmeans.index.search(vectors, 1)
    # clusters that are near on a random line follow each other, so that a batch over two of them stays similar
    assert kmeans.centroids is not None  # noqa: S101 - it has been trained
    along = np.argsort(np.argsort(kmeans.centroids @ generator.standard_normal(vectors.shape[1])))
    order = np.lexsort((generator.random(len(vectors)), along[nearest[:, 0]]))
    # the short batch stays last: before a full one it would shift the borders of all that follow
    full = len(order) // batch_size * batch_size
    batches = order[:full].reshape(-1, batch_size)
    generator.shuffle(batches)
    return np.concatenate([batches.ravel(), order[full:]])


class _InOrder(DefaultBatchSampler):
    """Batches of consecutive rows, in the order of the data set."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> None:
        super().__init__(torch.utils.data.SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


class _BiencoderTrainer(Surviving, SentenceTransformerTrainer):
    """Trains a bi-encoder."""


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


def tune_biencoder(
    model: SentenceTransformer,
    rows: pd.DataFrame,
    schedule: Schedule,
    *,
    scale: float,
    label: str,
    kept: Checkpoints | None = None,
) -> None:
    """Tune a bi-encoder with in-batch negatives, batches being consecutive rows.

    Args:
        model: changed in place.
        rows: columns query, passage, group (rows of one group are not negatives of each other).
        schedule: see `Schedule`.
        scale: factor of the cosines in the loss.
        label: shown before the progress.
        kept: see `reranker.resuming.train`.

    Raises:
        UserError: see `reranker.resuming.train`.
    """
    model.model_card_data.widget = [{}]  # none: they would be computed, with a bar, for a card that is not written
    without_dropout(model)
    data = Dataset.from_dict(
        {"query": list(rows["query"]), "passage": list(rows["passage"]), "label": list(rows["group"])}
    )

    def build(place: Place) -> _BiencoderTrainer:
        return _BiencoderTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                **_arguments(schedule, place) | {"batch_sampler": _InOrder, "save_strategy": "no"}
            ),
            train_dataset=data,
            loss=InBatchSoftmaxLoss(model, scale),
            callbacks=[ShowProgress(label)],
        )

    # the other rows of a pass are the negatives: with smaller ones it would be another loss
    with _fast():
        train(build, model, data, schedule.batch_size, settings=(schedule, scale), label=label, kept=kept, split=False)


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
        kept: see `reranker.resuming.train`.

    Raises:
        UserError: the trainer refuses an argument, there is no step after which to evaluate, or see
            `reranker.resuming.train`.
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
            **_arguments(schedule, place._replace(passes=place.passes * accumulated)),
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
    with _fast(), refusals(further.arguments, (ImportError,)):  # a package that an optimiser needs
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


def _arguments(schedule: Schedule, place: Place) -> dict[str, Any]:
    arguments = {
        "output_dir": str(place.folder),
        "learning_rate": schedule.lr,
        "num_train_epochs": schedule.epochs,
        "per_device_train_batch_size": place.rows,
        "gradient_accumulation_steps": place.passes,
        "warmup_steps": schedule.warmup,
        "weight_decay": schedule.weight_decay,
        "use_cpu": not torch.cuda.is_available(),  # else bfloat16 is refused on a CPU
        "bf16": schedule.precision == "bfloat16",
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
    }
    if processes() > 1:
        arguments["ddp_backend"] = "nccl" if torch.cuda.is_available() else "gloo"
    return arguments


@contextmanager
def _fast() -> Iterator[None]:
    """What makes a step cheaper on a CPU at the same mathematics."""
    with OneDnnLinears(), Float32Attention():
        yield
