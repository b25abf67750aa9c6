"""How a step is split: into passes of pairs of similar length, and among several processes.

A launcher (torchrun, accelerate) starts the stage so many times and tells each process its number in the environment.
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
"""Tokens that a further pass has to save: it costs time of its own, for one, to add up the gradient of all weights.

On two cores 128 to 512 are equally fast. With 256 the short pairs of the committed params.yaml stay one pass.
"""


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
            raise UserError(
                f"params.yaml: execution.launcher: {len(dataset)} rows are too few for {self._number} processes"
            )
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
                    f"params.yaml: execution.launcher: the {rows} rows of '{name}' are too few for {self._number} "
                    "processes"
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


@contextmanager
def in_passes(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model in training mode reads a batch in passes of similar length where that is cheaper.

    A loss that calls the model gets the scores of the whole batch, with a graph over all passes: its value and its
    gradient are those of one padded pass, up to rounding. Dropout, where there is any, draws other numbers. On a GPU,
    where a pass costs more than padding does, and for inputs that are not padded nothing changes.

    Args:
        model: a cross-encoder; it gives `scores` for tokens with an attention mask.
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
        if before is not None:  # what the trainer wraps the model's own in
            model.forward = before


def split(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The passes that together cost least: each as many tokens as its rows padded to its longest, and PASS_TOKENS.

    Args:
        lengths: tokens of each row.

    Returns:
        Places of the rows of each pass, the shortest rows first; each place once.
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
