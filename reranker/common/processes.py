"""Passes through a model shared among the processes of a launcher: each computes its part and gets all results."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import distributed

from reranker.common.engine import Found, Held, Item, Work
from reranker.common.errors import UserError, first_line

ROUND = 4
"""Items of each process between two exchanges, which cost little: progress is shown after each."""


class OnProcesses:
    """The processes that torchrun or accelerate started; all of them make the same calls.

    Each has a GPU of its own where there are some. The passes are those of one process, so that the results differ in
    rounding at most: by the number of threads that each process has.

    Raises:
        UserError: a machine has more processes than GPUs, or the processes do not find each other.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if place >= gpus:
                raise UserError(
                    f"params.yaml: execution.launcher: more processes than the {gpus} GPUs of this machine; start fewer"
                )
            torch.cuda.set_device(place)
        try:
            distributed.init_process_group("gloo")  # texts and arrays are exchanged, none of them on a GPU
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"params.yaml: execution.launcher: its processes do not find each other ({first_line(error)[:100]}); "
                "use torchrun, or python"
            ) from None
        self._number, self._place = distributed.get_world_size(), distributed.get_rank()

    def map(
        self, work: Work[Held, Item, Found], held: Held, items: Iterable[Item], *, together: int
    ) -> Iterator[Found]:
        """See `reranker.common.engine.Engine`; an error of one process is raised in all."""
        waiting = iter(items)
        while some := list(islice(waiting, ROUND * self._number)):
            # in turn: neighbours cost alike
            parts = self._exchanged(_computed(work, held, some[self._place :: self._number]))
            for place in range(len(some)):
                yield parts[place % self._number][place // self._number]

    def _exchanged(self, own: list[Any] | UserError) -> list[list[Any]]:
        """What each process has computed."""
        parts: list[Any] = [None] * self._number
        distributed.all_gather_object(parts, own)
        for part in parts:
            if isinstance(part, UserError):
                raise part
        return parts


def _computed(work: Work[Held, Item, Found], held: Held, items: list[Item]) -> list[Found] | UserError:
    try:
        return list(work(held, items))
    except UserError as error:  # the others wait for an answer
        return error


def processes() -> int:
    """How many there are: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
