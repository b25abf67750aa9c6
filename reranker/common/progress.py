"""What a person sees while a stage works: progress with time left, one closing line, one-line errors."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from reranker.common.errors import UserError

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def first_process() -> bool:
    """Whether this is the first of the processes of a launcher, or alone: it speaks and writes for all."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """A bar on a terminal, a line now and then in a log.

    Args:
        label: what is being done, e.g. `train`.
        total: number of steps.
        unit: what one step is, e.g. `passages`.
        done: steps that an earlier run has done.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit=f" {unit}",
            file=sys.stderr,
            disable=not sys.stderr.isatty() or not first_process(),
            leave=False,
        )
        self._label, self._total, self._unit = label, total, unit
        self._earlier = self._done = done
        self._note = ""
        self._start = self._last_line = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Tell that `steps` more are done; `note` is shown behind the count until there is another."""
        self._done += steps
        self._note = note or self._note
        if not self._bar.disable:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(steps)
        elif self._is_time() and self._earlier < self._done < self._total:
            self._last_line = time.monotonic()
            own = self._done - self._earlier
            left = (self._last_line - self._start) / own * (self._total - self._done)
            behind = f" · {self._note}" if self._note else ""
            done = f"{self._done:,} of {self._total:,} {self._unit}"
            print(f"{self._label}: {done} · {tqdm.format_interval(left)} left{behind}", file=sys.stderr, flush=True)

    def _is_time(self) -> bool:
        return first_process() and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES

    def reach(self, done: int) -> None:
        """Tell that `done` steps are done by now."""
        self.advance(done - self._done)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """A `Progress` that is closed at the end of the block."""
    shown = Progress(label, total, unit)
    try:
        yield shown
    finally:
        shown.close()


def track(items: Iterable[T], label: str, unit: str, total: int) -> Iterator[T]:
    """The items, with progress shown."""
    with progress(label, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()


def quiet_libraries() -> None:
    """Keep the libraries' own bars and notices away and the hubs out of reach, and let none report that it is used.

    Call it before the first import of transformers or datasets: they read these switches on import. A hub is used only
    when the caller's environment says `HF_HUB_OFFLINE=0`.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|sentence_transformers|accelerate)\b")


def run_stage(main: Callable[[Sequence[str]], str], arguments: Sequence[str]) -> int:
    """Run a stage and print the line that says what it made; bad input ends it with one line instead.

    Of several processes, the first one prints what was made, and under torchrun one alone what went wrong.

    Returns:
        The exit status: 0, 1 for bad input, 130 for an interrupt.
    """
    try:
        made = main(arguments)
        if first_process():
            print(made, flush=True)
    except UserError as error:
        _tell_once(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    return 0


def _tell_once(line: str) -> None:
    """Print an error; of the processes of torchrun, which mostly meet it together, the first to come does."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        print(line, file=sys.stderr, flush=True)
        return
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))  # of torchrun, and of this attempt
    if store.add("errors met", 1) == 1:
        print(line, file=sys.stderr, flush=True)
        store.set("error told", "")
    else:
        store.wait(["error told"])  # torchrun ends all processes once one has ended
