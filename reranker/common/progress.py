"""What a stage prints: progress with the time left, one closing line, and errors of one line."""

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
    """Whether this process prints and writes: it is the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


class Progress:
    """Shows a bar on a terminal, and a line now and then in a log.

    Args:
        label: the name of the work, e.g. `train`.
        total: number of steps.
        unit: the plural noun for a step, e.g. `passages`.
        done: number of steps that an earlier run has done.
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
        """Add `steps` to the count. `note` is shown behind the count until another note replaces it."""
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
        """Set the count to `done` steps."""
        self.advance(done - self._done)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """A `Progress` that is closed at the end of the block."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[T], label: str, unit: str, total: int) -> Iterator[T]:
    """Yield the items and show the progress."""
    with progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def quiet_libraries() -> None:
    """Switch off the libraries' own progress bars and notices, their telemetry, and their access to the hubs.

    Call this before the first import of transformers or datasets, which read these switches on import. A hub is used
    only when the caller's environment says `HF_HUB_OFFLINE=0`.
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
    """Run a stage and print the line that says what it made. Bad input ends it with one line instead.

    With several processes, the first prints the closing line. Under torchrun only one process prints an error.

    Returns:
        The exit status: 0, 1 for bad input, 130 for an interrupt.
    """
    try:
        closing_line = main(arguments)
        if first_process():
            print(closing_line, flush=True)
    except UserError as error:
        _print_once(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    return 0


def _print_once(line: str) -> None:
    """Print an error. The processes of torchrun mostly meet it together, and only the first to arrive prints it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        print(line, file=sys.stderr, flush=True)
        return
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))  # torchrun has a store for each of its attempts
    if store.add("errors met", 1) == 1:
        print(line, file=sys.stderr, flush=True)
        store.set("error printed", "")
    else:
        store.wait(["error printed"])  # torchrun ends all processes as soon as one ends
