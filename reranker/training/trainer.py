"""Trainings that survive: they go on from a whole checkpoint, stop when they diverge, get by with less memory."""

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
from reranker.training import checkpoints
from reranker.training.batching import share
from reranker.training.checkpoints import Checkpoints
from reranker.training.cpu_kernels import Float32Attention, OneDnnLinears

TORCH_FILE = "inline_container"
"""In the message of the RuntimeError that torch raises when it cannot write a file."""
SHOWN = 60
"""Characters of a query in a message."""
Value = TypeVar("Value")


class Place(NamedTuple):
    """Where a training writes, and how a step is split."""

    folder: Path
    rows: int
    """Of a pass of one process."""
    passes: int
    """Of each process in a step; their gradients are added up."""


class Schedule(NamedTuple):
    """How a model is optimised; `schedule_arguments` says which arguments of the trainer these are."""

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


class _PassTooLarge(Exception):
    """A pass did not fit into memory."""


class Surviving(Trainer):
    """What the trainers of Sentence Transformers lack: whole checkpoints, and errors that say what to do.

    To go on with the same bytes, a checkpoint has to hold the losses that the trainer has added up for the next point
    of the loss curve too: they are in curve-N.json, N being the number of the process.
    """

    label = ""
    """Shown before messages."""
    minutes: float | None = None
    """Between checkpoints, see `Checkpoints`."""
    _before_step = torch.tensor(0.0)
    model: Any

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A pass and its gradients.

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

    def _diverged(self, what: str) -> None:
        exact = "" if self.args.bf16 is False else ", or set precision: float32"
        raise UserError(f"{self.label}: {what}; take a lower learning rate{exact}")

    def _first_query(self, inputs: dict[str, Any]) -> str:
        texts = [column[0] for column in inputs.values() if isinstance(column, list) and isinstance(column[0], str)]
        for name, column in inputs.items():
            if name.endswith("input_ids"):
                texts.append(self.model.tokenizer.decode(column[0], skip_special_tokens=True))
        return f", in the batch of '{texts[0][:SHOWN]}'" if texts else ""

    def check_weights(self) -> None:
        """Check that no weight is infinite or no number.

        Raises:
            UserError: one is.
        """
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._diverged(f"the weights of {name} are not finite after step {self.state.global_step}")

    def start_step(self) -> None:
        """Note what a step begins with, should it not end."""
        self._before_step = self._tr_loss.clone()

    def save_step(self) -> None:
        """Write a checkpoint of the last step that ended."""
        self._tr_loss = self._before_step
        self._save_checkpoint(self.model, None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches, with the epoch's number passed on to what orders the rows."""
        loader = super().get_train_dataloader()
        if processes() > 1:
            # accelerate's shard does not pass it on, and transformers passes by the shard only where no step is skipped
            shard: Any = loader.batch_sampler
            shard.set_epoch = shard.batch_sampler.set_epoch
        return loader

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Sentence Transformers lets all processes write the same files, beside them a card and its pickled arguments
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
                checkpoints.seal(folder)
                checkpoints.prune(folder.parent)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and TORCH_FILE not in str(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            reason = getattr(error, "strerror", None) or ("a file ended early" if TORCH_FILE in str(error) else error)
            raise UserError(
                f"{folder}: could not be written ({reason}); free space and start again: "
                "the training goes on from the checkpoint before it"
            ) from None
        self.accelerator.wait_for_everyone()

    @property
    def _losses(self) -> str:
        return f"curve-{self.args.process_index}.json"

    def restore_losses(self, checkpoint: Path) -> None:
        """Take over the losses since the last point of the curve."""
        losses = json.loads((checkpoint / self._losses).read_text(encoding="utf-8"))
        self._tr_loss += losses["sum"]
        self._globalstep_last_logged = losses["since"]


class _Keeper(TrainerCallback):
    """Restores what the trainer does not, and asks for a checkpoint when it is time for one."""

    def __init__(self, trainer: Surviving, start: Path | None) -> None:
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
        # all processes write it together, so the clock of the first decides
        if minutes is not None and _agreed(time.monotonic() - self._last >= 60 * minutes):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = time.monotonic()


def _agreed(value: Value) -> Value:
    """The first process's value, in all of them."""
    return value if processes() == 1 else broadcast_object_list([value])[0]


def _tell(line: str) -> None:
    if first_process():
        print(printable(line), file=sys.stderr, flush=True)


TrainerType = TypeVar("TrainerType", bound=Surviving)


def train(
    build: Callable[[Place], TrainerType],
    model: nn.Module,
    data: Dataset,
    batch_size: int,
    *,
    settings: tuple[object, ...],
    label: str,
    kept: Checkpoints | None,
    split: bool = True,
) -> TrainerType:
    """Train, from the last checkpoint if there is one, with as many passes a step as the memory asks for.

    A pass that does not fit is halved and the passes are doubled, from the last step that ended: a step has the same
    rows as before. How often that was done is kept beside the checkpoints.

    Args:
        build: makes the trainer, each time with the same model.
        model: to be trained; changed in place.
        data: the rows.
        batch_size: rows per step.
        settings: what decides the result beside model, data and what `kept` is about; JSON can hold it.
        label: shown before messages.
        kept: where checkpoints are kept; None: nowhere, a death is the end.
        split: whether a step in several passes means the same.

    Returns:
        The trainer, after training.

    Raises:
        UserError: the training diverges; a row does not fit into memory; a checkpoint cannot be written; the rows
            of a step cannot be split among the processes.
    """
    rows = share(batch_size)
    with _folder(kept, lambda: (settings, batch_size, processes(), data, model)) as folder, _plain_outputs(model):
        while True:
            passes = _passes(folder)
            trainer = build(Place(folder, rows // passes, passes))
            trainer.label, trainer.minutes = label, kept.minutes if kept else None
            trainer.remove_callback(PrinterCallback)
            start = _start(folder, label)
            trainer.add_callback(_Keeper(trainer, start))
            try:
                trainer.train(resume_from_checkpoint=str(start) if start else None)
                trainer.check_weights()
                return trainer
            except torch.OutOfMemoryError:
                raise UserError(f"{label}: out of memory; take a smaller base_model, or bfloat16") from None
            except _PassTooLarge:
                more = _more_passes(rows, passes) if split else None
            # outside of the clause: the error holds the tensors that did not fit
            if more is None:
                raise UserError(
                    f"{label}: a pass of {rows // passes} does not fit into memory; lower the batch size, the length "
                    "in tokens or the passages of a query, freeze layers, or take bfloat16"
                )
            _go_on(trainer, start, Place(folder, rows // more, more))
            del trainer
            gc.collect()
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let the model give dicts: in what the tokenizer makes, torch does not find the weights that processes share."""
    hook = model.register_forward_hook(lambda _, inputs, output: dict(output)) if processes() > 1 else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextlib.contextmanager
def _folder(kept: Checkpoints | None, about: Callable[[], tuple[object, ...]]) -> Iterator[Path]:
    if kept:
        yield kept.place(checkpoints.key(*kept.about, *about()))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def _passes(folder: Path) -> int:
    file = folder / "passes"
    return int(file.read_text(encoding="utf-8")) if file.exists() else 1


def _more_passes(rows: int, passes: int) -> int | None:
    """Twice as many, or where the rows cannot be split so, the next number that splits them; None if there is none."""
    return next((more for more in range(2 * passes, rows + 1) if rows % more == 0), None)


def _go_on(trainer: Surviving, start: Path | None, place: Place) -> None:
    """Prepare the next attempt, which has more passes."""
    line = f"{trainer.label}: out of memory: now {place.rows} rows a pass, {place.passes} passes a step"
    written = place.folder / "passes.part"
    written.write_text(str(place.passes), encoding="utf-8")
    written.replace(place.folder / "passes")
    if processes() > 1:
        # the others wait for this one in the middle of a step: the launcher has to start all of them again
        raise UserError(f"{line}, when it is started again")
    print(printable(line), file=sys.stderr, flush=True)
    trainer.model.zero_grad(set_to_none=True)
    if trainer.state.global_step > (checkpoints.steps(start) if start else 0):
        trainer.save_step()


def _start(folder: Path, label: str) -> Path | None:
    """The checkpoint to go on from."""
    found, lines = checkpoints.newest(folder) if first_process() else (None, [])
    for line in lines:
        _tell(f"{label}: {line}")
    found = _agreed(found)
    if found:
        _tell(f"{label}: goes on from step {checkpoints.steps(found):,}")
    return found


def schedule_arguments(schedule: Schedule, place: Place) -> dict[str, Any]:
    """The arguments of the trainer that follow from a schedule."""
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
def fast_on_cpu() -> Iterator[None]:
    """What makes a step cheaper on a CPU at the same mathematics."""
    with OneDnnLinears(), Float32Attention():
        yield


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off.

    A run of minutes does not overfit enough to need it, and on a CPU it costs a third of the time.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def seed_everything(seed: int) -> None:
    """Seed torch and NumPy; call it before a model is built, for its head is initialised at random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
