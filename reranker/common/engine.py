"""Engines that run passes through a model and searches of an index: in this process, or on a Ray cluster.

Both run the same function on the same passes and return the results in the same order. On machines of one kind the
results are therefore equal to the byte.
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

Resource = TypeVar("Resource")
Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Resource, Iterable[Item]], Iterator[Result]]
"""A function that yields a result for each item with a resource, which is a model or an index. It is defined at the top
of a module, or is a `partial` of such a function, so that it can be sent to another machine."""
AHEAD = 3
"""Tasks that are submitted for each that can run at once, so that no machine waits for this process and few results are
in memory."""
RETRIES = 5
"""The number of times that a task starts again after its machine or process was lost."""
CONNECT_SECONDS = 10
"""Seconds after which an address that does not answer is an error."""


class Engine(Protocol):
    """Runs work on items."""

    def map(
        self, work: Work[Resource, Item, Result], resource: Resource, items: Iterable[Item], *, together: int
    ) -> Iterator[Result]:
        """Yield the results of the items, in the order of the items.

        Args:
            work: see `Work`.
            resource: the model or index; it must not change after this call.
            items: passes of texts, or blocks of queries.
            together: number of items per task; it should make a task take some seconds.

        Raises:
            UserError: the work raised it, or the machines that compute are lost.
        """
        ...


class Local:
    """Computes in this process."""

    def map(
        self, work: Work[Resource, Item, Result], resource: Resource, items: Iterable[Item], *, together: int
    ) -> Iterator[Result]:
        """See `Engine`."""
        return work(resource, items)


LOCAL = Local()


class OnRay:
    """Computes on the Ray cluster at RAY_ADDRESS, which this machine is part of.

    A task consists of some items. It uses as many cores of a machine as this process uses, and a GPU if this process
    has one. The resource is sent to each machine once and stays in the processes there. When a machine is lost, Ray
    starts its tasks again on other machines. Only this process collects the results, so no result appears twice.

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
        if not self._slots():
            needs = f"{self._threads} cores" + " and a GPU" * self._gpus
            raise UserError(
                f"params.yaml: execution.engine: no machine of the Ray cluster has {needs}, which this process uses; "
                "start larger machines, or set OMP_NUM_THREADS"
            )
        remote = ray.remote(
            num_cpus=self._threads, num_gpus=self._gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        self._run: Any = remote(_run)
        self._references: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def map(
        self, work: Work[Resource, Item, Result], resource: Resource, items: Iterable[Item], *, together: int
    ) -> Iterator[Result]:
        """See `Engine`."""
        waiting, tasks = iter(items), deque[Any]()
        while True:
            while len(tasks) < AHEAD * max(1, self._slots()) and (some := list(islice(waiting, together))):
                if resource not in self._references:
                    self._references[resource] = self._ray.put(resource)
                # Ray does not fetch a reference inside a list for each task, so `_fetch` can cache the resource.
                tasks.append(self._run.remote(work, [self._references[resource]], some, self._threads))
            if not tasks:
                return
            yield from self._result(tasks.popleft())

    def _slots(self) -> int:
        """The number of tasks that the machines of the cluster can run at once."""
        machines = [machine["Resources"] for machine in self._ray.nodes() if machine["Alive"]]
        cores = [int(machine.get("CPU", 0)) // self._threads for machine in machines]
        if not self._gpus:
            return sum(cores)
        return sum(min(each, int(machine.get("GPU", 0))) for each, machine in zip(cores, machines, strict=True))

    def _result(self, task: Any) -> list[Any]:
        try:
            results: list[Any] = self._ray.get(task)
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
        return results


def start(name: str) -> Engine:
    """The engine that params.yaml names: `local` or `ray`.

    Raises:
        UserError: see `OnRay`.
    """
    return OnRay() if name == "ray" else LOCAL


def _check_reachable(address: str) -> None:
    """Check that something answers at the address, because Ray itself would wait for minutes."""
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


def _run(work: Work[Any, Any, Any], references: list[Any], items: list[Any], threads: int) -> list[Any]:
    """Run a task in a process of the cluster."""
    torch.set_num_threads(threads)  # before a model arrives, which may be compiled for this number
    return list(work(_fetch(references[0]), items))


@lru_cache(maxsize=1)
def _fetch(reference: Any) -> Any:
    import ray

    return ray.get(reference)
