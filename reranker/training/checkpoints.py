"""Checkpoints of a training on disk: to which training they belong, whether they are complete, how many are kept.

A checkpoint is the folder that the trainer of transformers writes: weights (safetensors), optimiser, learning rate
schedule, random states and the trainer's own state. It is valid once it contains `MARKER`, which is written last and
holds a hash of every other file. A checkpoint that a process had not finished when it died has no marker.

Nothing is unpickled: the trainer reads optimizer.pt, scheduler.pt and the random states with torch's `weights_only`,
which accepts only tensors and numbers, and its pickled arguments are not even written.
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
NEWEST = 2
"""Number of the newest checkpoints to keep; for each, the one that was best on dev at that time is kept, too."""
ROWS = 1000
"""Rows of a table that are hashed at a time."""
CHUNK = 1 << 20
"""Bytes of a file that are read at a time."""
CODE = ("reranker", "stages", "pairs")
"""Packages whose code is part of the key of a training."""
STATE = "trainer_state.json"


class Checkpoints(NamedTuple):
    """Where the checkpoints of a stage's training are stored, and how often one is written."""

    folder: Path
    """Folder of the stage; in it, each training has a folder that is named by its key."""
    minutes: float | None
    """Minutes between two checkpoints, besides those at evaluations; 0: after each step; None: only at evaluations."""
    identity: tuple[object, ...]
    """Params and tables that decide the result, besides the rows, the initial weights and the code."""

    def remove(self) -> None:
        """Remove all checkpoints, when the training has ended and its result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def folder_of(self, key: str) -> Path:
        """The folder of the training with this key; the folders of other trainings, now useless, are removed.

        Raises:
            UserError: the folder cannot be created.
        """
        path = self.folder / key
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: could not be created ({error.strerror}); free space or change the permissions"
            ) from None
        for other in self.folder.iterdir():
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
        return path


def training_key(*parts: object) -> str:
    """A name for a training, which changes with everything that decides the result.

    Args:
        parts: models (hashed by their weights), data sets and tables (by their rows), and values that JSON can hold.

    Returns:
        Sixteen hexadecimal digits of a hash of the parts, the project's code that is loaded, and the names and
        versions of all installed packages. The hardware is not part of the hash.
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
    # `tolist` turns numbers and arrays of NumPy into Python's
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
    """Mark a checkpoint as complete, once all of its files are on the disk.

    Raises:
        OSError: the marker cannot be written, for instance because the disk is full.
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
    """The damage of a checkpoint in words; empty if the checkpoint is complete."""
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


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=step_of, reverse=True)


def _state(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def _best(checkpoint: Path) -> Iterable[Path]:
    """The checkpoint that was best on dev when this one was written, if there is one."""
    best = _state(checkpoint)["best_model_checkpoint"]
    return [checkpoint.parent / Path(best).name] if best else []


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint from which a training can go on; unusable newer ones are removed.

    The best checkpoint by then must be complete, too, because its weights may be the result. A checkpoint at which
    the training had stopped early is not used, because the trainer would take one more step from it.

    Args:
        folder: folder of the training.

    Returns:
        The checkpoint, None if there is none, and a line for each checkpoint that was removed.
    """
    lines: list[str] = []
    for checkpoint in _newest_first(folder):
        problem = damage(checkpoint)
        if not problem:
            problems = ((best.name, damage(best)) for best in _best(checkpoint))
            problem = "; ".join(f"{name}, the best checkpoint: {reason}" for name, reason in problems if reason)
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
    """Remove all checkpoints but the `NEWEST` ones and those that were best on dev when these were written."""
    checkpoints = [path for path in _newest_first(folder) if (path / MARKER).exists()]
    newest = checkpoints[:NEWEST]
    best = [path for checkpoint in newest for path in _best(checkpoint)]
    for checkpoint in checkpoints:
        if checkpoint not in newest and checkpoint not in best:
            (checkpoint / MARKER).unlink()  # comes first, so that a folder that is half removed is not valid
            shutil.rmtree(checkpoint, ignore_errors=True)
