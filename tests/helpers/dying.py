"""Runs a module in a process that dies by SIGKILL, without a word, at a moment that a test names.

    python -m dying EVENT PATH MODULE

It dies at the first audit event of that name (https://docs.python.org/3/library/audit_events.html) one of whose
arguments is a path with that end. With `write` for EVENT and a number for PATH it dies at that change of the working
directory, counted from 1: a file is opened for writing, or a file or folder made, renamed or removed. A launcher that
starts it again has it live.
"""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an event changes the working directory."""
    if event == "open":
        _, _, flags = arguments
        if not (isinstance(flags, int) and flags & WRITING):
            return False
    elif event not in CHANGES:
        return False
    path = arguments[0]
    return isinstance(path, str | os.PathLike) and Path(path).resolve().is_relative_to(Path.cwd())


def main(event: str, end: str, module: str) -> None:
    counted = itertools.count(1)

    def die_at_change(happened: str, arguments: tuple[object, ...]) -> None:
        if changes(happened, arguments) and next(counted) == int(end):
            os.kill(os.getpid(), signal.SIGKILL)

    def die(happened: str, arguments: tuple[object, ...]) -> None:
        if happened == event and any(
            isinstance(path, str | os.PathLike) and str(path).endswith(end) for path in arguments
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        sys.addaudithook(die_at_change if event == "write" else die)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
