"""What both sides of `benchmarks.mining` are asked for, and how they say how long it took."""

import json
import time
from pathlib import Path
from typing import NamedTuple

DEPTH, NEGATIVES = 100, 5
TABLES = ("passages", "queries", "judgments")
SAMPLE = 500
"""Queries whose candidates are kept, for the recall of an index."""


class Moment(NamedTuple):
    """When something happened."""

    clock: float
    """Seconds on the clock."""
    cpu: float
    """Seconds that the processors have spent on this process."""


def now() -> Moment:
    """This moment."""
    return Moment(time.monotonic(), time.process_time())


def since(before: Moment) -> Moment:
    """Seconds that have passed and been spent."""
    return Moment(*(late - early for late, early in zip(now(), before, strict=True)))


def note(out: Path, loaded: Moment) -> None:
    """Write beside a result the seconds since `loaded`, when all was imported, and the peak of memory in MiB.

    The peak is read from Linux's /proc: the one that `os.wait4` gives is never below that of the parent process, which
    has the vectors in memory.
    """
    done = now()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    taken = {
        "seconds": done.clock - loaded.clock,
        "cpu": done.cpu - loaded.cpu,
        "peak": int(status.split("VmHWM:")[1].split()[0]) / 1024,
    }
    out.with_suffix(".json").write_text(json.dumps(taken), encoding="utf-8")


def sample(queries: int) -> slice:
    """Queries over the whole range."""
    return slice(None, None, max(1, queries // SAMPLE))
