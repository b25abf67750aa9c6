"""The fields of CrossEncoderTrainingArguments that params.yaml may give under `trainer`, checked; and the callbacks."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sentence_transformers import CrossEncoderTrainingArguments
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import (
    DVCLiveCallback,
    TensorBoardCallback,
    get_reporting_integration_callbacks,
)

from reranker.common.errors import UserError
from reranker.common.params import CountOrZero
from reranker.common.progress import Progress, first_process
from reranker.common.source_schema import Count

OWNED = {
    "learning_rate": "use lr",
    "learning_rate_mapping": "use head_lr",
    "per_device_train_batch_size": "use batch_size, which counts queries",
    "num_train_epochs": "use epochs",
    "warmup_ratio": "use warmup",
    "resume_from_checkpoint": "the stage decides it",
    "weight_decay": "use weight_decay at the top level",
    "seed": "use seed at the top level",
    "data_seed": "use seed",
    "output_dir": "the model goes to models/reranker",
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "save_only_model",
            "do_eval",
        ),
        "use evaluations, each of which is a checkpoint",
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "the best checkpoint is kept; use evaluators",
    ),
    **dict.fromkeys(("logging_strategy", "logging_steps"), "the loss is logged forty times"),
    **dict.fromkeys(("do_train", "do_predict", "disable_tqdm"), "the stage decides it"),
    "push_to_hub": "the model goes to models/reranker; upload it from there",
    "neftune_noise_alpha": "the trainer cannot reach the embeddings of a cross-encoder",
}
"""Fields that have another place, and which, or none."""
RANGES = {"gradient_accumulation_steps": Count, "dataloader_num_workers": CountOrZero}
"""Types of fields whose range the trainer does not check."""
LOGGED = 40
"""Points of the loss curve."""


class Further(NamedTuple):
    """What params.yaml says beyond its own keys."""

    arguments: Mapping[str, Any] = MappingProxyType({})
    callbacks: Sequence[TrainerCallback] = ()


NOTHING = Further()


def check_trainer(given: Mapping[str, Any]) -> None:
    """Check what `trainer` says: the trainer itself checks no type and guesses no misspelt name.

    Args:
        given: fields of CrossEncoderTrainingArguments by their names.

    Raises:
        UserError: a field is unknown, has another place in params.yaml or a value that is not allowed, or names a
            package that is not installed.
    """
    hints = typing.get_type_hints(CrossEncoderTrainingArguments) | RANGES
    for key, value in given.items():
        if key in OWNED:
            raise UserError(f"params.yaml: trainer: {key}: is not given here; {OWNED[key]}")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            todo = f"did you mean '{near[0]}'?" if near else "see CrossEncoderTrainingArguments"
            raise UserError(f"params.yaml: trainer: unknown key '{key}'; {todo}")
        checked(f"trainer: {key}", value, hints[key])
    training_arguments({"use_cpu": not torch.cuda.is_available(), "eval_strategy": "steps", "eval_steps": 1}, given)
    _reporters(given)


def further(given: Mapping[str, Any], label: str) -> Further:
    """What `trainer` says, as the trainer takes it; reports begin, so call it when all is ready to train.

    TensorBoard's files go to runs/, for the trainer's own folder goes when training ends, unless the environment has
    TENSORBOARD_LOGGING_DIR. DVCLive writes to dvclive/, and leaves dvc.yaml and the experiments alone. Of several
    processes the first reports.

    Args:
        given: see `check_trainer`.
        label: of the training, in the names of its reports: DVCLive begins a folder by emptying it.
    """
    arguments = {key: value for key, value in given.items() if key != "report_to"}
    name = label.replace(" ", "-")
    callbacks: list[TrainerCallback] = []
    for callback in _reporters(given) if first_process() else []:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            from torch.utils.tensorboard import SummaryWriter

            callback = TensorBoardCallback(SummaryWriter(comment=f"-{name}"))  # type: ignore[no-untyped-call]
        if isinstance(callback, DVCLiveCallback):
            from dvclive.live import Live

            live = Live(f"dvclive/{name}", dvcyaml=None, save_dvc_exp=False)
            callbacks.append(_StepsOf(live))
            callback = DVCLiveCallback(live)
        callbacks.append(callback)
    return Further(arguments, callbacks)


class _StepsOf(TrainerCallback):
    """Has DVCLive count the trainer's steps; by itself it counts reports, of which an evaluated step has two."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._live.step = state.global_step


def training_arguments(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> CrossEncoderTrainingArguments:
    """The trainer's arguments: the defaults, `output_dir` among them, and over them what params.yaml says.

    Raises:
        UserError: a value, or two together, that the trainer refuses.
    """
    arguments = {**defaults, **given}
    with refusals(arguments, (TypeError, ValueError, ImportError, RuntimeError, AttributeError)):
        return CrossEncoderTrainingArguments(**arguments)


@contextmanager
def refusals(given: Mapping[str, Any], kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what the trainer raises for a field into one line.

    Args:
        given: see `check_trainer`; without any field an error is none of theirs.
        kinds: of errors.

    Raises:
        UserError: the block raised one of these.
    """
    try:
        yield
    except kinds as error:
        if not given:
            raise
        raise UserError(f"params.yaml: trainer: {' '.join(str(error).split())}") from None


def checked(place: str, value: object, hint: Any) -> Any:
    """A value of params.yaml that has the type it should have.

    Args:
        place: the keys that lead to it.
        value: see above.
        hint: its type, as pydantic reads it.

    Raises:
        UserError: it has another one.
    """
    settings = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(hint, config=settings).validate_python(value)
    except ValidationError as error:
        # of a union, the plainest of its members is told last
        reason = error.errors()[-1]["msg"].removeprefix("Input ")
        raise UserError(f"params.yaml: {place}: {value!r} is not allowed: it {reason}") from None


def _reporters(given: Mapping[str, Any]) -> list[TrainerCallback]:
    with refusals(given, (ImportError, RuntimeError, ValueError)):
        kinds: list[type[TrainerCallback]] = get_reporting_integration_callbacks(given.get("report_to"))  # type: ignore[no-untyped-call]
        return [kind() for kind in kinds]


class EvaluateAt(TrainerCallback):
    """Evaluations, each with a checkpoint: so many or at these steps; the trainer only knows every so many steps.

    How many steps there are the trainer knows best: it counts in accumulation, several data sets and `max_steps`.
    """

    def __init__(self, evaluations: int | Sequence[int]) -> None:
        self._evaluations = evaluations
        self._at: set[int] = set()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Fix the steps; raises UserError for one beyond the last."""
        wanted, last = self._evaluations, state.max_steps
        if isinstance(wanted, int):
            self._at = {round(last * number / wanted) for number in range(1, wanted + 1)}
            return
        if max(wanted) > last:
            raise UserError(f"evaluations: {max(wanted)}: the training has {last} steps; name none beyond the last one")
        self._at = {*wanted, last}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for an evaluation and a checkpoint at these steps."""
        if state.global_step in self._at:
            control.should_evaluate = control.should_save = True


class ShowProgress(TrainerCallback):
    """The trainer's steps as our progress, with the last loss and dev figure."""

    def __init__(self, label: str, metric: str = "") -> None:
        self._label, self._metric = label, metric
        self._shown: Progress | None = None
        self._notes: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to show, and have the loss logged `LOGGED` times."""
        state.logging_steps = max(1, state.max_steps // LOGGED)
        self._shown = Progress(self._label, state.max_steps, "steps", state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Keep the last loss and dev figure."""
        logs: dict[str, float] = others["logs"]
        for key, name in (("loss", "loss"), (f"eval_{self._metric}", f"dev {self._metric}")):
            if key in logs:
                self._notes[name] = f"{name} {float(logs[key]):.3f}"

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show one more step."""
        if self._shown:
            self._shown.advance(note=", ".join(self._notes.values()))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the progress away."""
        if self._shown:
            self._shown.close()
