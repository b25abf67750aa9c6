"""Checkpoints of a training on disk: what they belong to, which of them are whole, which are kept.

A checkpoint is the folder that the trainer of transformers writes: weights (safetensors), optimiser, learning rate
schedule, random states and the trainer's own state. It counts from the moment that `MARKER` is in it, which is written
last and names the bytes of every other file; what a process left half-written when it died has none.

Nothing is unpickled: the trainer reads optimizer.pt, scheduler.pt and the random states with torch's `weights_only`,
which knows tensors and numbers alone; its pickled arguments are not even written.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from torch import nn

from reranker.common.errors import UserError

MARKER = "whole.json"
KEPT = 2
"""Checkpoints that are kept, the newest ones; of each also the one that was best on dev by then."""
ROWS = 1000
"""Rows of a table that are hashed at a time."""
CHUNK = 1 << 20
"""Bytes of a file that are read at a time."""
CODE = ("reranker", "stages", "pairs")
STATE = "trainer_state.json"


class Checkpoints(NamedTuple):
    """Where the checkpoints of a stage's training lie, and when there is one."""

    folder: Path
    """Of the stage; in it, each training has a folder with its key as the name."""
    minutes: float | None
    """Between two of them, beside those at evaluations; 0: after each step; None: at evaluations only."""
    about: tuple[object, ...]
    """What decides the result beside the rows, the weights to start from and the code: params and tables."""

    def remove(self) -> None:
        """Remove them all: the training has ended well and its result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def place(self, key: str) -> Path:
        """The folder of the training with this key; those of others, which nobody will go on with, are removed.

        Raises:
            UserError: the folder cannot be made.
        """
        path = self.folder / key
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: could not be made ({error.strerror}); free space or set its rights") from None
        for other in self.folder.iterdir():
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
        return path


def key(*parts: object) -> str:
    """A name for a training: another one if anything that decides its result is another.

    Args:
        parts: models (their weights count), data sets and tables (their rows), and what JSON can hold.

    Returns:
        Sixteen hexadecimal digits of a hash of the parts, the project's code that is loaded, and the names and
        versions of all installed packages. What the computer is made of is not in it.
    """
    digest = hashlib.sha256()
    for part in (*parts, _code(), _packages()):
        for chunk in _chunks(part):
            digest.update(chunk)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _code() -> dict[str, str]:
    names = {name: getattr(module, "__file__", None) for name, module in sorted(sys.modules.items())}
    names = {name: file for name, file in names.items() if name == "__main__" or name.split(".")[0] in CODE}
    return {name: _digest(Path(file)) for name, file in names.items() if file and Path(file).is_file()}


def _packages() -> list[str]:
    return sorted(path.name for place in sys.path for path in Path(place).glob("*.dist-info"))


def _chunks(part: object) -> Iterator[bytes]:
    if isinstance(part, nn.Module):
        for name, values in sorted(part.state_dict().items()):
            yield f"{name} {values.dtype} {list(values.shape)}".encode()
            yield values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(part, (pd.DataFrame, Dataset)):
        for start in range(0, len(part), ROWS):
            rows: Any = (
                part.iloc[start : start + ROWS] if isinstance(part, pd.DataFrame) else part[start : start + ROWS]
            )
            yield _json({name: list(values) for name, values in rows.items()})
    elif isinstance(part, DatasetDict):
        for name, rows in sorted(part.items()):
            yield str(name).encode()
            yield from _chunks(rows)
    else:
        yield _json(part)


def _json(value: object) -> bytes:
    # numbers and arrays of NumPy know how to become Python's
    return json.dumps(value, sort_keys=True, default=lambda other: other.tolist()).encode()


def _digest(path: Path, *, to_disk: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if to_disk:
            os.fsync(file.fileno())
    return digest.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in sorted(paths.items()) if name != MARKER}


def seal(folder: Path) -> None:
    """Say that a checkpoint is whole, once all of it is on the disk.

    Raises:
        OSError: the disk is full, or another reason not to write.
    """
    digests = {name: _digest(path, to_disk=True) for name, path in _files(folder).items()}
    part = folder.with_name(f".{folder.name}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MARKER)
    for changed in (folder, folder.parent):
        number = os.open(changed, os.O_RDONLY)
        os.fsync(number)
        os.close(number)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint: empty if it is whole."""
    try:
        digests = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        name = Path(error.filename).relative_to(folder).as_posix()
        return "it was not finished" if name == MARKER else f"{name} is missing"
    except (OSError, ValueError, AttributeError):
        return f"{MARKER} is damaged"
    return ""


def steps(checkpoint: Path) -> int:
    """After how many steps it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=steps, reverse=True)


def _state(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def _best(checkpoint: Path) -> Iterable[Path]:
    """The checkpoint that was best on dev by then, if there is one."""
    best = _state(checkpoint)["best_model_checkpoint"]
    return [checkpoint.parent / Path(best).name] if best else []


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint from which a training can go on, the unusable ones after it removed.

    Beside its own files, those of the best one before it must be whole: its weights may be the result. One at which
    the training had stopped early is not gone on from, as the trainer would take a step more.

    Args:
        folder: of the training.

    Returns:
        The checkpoint, None if there is none, and a line for each one that was removed.
    """
    lines: list[str] = []
    for checkpoint in _newest_first(folder):
        problem = damage(checkpoint)
        if not problem:
            problems = ((best.name, damage(best)) for best in _best(checkpoint))
            problem = "; ".join(f"{name}, the best one: {reason}" for name, reason in problems if reason)
        if not problem:
            state = _state(checkpoint)
            stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
            if not stopped or state["global_step"] == state["max_steps"]:
                return checkpoint, lines
            problem = "the training had stopped there"
        lines.append(f"{checkpoint} is not used: {problem}")
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None, lines


def prune(folder: Path) -> None:
    """Remove all checkpoints but the newest ones and those that were best by then."""
    checkpoints = [path for path in _newest_first(folder) if (path / MARKER).exists()]
    kept = checkpoints[:KEPT]
    kept = [*kept, *(best for checkpoint in kept for best in _best(checkpoint))]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            (checkpoint / MARKER).unlink()  # first: a folder that is half removed is not whole
            shutil.rmtree(checkpoint, ignore_errors=True)
