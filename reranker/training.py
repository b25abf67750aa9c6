"""Fine-tuning: models to start from, rows in the shape that a loss wants, a loss by its name, the trainers' set-up."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import faiss
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
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
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from reranker.checkpoints import Checkpoints
from reranker.errors import UserError
from reranker.losses import GroupSoftmaxLoss, InBatchSoftmaxLoss
from reranker.models import loading
from reranker.processes import SplitBatches, processes, steps_per_epoch
from reranker.progress import Progress
from reranker.resuming import Place, Surviving, train
from reranker.scoring import check_lengths

LIST_LOSSES: dict[str, Callable[[CrossEncoder], nn.Module]] = {
    "lambda": losses.LambdaLoss,
    "list_net": losses.ListNetLoss,
    "list_mle": losses.ListMLELoss,
    "plist_mle": losses.PListMLELoss,
    "rank_net": losses.RankNetLoss,
}
"""Losses of Sentence Transformers that take a query, its passages and the relevance of each."""


LOGGED = 40
"""Points of the loss curve."""


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
    """Columns step and the evaluator's metric: on dev."""
    peak_lr: float
    """Learning rate that the optimiser was given for the body of the model."""
    steps: int
    """That training took; fewer than planned where it stopped early."""


def seed_everything(seed: int) -> None:
    """Seed torch and NumPy; call it before a model is built, for its head is initialised at random."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def build_cross_encoder(name: str, max_length: int, frozen_layers: int = 0, outputs: int = 1) -> CrossEncoder:
    """A cross-encoder on a bi-encoder's or language model's weights: mean of the joint tokens, then a linear layer.

    Mean pooling is what the sentence-embedding checkpoints were trained through; a first-token head starts
    cold on them.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per pair.
        frozen_layers: so many of the first layers, and the embeddings before them, keep their weights; each
            saves two thirds of its share of the training time.
        outputs: of the linear layer, one for a score or one for each class.

    Raises:
        UserError: there is no usable model of that name, it has fewer layers or cannot read so many tokens.
    """
    with loading(name):
        transformer = Transformer(name, max_seq_length=max_length, model_kwargs={"dtype": torch.float32})
    check_lengths(transformer, max_length=max_length)
    size = transformer.get_embedding_dimension()
    head = Dense(size, outputs, activation_function=nn.Identity(), module_output_name="scores")
    model: CrossEncoder = CrossEncoder(modules=[transformer, Pooling(size), head], activation_fn=nn.Identity())
    _without_dropout(model)
    if frozen_layers:
        _freeze(transformer.model, frozen_layers)
    return model


def _freeze(body: PreTrainedModel, number: int) -> None:
    wanted = body.config.num_hidden_layers
    stacks = (part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == wanted)
    layers = next(stacks, None)
    if layers is None:
        raise UserError(
            "params.yaml: frozen_layers: this model has no list of layers, each with its own weights; set 0"
        )
    if number >= len(layers):
        raise UserError(f"params.yaml: frozen_layers: {number}: of the model's {len(layers)} layers one must be left")
    trained = set(layers[number:].parameters())
    # weights come in the order in which they are passed through
    for weights in itertools.takewhile(lambda weights: weights not in trained, body.parameters()):
        weights.requires_grad_(False)


def _without_dropout(model: nn.Module) -> None:
    # a run of minutes does not overfit enough to need it, and on a CPU it costs a third of the time
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


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
    """Trains a cross-encoder."""


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
    _without_dropout(model)
    data = Dataset.from_dict(
        {"query": list(rows["query"]), "passage": list(rows["passage"]), "label": list(rows["group"])}
    )

    def build(place: Place) -> _BiencoderTrainer:
        return _BiencoderTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                **_arguments(len(data), schedule, place) | {"batch_sampler": _InOrder, "save_strategy": "no"}
            ),
            train_dataset=data,
            loss=InBatchSoftmaxLoss(model, scale),
            callbacks=[_ShowProgress(label)],
        )

    # the other rows of a pass are the negatives: with smaller ones it would be another loss
    train(build, model, data, schedule.batch_size, settings=(schedule, scale), label=label, kept=kept, split=False)


def group_rows(groups: pd.DataFrame, loss: str) -> Dataset:
    """Training data in the shape that a loss wants.

    Args:
        groups: columns query, passages (a list, the right one first), relevance and teacher (a number, and a logit, per
            passage).
        loss: a name of params.yaml.

    Returns:
        Pairs with a 0 or 1 for binary_cross_entropy, else lists; the numbers are the teacher's logits for
        group_softmax and relevance for the others.
    """
    if loss == "binary_cross_entropy":
        pairs = [
            (query, passage, float(place == 0))
            for query, passages in zip(groups["query"], groups["passages"], strict=True)
            for place, passage in enumerate(passages)
        ]
        return Dataset.from_pandas(pd.DataFrame(pairs, columns=["query", "passage", "label"]))
    # list_net takes a softmax of the labels: 10 and 0 make the right passage's target nearly 1
    factor = 10.0 if loss == "list_net" else 1.0
    numbers = groups["teacher" if loss == "group_softmax" else "relevance"]
    labels = [[factor * float(number) for number in of_group] for of_group in numbers]
    return Dataset.from_dict(
        {
            "query": list(groups["query"]),
            "passages": [list(passages) for passages in groups["passages"]],
            "label": labels,
        }
    )


def rows_per_query(loss: str, group_size: int) -> int:
    """Rows of `group_rows` that a query has: its pairs for binary_cross_entropy, else one."""
    return group_size if loss == "binary_cross_entropy" else 1


def make_loss(name: str, model: CrossEncoder, *, distillation: float, group_size: int) -> nn.Module:
    """A loss by its name in params.yaml.

    Args:
        name: `group_softmax`, `binary_cross_entropy` or one of `LIST_LOSSES`.
        model: to be trained.
        distillation: weight of the teacher in group_softmax.
        group_size: passages per query; the weight of the right ones in binary_cross_entropy balances the others.
    """
    if name == "group_softmax":
        return GroupSoftmaxLoss(model, distillation)
    if name == "binary_cross_entropy":
        return losses.BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(group_size - 1)))
    return LIST_LOSSES[name](model)


def tune_cross_encoder(
    model: CrossEncoder,
    data: Dataset,
    loss: nn.Module,
    schedule: Schedule,
    *,
    evaluator: BaseEvaluator,
    evaluations: int,
    patience: int,
    head_lr: float,
    label: str,
    kept: Checkpoints | None = None,
) -> Curve:
    """Fine-tune a cross-encoder and keep the checkpoint that is best on dev.

    Args:
        model: changed in place; afterwards it has the weights of the best evaluation.
        data: rows in the shape of the loss.
        loss: see `make_loss`.
        schedule: see `Schedule`.
        evaluator: its primary metric on dev tells which checkpoint is best; higher is better.
        evaluations: how many there are during training, evenly spread, the last one at the end.
        patience: evaluations without a gain after which training stops.
        head_lr: learning rate of the head, which starts from nothing.
        label: shown before the progress.
        kept: see `reranker.resuming.train`.

    Raises:
        UserError: see `reranker.resuming.train`.
    """
    model.model_card_data.generate_widget_examples = False
    steps = _steps(len(data), schedule)
    metric = str(evaluator.primary_metric)
    watched = f"eval_{metric}"

    def build(place: Place) -> _CrossEncoderTrainer:
        arguments = CrossEncoderTrainingArguments(
            eval_strategy="steps",
            eval_steps=steps,
            save_strategy="steps",
            save_steps=steps,
            load_best_model_at_end=True,
            metric_for_best_model=watched,
            greater_is_better=True,
            learning_rate_mapping={r"\b2\.linear\.": head_lr},
            **_arguments(len(data), schedule, place),
        )
        return _CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=loss,
            evaluator=evaluator,
            callbacks=[
                _ShowProgress(label, metric),
                _EvenlySpread(steps, evaluations),
                EarlyStoppingCallback(patience),
            ],
        )

    settings = schedule, evaluations, patience, head_lr
    trainer = train(build, model, data, schedule.batch_size, settings=settings, label=label, kept=kept)
    assert trainer.lr_scheduler is not None  # noqa: S101 - it has trained
    history = trainer.state.log_history
    dev = [(entry["step"], entry[watched]) for entry in history if watched in entry]
    return Curve(
        pd.DataFrame(
            [(entry["step"], entry["loss"]) for entry in history if "loss" in entry], columns=["step", "loss"]
        ),
        pd.DataFrame(dev, columns=["step", metric]),
        float(trainer.lr_scheduler.base_lrs[0]),
        trainer.state.global_step,
    )


def _steps(rows: int, schedule: Schedule) -> int:
    return schedule.epochs * steps_per_epoch(rows, schedule.batch_size)


def _arguments(rows: int, schedule: Schedule, place: Place) -> dict[str, Any]:
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
        "logging_steps": max(1, _steps(rows, schedule) // LOGGED),
        "restore_callback_states_from_checkpoint": True,  # the patience that is left
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
    }
    if processes() > 1:
        arguments["batch_sampler"] = functools.partial(SplitBatches, passes=place.passes)
        arguments["ddp_backend"] = "nccl" if torch.cuda.is_available() else "gloo"
    return arguments


class _EvenlySpread(TrainerCallback):
    """So many evaluations, each with a checkpoint; the trainer itself only knows every so many steps."""

    def __init__(self, steps: int, evaluations: int) -> None:
        self._at = {round(steps * number / evaluations) for number in range(1, evaluations + 1)}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step in self._at:
            control.should_evaluate = control.should_save = True


class _ShowProgress(TrainerCallback):
    """The trainer's steps as our progress, with the last loss and dev figure."""

    def __init__(self, label: str, metric: str = "") -> None:
        self._label, self._metric = label, metric
        self._shown: Progress | None = None
        self._notes: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._shown = Progress(self._label, state.max_steps, "steps", state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        logs: dict[str, float] = others["logs"]
        for key, name in (("loss", "loss"), (f"eval_{self._metric}", f"dev {self._metric}")):
            if key in logs:
                self._notes[name] = f"{name} {float(logs[key]):.3f}"

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._shown:
            self._shown.advance(note=", ".join(self._notes.values()))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._shown:
            self._shown.close()
