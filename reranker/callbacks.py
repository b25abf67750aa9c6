"""What follows a training step by step: when dev is looked at, and what a person sees."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from reranker.errors import UserError
from reranker.progress import Progress

LOGGED = 40
"""Points of the loss curve."""


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
