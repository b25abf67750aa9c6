"""Runs a module in a process that dies by SIGKILL, without a word, at a moment that a test names.

    python -m dying EVENT PATH MODULE

It dies at the first audit event of that name (https://docs.python.org/3/library/audit_events.html) one of whose
arguments is a path with that end. A launcher that starts it again has it live.
"""

import os
import runpy
import signal
import sys


def main(event: str, end: str, module: str) -> None:
    def die(happened: str, arguments: tuple[object, ...]) -> None:
        if happened == event and any(
            isinstance(path, str | os.PathLike) and str(path).endswith(end) for path in arguments
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        sys.addaudithook(die)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
