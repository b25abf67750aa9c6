"""Where passes through a model and searches of an index are computed: in this process, or on a Ray cluster.

Both run the same function on the same passes and give the results in the same order, so that their bytes are the same
on machines of one kind.
"""

import logging
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from reranker.common.errors import UserError, first_line

Held = TypeVar("Held")
Item = TypeVar("Item")
Found = TypeVar("Found")
Work = Callable[[Held, Iterable[Item]], Iterator[Found]]
"""Gives one result for each item by what it holds, a model or an index; a function of a module, or `partial` of one."""
AHEAD = 3
"""Tasks handed out for each that can run at once: none waits for the driver, and its memory holds few results."""
RETRIES = 5
"""Times that a task starts again after its machine or process was lost."""
CONNECT_SECONDS = 10
"""For which an address may not answer."""


class Engine(Protocol):
    """What computes."""

    def map(
        self, work: Work[Held, Item, Found], held: Held, items: Iterable[Item], *, together: int
    ) -> Iterator[Found]:
        """The results of the items, in their order.

        Args:
            work: see `Work`.
            held: does not change any more once it was passed.
            items: passes of texts, or blocks of queries.
            together: items that make a piece of work of some seconds.

        Raises:
            UserError: the work raised it, or what computes is lost.
        """
        ...


class Local:
    """This process."""

    def map(
        self, work: Work[Held, Item, Found], held: Held, items: Iterable[Item], *, together: int
    ) -> Iterator[Found]:
        """See `Engine`."""
        return work(held, items)


LOCAL = Local()


class OnRay:
    """The Ray cluster of RAY_ADDRESS, which this machine is part of.

    A task is some items. It takes as many cores as this process uses, and a GPU if this process has one, of any
    machine. What is held is sent to each machine once and stays in the processes there. Ray starts the tasks of a
    machine that was lost again on others; only this process puts results together, so none is there twice.

    Raises:
        UserError: Ray is not installed, no cluster answers, or none of its machines is large enough.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "params.yaml: execution.engine: Ray is not installed; run `.venv/bin/pip install ray`"
            ) from None
        address = os.environ.get("RAY_ADDRESS", "")
        _check_reachable(address)
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address,
                    runtime_env={"py_modules": [str(Path(__file__).parents[1])]},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise UserError(
                    f"params.yaml: execution.engine: no Ray cluster for the address '{address}' "
                    f"({first_line(error)[:100]}); start it with `ray start --head`, or set RAY_ADDRESS"
                ) from None
        self._ray: Any = ray
        self._threads = torch.get_num_threads()
        self._gpus = int(torch.cuda.is_available())
        if not self._at_once():
            wanted = f"{self._threads} cores" + " and a GPU" * self._gpus
            raise UserError(
                f"params.yaml: execution.engine: no machine of the Ray cluster has {wanted}, as this process uses; "
                "start larger ones, or set OMP_NUM_THREADS"
            )
        needs = ray.remote(
            num_cpus=self._threads, num_gpus=self._gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        self._run: Any = needs(_run)
        self._sent: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def map(
        self, work: Work[Held, Item, Found], held: Held, items: Iterable[Item], *, together: int
    ) -> Iterator[Found]:
        """See `Engine`."""
        waiting, tasks = iter(items), deque[Any]()
        while True:
            while len(tasks) < AHEAD * max(1, self._at_once()) and (some := list(islice(waiting, together))):
                if held not in self._sent:
                    self._sent[held] = self._ray.put(held)
                # in a list: what stands there is not fetched for each task
                tasks.append(self._run.remote(work, [self._sent[held]], some, self._threads))
            if not tasks:
                return
            yield from self._result(tasks.popleft())

    def _at_once(self) -> int:
        """Tasks that the machines of the cluster can run at once."""
        machines = [machine["Resources"] for machine in self._ray.nodes() if machine["Alive"]]
        cores = [int(machine.get("CPU", 0)) // self._threads for machine in machines]
        if not self._gpus:
            return sum(cores)
        return sum(min(each, int(machine.get("GPU", 0))) for each, machine in zip(cores, machines, strict=True))

    def _result(self, task: Any) -> list[Any]:
        try:
            found: list[Any] = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            if isinstance(error.cause, (ImportError, self._ray.exceptions.RaySystemError)):
                raise UserError(
                    "params.yaml: execution.engine: a machine of the Ray cluster cannot run this "
                    f"({first_line(error.cause)}); install the packages of requirements.lock there"
                ) from None
            raise
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"params.yaml: execution.engine: a part of the work was lost {RETRIES + 1} times or the cluster is "
                f"gone ({first_line(error)}); look at the machines' memory with `ray status`, then run this again"
            ) from None
        return found


def start(name: str) -> Engine:
    """The engine by its name in params.yaml: `local` or `ray`.

    Raises:
        UserError: see `OnRay`.
    """
    return OnRay() if name == "ray" else LOCAL


def _check_reachable(address: str) -> None:
    """Check that something answers there: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"params.yaml: execution.engine: RAY_ADDRESS is '{address}'; start a cluster with `ray start --head` and "
            "set RAY_ADDRESS to its HOST:PORT, such as 127.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"params.yaml: execution.engine: no Ray cluster answers at {address} ({error.strerror or error}); "
            "start it with `ray start --head`, or correct RAY_ADDRESS"
        ) from None


def _run(work: Work[Any, Any, Any], held: list[Any], items: list[Any], threads: int) -> list[Any]:
    """A task, in a process of the cluster."""
    torch.set_num_threads(threads)  # also those of a model that is compiled when it arrives
    return list(work(_fetched(held[0]), items))


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Any:
    import ray

    return ray.get(reference)
