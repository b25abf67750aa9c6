"""Robust training: it resumes from a complete checkpoint, stops when it diverges, and adapts to less memory."""

import contextlib
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reranker.common.errors import UserError, printable
from reranker.common.processes import processes
from reranker.common.progress import first_process
from reranker.training.batching import share
from reranker.training.checkpoints import Checkpoints, newest_checkpoint, prune, seal, step_of, training_key
from reranker.training.cpu_kernels import Float32Attention, OneDnnLinears

TORCH_FILE = "inline_container"
"""Part of the message of the RuntimeError that torch raises when it cannot write a file."""
QUERY_CHARACTERS = 60
"""Characters of a query in a message."""
Value = TypeVar("Value")


class Attempt(NamedTuple):
    """Where an attempt at a training writes, and how it splits a step."""

    folder: Path
    rows: int
    """Rows of a pass of one process."""
    passes: int
    """Passes of each process in a step; their gradients are added up."""


class Schedule(NamedTuple):
    """How a model is optimised; `schedule_arguments` turns it into arguments of the trainer."""

    lr: float
    epochs: int
    batch_size: int
    """Rows per step."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    precision: str
    """`float32` or `bfloat16`."""
    seed: int


class _PassTooLarge(Exception):
    """A pass did not fit into memory."""


class RobustTrainer(Trainer):
    """Adds to the trainers of Sentence Transformers complete checkpoints, and errors that name a remedy.

    To resume with the same result to the byte, a checkpoint must also hold the losses that the trainer has added up
    for the next point of the loss curve: they are in curve-N.json, where N is the number of the process.
    """

    label = ""
    """Text before messages."""
    minutes: float | None = None
    """Minutes between checkpoints, see `Checkpoints`."""
    _before_step = torch.tensor(0.0)
    model: Any

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the loss of a pass and add up its gradients.

        Raises:
            UserError: the loss is not finite.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError:
            raise _PassTooLarge from None
        if not torch.isfinite(loss):
            self._diverged(f"the loss is {float(loss)} at step {self.state.global_step + 1}{self._first_query(inputs)}")
        return loss

    def _diverged(self, reason: str) -> None:
        exact = "" if self.args.bf16 is False else ", or set precision: float32"
        raise UserError(f"{self.label}: {reason}; take a lower learning rate{exact}")

    def _first_query(self, inputs: dict[str, Any]) -> str:
        texts = [column[0] for column in inputs.values() if isinstance(column, list) and isinstance(column[0], str)]
        for name, column in inputs.items():
            if name.endswith("input_ids"):
                texts.append(self.model.tokenizer.decode(column[0], skip_special_tokens=True))
        return f", in the batch of '{texts[0][:QUERY_CHARACTERS]}'" if texts else ""

    def check_weights(self) -> None:
        """Check that all weights are finite.

        Raises:
            UserError: a weight is infinite or not a number.
        """
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._diverged(f"the weights of {name} are not finite after step {self.state.global_step}")

    def start_step(self) -> None:
        """Remember the sum of the losses before a step, in case the step fails."""
        self._before_step = self._tr_loss.clone()

    def save_step(self) -> None:
        """Write a checkpoint of the last complete step."""
        self._tr_loss = self._before_step
        self._save_checkpoint(self.model, None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches; the sampler that orders the rows gets the number of the epoch."""
        loader = super().get_train_dataloader()
        if processes() > 1:
            # accelerate's shard does not pass the epoch on, and transformers bypasses it only if no step is skipped
            shard: Any = loader.batch_sampler
            shard.set_epoch = shard.batch_sampler.set_epoch
        return loader

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Sentence Transformers would write the same files in all processes, and also a card and pickled arguments
        if self.args.should_save:
            self.model.save_pretrained(output_dir, create_model_card=False)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            losses = {"sum": float(self._tr_loss), "since": self._globalstep_last_logged}
            (folder / self._losses).write_text(json.dumps(losses), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)
                prune(folder.parent)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and TORCH_FILE not in str(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            reason = getattr(error, "strerror", None) or ("a file ended early" if TORCH_FILE in str(error) else error)
            raise UserError(
                f"{folder}: could not be written ({reason}); free space and start again: "
                "the training goes on from the previous checkpoint"
            ) from None
        self.accelerator.wait_for_everyone()

    @property
    def _losses(self) -> str:
        return f"curve-{self.args.process_index}.json"

    def restore_losses(self, checkpoint: Path) -> None:
        """Restore the losses since the last point of the loss curve."""
        losses = json.loads((checkpoint / self._losses).read_text(encoding="utf-8"))
        self._tr_loss += losses["sum"]
        self._globalstep_last_logged = losses["since"]


class _CheckpointCallback(TrainerCallback):
    """Restores the losses that the trainer does not restore, and asks for a checkpoint when one is due."""

    def __init__(self, trainer: RobustTrainer, start: Path | None) -> None:
        self._trainer, self._start = trainer, start
        self._last = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = time.monotonic()
        if self._start:
            self._trainer.restore_losses(self._start)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.start_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        minutes = self._trainer.minutes
        # all processes write the checkpoint together, so the clock of the first process decides
        if minutes is not None and _of_first_process(time.monotonic() - self._last >= 60 * minutes):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = time.monotonic()


def _of_first_process(value: Value) -> Value:
    """The value of the first process, in all processes."""
    return value if processes() == 1 else broadcast_object_list([value])[0]


def _print(line: str) -> None:
    if first_process():
        print(printable(line), file=sys.stderr, flush=True)


TrainerType = TypeVar("TrainerType", bound=RobustTrainer)


def train(
    build: Callable[[Attempt], TrainerType],
    model: nn.Module,
    data: Dataset,
    batch_size: int,
    *,
    settings: tuple[object, ...],
    label: str,
    checkpoints: Checkpoints | None,
    split: bool = True,
) -> TrainerType:
    """Train, from the last checkpoint if there is one, with as many passes per step as the memory requires.

    If a pass does not fit into memory, training resumes from the last complete step with passes of half the size and
    twice the number, so that a step has the same rows as before. The number of passes is stored with the checkpoints.

    Args:
        build: makes the trainer, each time with the same model.
        model: the model to train; changed in place.
        data: the rows.
        batch_size: rows per step.
        settings: values that decide the result, besides the model, the data and `checkpoints.identity`; JSON can hold
            them.
        label: text before messages.
        checkpoints: where checkpoints are stored; None: nowhere, so that a training that dies starts again.
        split: whether the loss of a step stays the same in several passes.

    Returns:
        The trainer, after training.

    Raises:
        UserError: the training diverges; a row does not fit into memory; a checkpoint cannot be written; the rows
            of a step cannot be split among the processes.
    """
    rows = share(batch_size)
    parts = (settings, batch_size, processes(), data, model)
    with _folder(checkpoints, parts) as folder, _plain_outputs(model):
        while True:
            passes = _passes(folder)
            trainer = build(Attempt(folder, rows // passes, passes))
            trainer.label, trainer.minutes = label, checkpoints.minutes if checkpoints else None
            trainer.remove_callback(PrinterCallback)
            start = _start(folder, label)
            trainer.add_callback(_CheckpointCallback(trainer, start))
            try:
                trainer.train(resume_from_checkpoint=str(start) if start else None)
                trainer.check_weights()
                return trainer
            except torch.OutOfMemoryError:
                raise UserError(f"{label}: out of memory; take a smaller base_model, or bfloat16") from None
            except _PassTooLarge:
                more = _more_passes(rows, passes) if split else None
            # this is outside of the except clause because the error refers to the tensors that did not fit
            if more is None:
                raise UserError(
                    f"{label}: a pass does not fit into memory (rows: {rows // passes}); lower the batch size, the "
                    "length in tokens or the passages of a query, freeze layers, or take bfloat16"
                )
            _prepare(trainer, start, Attempt(folder, rows // more, more))
            del trainer
            gc.collect()
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let the model return dicts: DistributedDataParallel finds no tensors in the BatchEncoding that it returns."""
    hook = model.register_forward_hook(lambda _, inputs, output: dict(output)) if processes() > 1 else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextlib.contextmanager
def _folder(checkpoints: Checkpoints | None, parts: tuple[object, ...]) -> Iterator[Path]:
    """The folder of a training: that of its key among the checkpoints, or a temporary one."""
    if checkpoints:
        yield checkpoints.folder_of(training_key(*checkpoints.identity, *parts))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def _passes(folder: Path) -> int:
    file = folder / "passes"
    return int(file.read_text(encoding="utf-8")) if file.exists() else 1


def _more_passes(rows: int, passes: int) -> int | None:
    """The next number of passes, at least twice as many, that splits the rows evenly; None if there is none."""
    return next((more for more in range(2 * passes, rows + 1) if rows % more == 0), None)


def _prepare(trainer: RobustTrainer, start: Path | None, attempt: Attempt) -> None:
    """Prepare the next attempt, which has more passes."""
    line = f"{trainer.label}: out of memory: now {attempt.rows} rows a pass, {attempt.passes} passes a step"
    part = attempt.folder / "passes.part"
    part.write_text(str(attempt.passes), encoding="utf-8")
    part.replace(attempt.folder / "passes")
    if processes() > 1:
        # the other processes wait for this one in the middle of a step, so the launcher must start all of them again
        raise UserError(f"{line}, when it is started again")
    print(printable(line), file=sys.stderr, flush=True)
    trainer.model.zero_grad(set_to_none=True)
    if trainer.state.global_step > (step_of(start) if start else 0):
        trainer.save_step()


def _start(folder: Path, label: str) -> Path | None:
    """The checkpoint to resume from."""
    checkpoint, lines = newest_checkpoint(folder) if first_process() else (None, [])
    for line in lines:
        _print(f"{label}: {line}")
    checkpoint = _of_first_process(checkpoint)
    if checkpoint:
        _print(f"{label}: goes on from step {step_of(checkpoint):,}")
    return checkpoint


def schedule_arguments(schedule: Schedule, attempt: Attempt) -> dict[str, Any]:
    """The arguments of the trainer that follow from a schedule."""
    arguments = {
        "output_dir": str(attempt.folder),
        "learning_rate": schedule.lr,
        "num_train_epochs": schedule.epochs,
        "per_device_train_batch_size": attempt.rows,
        "gradient_accumulation_steps": attempt.passes,
        "warmup_steps": schedule.warmup,
        "weight_decay": schedule.weight_decay,
        "use_cpu": not torch.cuda.is_available(),  # without it the trainer refuses bfloat16 on a CPU
        "bf16": schedule.precision == "bfloat16",
        "seed": schedule.seed,
        "data_seed": schedule.seed,
        "restore_callback_states_from_checkpoint": True,  # restores the patience that is left
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
    }
    if processes() > 1:
        arguments["ddp_backend"] = "nccl" if torch.cuda.is_available() else "gloo"
    return arguments


@contextmanager
def fast_on_cpu() -> Iterator[None]:
    """A context in which a step is faster on a CPU, with the same mathematics."""
    with OneDnnLinears(), Float32Attention():
        yield


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off.

    A training of some minutes does not overfit enough to need it, and on a CPU it costs a third of the time.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def seed_everything(seed: int) -> None:
    """Seed torch and NumPy; call it before a model is built, because its head is initialised at random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
