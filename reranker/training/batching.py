"""Split a training step: into passes of pairs of similar length, and among several processes.

A launcher (torchrun, accelerate) starts several processes of a stage and gives each its number in the environment.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from torch import Tensor, nn
from torch.utils.data import Sampler

from reranker.common.errors import UserError
from reranker.common.processes import processes

PASS_TOKENS = 256
"""Tokens that a further pass must save, because a pass has a fixed cost, such as adding up the gradients.

On two cores 128 to 512 are equally fast. With 256 the short pairs of the committed params.yaml stay one pass.
"""


def share(batch_size: int) -> int:
    """Rows of a step for each process.

    Args:
        batch_size: rows of a step.

    Raises:
        UserError: the rows cannot be split evenly.
    """
    number = processes()
    if batch_size % number:
        raise UserError(
            f"params.yaml: batch_size: the {batch_size} rows of a step cannot be split evenly among the {number} "
            "processes of the launcher; change either"
        )
    return batch_size // number


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Steps of an epoch; a remainder with fewer rows than processes has no step of its own, see `SplitBatches`."""
    whole, rest = divmod(rows, batch_size)
    return whole + (rest >= processes() or not whole)


class SplitBatches(Sampler[list[int]]):
    """Batches that are split among processes: each process gets one of every `processes` consecutive batches.

    The steps are the same as with one process and whole batches, and every row comes once an epoch; the samplers of
    the libraries drop the rows of an incomplete last step, or repeat other rows. If the last step has fewer rows than
    there are processes, the step before it takes them. If the last step cannot be split evenly, the gradients of the
    processes have equal weights although one has a row more. The order is that of `accelerate` in one process.

    Args:
        dataset: the rows.
        batch_size: rows of a pass of one process.
        seed: seed of the order, which changes with each epoch.
        passes: passes of each process in a step.

    Raises:
        UserError: there are fewer rows than processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, *, passes: int, **_: object) -> None:
        self._number = processes()
        if len(dataset) < self._number:
            raise UserError(
                f"params.yaml: execution.launcher: {len(dataset)} rows are too few for {self._number} processes"
            )
        self._rows, self._batch_size, self._seed, self._passes = len(dataset), batch_size, seed, passes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self._epoch = epoch

    def _steps(self) -> list[tuple[int, int]]:
        """The number of rows and the number of batches of each step."""
        size = self._batch_size * self._number * self._passes
        number = steps_per_epoch(self._rows, size)
        last = self._rows - (number - 1) * size
        # the last step has fewer passes if it has few rows, so that no batch is empty
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
    """Batches of rows of one source, of which each process gets a part.

    The steps are the same as with one process. If the last batch of a source has fewer rows than there are processes,
    the previous batch of that source takes them.

    Args:
        whole: the batches for one process.
        names: names of the sources, in the order of their data.

    Raises:
        UserError: a source has fewer rows than there are processes.
    """

    def __init__(self, whole: MultiDatasetDefaultBatchSampler, names: Sequence[str]) -> None:
        self._whole, self._number = whole, processes()
        self._ends = whole.dataset.cumulative_sizes
        for name, start, end in zip(names, [0, *self._ends], self._ends, strict=False):
            if (rows := end - start) < self._number:
                raise UserError(
                    f"params.yaml: execution.launcher: the {rows} rows of '{name}' are too few for {self._number} "
                    "processes"
                )
        self._length = self._number * len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch."""
        self._whole.set_epoch(epoch)

    def _batches(self) -> list[list[int]]:
        """The batches of the epoch; none has fewer rows than there are processes."""
        batches: list[list[int]] = []
        latest: dict[int, int] = {}  # number of the latest batch by source
        for batch in self._whole:
            source = bisect_right(self._ends, batch[0])
            if len(batch) < self._number:
                batches[latest[source]] += batch
            else:
                latest[source] = len(batches)
                batches.append(batch)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        """The parts of the epoch's batches, one process after the other."""
        for batch in self._batches():
            for part in torch.tensor_split(torch.tensor(batch), self._number):
                yield part.tolist()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length


@contextmanager
def in_passes(model: nn.Module) -> Iterator[None]:
    """A context in which a model in training mode reads a batch in passes of similar length where that is cheaper.

    A loss that calls the model gets the scores of the whole batch, with a graph over all passes. Its value and its
    gradient equal those of one padded pass up to rounding, but dropout draws other random numbers. Nothing changes for
    inputs without padding, and on a GPU, where a pass costs more than padding.

    Args:
        model: a cross-encoder that returns `scores` for tokens with an attention mask.
    """
    whole, before = model.forward, vars(model).get("forward")

    def forward(features: dict[str, Any], **others: Any) -> dict[str, Tensor]:
        parts = split(features["attention_mask"].sum(1).numpy()) if model.training and _padded(features) else []
        if len(parts) < 2:
            return cast(dict[str, Tensor], whole(features, **others))
        rows = [torch.from_numpy(part) for part in parts]
        scores = torch.cat([whole(_some(features, some), **others)["scores"] for some in rows])
        return {"scores": scores[torch.cat(rows).argsort()]}

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:  # the trainer had replaced the model's own method
            model.forward = before


def split(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The cheapest split into passes; a pass costs its tokens after padding to its longest row, plus PASS_TOKENS.

    Args:
        lengths: tokens of each row.

    Returns:
        Places of the rows of each pass, the shortest rows first; each place comes once.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    number = len(ordered)
    cost, begin = np.zeros(number + 1), np.zeros(number + 1, dtype=int)
    for end in range(1, number + 1):
        with_last = cost[:end] + ordered[end - 1] * np.arange(end, 0, -1) + PASS_TOKENS
        begin[end] = with_last.argmin()
        cost[end] = with_last[begin[end]]
    parts: list[NDArray[np.int64]] = []
    end = number
    while end:
        parts.append(order[begin[end] : end])
        end = begin[end]
    return parts[::-1]


def _padded(features: dict[str, Any]) -> bool:
    mask = features.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.device.type != "cpu" or mask.all():
        return False
    return all(value.shape == mask.shape for value in features.values() if isinstance(value, Tensor))


def _some(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    columns = features["attention_mask"][rows].any(0)  # padding may be on either side
    return {key: value[rows][:, columns] if isinstance(value, Tensor) else value for key, value in features.items()}
