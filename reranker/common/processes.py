"""An engine that shares passes through a model among the processes of a launcher. Each process gets all results."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import distributed

from reranker.common.engine import Item, Resource, Result, Work
from reranker.common.errors import UserError, first_line

ROUND = 4
"""Items that each process computes between two exchanges. An exchange costs little, and progress is shown after it."""


class OnProcesses:
    """Computes on the processes that torchrun or accelerate started, all of which make the same calls.

    Each process has a GPU of its own if the machine has GPUs. The passes are those of one process, so the results
    differ at most in rounding, which depends on the number of threads of each process.

    Raises:
        UserError: a machine has more processes than GPUs, or the processes do not find each other.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local_rank >= gpus:
                raise UserError(
                    f"params.yaml: execution.launcher: more processes than the {gpus} GPUs of this machine; start fewer"
                )
            torch.cuda.set_device(local_rank)
        try:
            distributed.init_process_group("gloo")  # the texts and arrays that are exchanged are not on a GPU
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"params.yaml: execution.launcher: its processes do not find each other ({first_line(error)[:100]}); "
                "use torchrun, or python"
            ) from None
        self._number, self._rank = distributed.get_world_size(), distributed.get_rank()

    def map(
        self, work: Work[Resource, Item, Result], resource: Resource, items: Iterable[Item], *, together: int
    ) -> Iterator[Result]:
        """See `reranker.common.engine.Engine`; an error of one process is raised in all."""
        waiting = iter(items)
        while some := list(islice(waiting, ROUND * self._number)):
            # Items are dealt out in turn, because neighbours take about the same time.
            parts = self._exchange(_compute(work, resource, some[self._rank :: self._number]))
            for place in range(len(some)):
                yield parts[place % self._number][place // self._number]

    def _exchange(self, own: list[Any] | UserError) -> list[list[Any]]:
        """Send the own results to the other processes, and return those of each process."""
        parts: list[Any] = [None] * self._number
        distributed.all_gather_object(parts, own)
        for part in parts:
            if isinstance(part, UserError):
                raise part
        return parts


def _compute(work: Work[Resource, Item, Result], resource: Resource, items: list[Item]) -> list[Result] | UserError:
    try:
        return list(work(resource, items))
    except UserError as error:  # it is exchanged like results, because the other processes wait for them
        return error


def processes() -> int:
    """The number of processes that the launcher started, or 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
