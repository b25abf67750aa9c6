"""One training on several processes: which rows each of them sees.

A launcher (torchrun, accelerate) starts the stage so many times and tells each process its number in the environment.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from torch.utils.data import Sampler

from reranker.errors import UserError


def processes() -> int:
    """How many there are: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(batch_size: int) -> int:
    """Rows of a step that each process sees.

    Args:
        batch_size: rows of a step.

    Raises:
        UserError: it cannot be split evenly.
    """
    number = processes()
    if batch_size % number:
        raise UserError(
            f"params.yaml: batch_size: the {batch_size} rows of a step cannot be split evenly among the {number} "
            "processes of launcher; change either"
        )
    return batch_size // number


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Steps that an epoch has; a rest with fewer rows than processes has none of its own, see `SplitBatches`."""
    whole, rest = divmod(rows, batch_size)
    return whole + (rest >= processes() or not whole)


class SplitBatches(Sampler[list[int]]):
    """Batches that are split among processes: of each run of `processes` batches, each process gets one.

    The steps are those of one process with whole batches, every row once an epoch: the samplers of the libraries
    drop the rows of the last step that do not fill it, or repeat others. Where the last step has fewer rows than there
    are processes, the step before it takes them. The gradients of the processes count alike, though one has a row more
    than the other in a last step that cannot be split evenly. The order is that of `accelerate` in one process.

    Args:
        dataset: of the rows.
        batch_size: rows of a pass of one process.
        seed: of the order, which is another one each epoch.
        passes: of each process in a step.

    Raises:
        UserError: there are fewer rows than processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, *, passes: int, **_: object) -> None:
        self._number = processes()
        if len(dataset) < self._number:
            raise UserError(f"params.yaml: launcher: {len(dataset)} rows are too few for {self._number} processes")
        self._rows, self._batch_size, self._seed, self._passes = len(dataset), batch_size, seed, passes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes."""
        self._epoch = epoch

    def _steps(self) -> list[tuple[int, int]]:
        """The rows of each step, and into how many batches it is split."""
        size = self._batch_size * self._number * self._passes
        number = steps_per_epoch(self._rows, size)
        last = self._rows - (number - 1) * size
        # no batch is empty: the last step has fewer passes where it has few rows
        passes = min(self._passes, -(-last // (self._batch_size * self._number)), last // self._number)
        return [(size, self._number * self._passes)] * (number - 1) + [(last, self._number * passes)]

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator)
        start = 0
        for rows, parts in self._steps():
            for part in torch.tensor_split(order[start : start + rows], parts):
                yield part.tolist()
            start += rows

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(parts for _, parts in self._steps())


class SplitSources(Sampler[list[int]]):
    """Batches of one process, each of rows of one source, that are split among processes: each gets a part of each.

    The steps are those of one process. Where the last batch of a source has fewer rows than there are processes, the
    batch before it of that source takes them.

    Args:
        whole: the batches of one process.
        names: of the sources, in the order of their data.

    Raises:
        UserError: a source has fewer rows than there are processes.
    """

    def __init__(self, whole: MultiDatasetDefaultBatchSampler, names: Sequence[str]) -> None:
        self._whole, self._number = whole, processes()
        self._ends = whole.dataset.cumulative_sizes
        for name, start, end in zip(names, [0, *self._ends], self._ends, strict=False):
            if (rows := end - start) < self._number:
                raise UserError(
                    f"params.yaml: launcher: the {rows} rows of '{name}' are too few for {self._number} processes"
                )
        self._length = self._number * len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes."""
        self._whole.set_epoch(epoch)

    def _batches(self) -> list[list[int]]:
        """The batches of the epoch, none with fewer rows than processes."""
        batches: list[list[int]] = []
        latest: dict[int, int] = {}
        for batch in self._whole:
            source = bisect_right(self._ends, batch[0])
            if len(batch) < self._number:
                batches[latest[source]] += batch
            else:
                latest[source] = len(batches)
                batches.append(batch)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch, as each process sees them."""
        for batch in self._batches():
            for part in torch.tensor_split(torch.tensor(batch), self._number):
                yield part.tolist()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length
