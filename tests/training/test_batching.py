"""A training on several processes has the same steps as a training on one process."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    MultiDatasetDefaultBatchSampler,
    ProportionalBatchSampler,
    RoundRobinBatchSampler,
)
from torch.utils.data import ConcatDataset, RandomSampler

from reranker.common.errors import UserError
from reranker.training.batching import SplitBatches, SplitSources, share, steps_per_epoch
from trainable import Trainable

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


def shards(rows: int, batch_size: int, number: int, passes: int, epoch: int = 0) -> list[list[list[int]]]:
    """The batches that each process gets."""
    data = Dataset.from_dict({"row": range(rows)})
    sampler = SplitBatches(data, batch_size // number // passes, 3, passes=passes)
    sampler.set_epoch(epoch)
    actual = []
    for process in range(number):
        shard = BatchSamplerShard(sampler, number, process, even_batches=False)
        actual.append([*shard])
        assert len(actual[-1]) == len(shard)
    return actual


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [4, 5, 24, 25, 26, 27, 40, 47, 48, 49])
def test_every_process_takes_the_same_steps_and_every_row_is_seen_once(
    monkeypatch, rows: int, number: int, passes: int
):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    batch_size = 4 * number * passes
    actual = shards(rows, batch_size, number, passes)
    assert len({len(batches) for batches in actual}) == 1
    assert sorted(row for batches in actual for batch in batches for row in batch) == [*range(rows)]
    assert all(batch for batches in actual for batch in batches)
    # the trainer takes `passes` batches for a step, whose rows are those of one process
    assert -(-len(actual[0]) // passes) == steps_per_epoch(rows, batch_size)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).tolist()
    for step in range(steps_per_epoch(rows, batch_size) - 1):
        seen = [row for part in actual for batch in part[step * passes : (step + 1) * passes] for row in batch]
        assert sorted(seen) == sorted(order[step * batch_size : (step + 1) * batch_size])


def test_epochs_have_other_orders(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    first, again, other = (shards(48, 8, 2, 1, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != other


def test_what_cannot_be_split_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert share(12) == 4
    with pytest.raises(UserError, match=r"^params.yaml: batch_size: the 4 rows of a step cannot be split evenly "):
        share(4)
    with pytest.raises(UserError, match=r"^params.yaml: execution.launcher: 2 rows are too few for 3 processes"):
        shards(2, 6, 3, 1)


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def of_one_process(
    sizes: tuple[int, int], batch_size: int, kind: type[MultiDatasetDefaultBatchSampler]
) -> MultiDatasetDefaultBatchSampler:
    """The batches of two sources, as the trainer of Sentence Transformers builds them; of the second epoch."""
    generator = torch.Generator()
    data = ConcatDataset([Dataset.from_dict({"row": range(size)}) for size in sizes])
    each = [
        DefaultBatchSampler(RandomSampler(part, generator=generator), batch_size=batch_size, drop_last=False)
        for part in data.datasets
    ]
    sampler = kind(data, each, generator, 3)
    sampler.set_epoch(1)
    return sampler


@pytest.mark.parametrize("kind", [ProportionalBatchSampler, RoundRobinBatchSampler])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(24, 48), (25, 50), (51, 27), (4, 30)])
def test_batches_of_a_loss_for_each_source_are_those_of_one_process(monkeypatch, sizes, number: int, kind):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    sampler = SplitSources(of_one_process(sizes, 4 * number, kind), ["faq", "docs"])
    shards = [BatchSamplerShard(sampler, number, process, even_batches=False) for process in range(number)]
    actual = [[*shard] for shard in shards]
    assert {len(batches) for batches in actual} == {len(shard) for shard in shards} == {len(sampler) // number}
    assert all(batch for batches in actual for batch in batches)
    steps = [flat(parts) for parts in zip(*actual, strict=True)]
    whole = [*of_one_process(sizes, 4 * number, kind)]
    rests = [batch for batch in whole if len(batch) < number]
    batches = [batch for batch in whole if len(batch) >= number]
    assert [step[: len(batch)] for step, batch in zip(steps, batches, strict=True)] == batches
    assert sorted(flat(steps)) == sorted(flat(whole))
    assert sum(len(step) > 4 * number for step in steps) == len(rests)
    assert all(max(step) < sizes[0] or min(step) >= sizes[0] for step in steps)
    if kind is ProportionalBatchSampler:
        assert sorted(flat(steps)) == [*range(sum(sizes))]
        sampler.set_epoch(2)
        assert sorted(flat(sampler)) == [*range(sum(sizes))]
        assert [*sampler][::number] != actual[0]


def test_source_of_fewer_rows_than_processes_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        UserError, match=r"^params.yaml: execution.launcher: the 2 rows of 'docs' are too few for 3 processes$"
    ):
        SplitSources(of_one_process((9, 2), 6, ProportionalBatchSampler), ["faq", "docs"])


@pytest.mark.slow
def test_two_processes_train_each_source_with_its_loss_as_one_does(tmp_path: Path, biencoder: str):
    by_source = {"faq": "lambda", "docs": "group_softmax"}
    one, two = (
        Trainable(tmp_path / name, biencoder, queries=40, sources=("faq", "docs", "docs"), loss=by_source)
        for name in ("one", "two")
    )
    one.run()
    assert two.run(*TORCHRUN, "-m") == ""
    for table in ("curve_loss", "curve_dev"):
        pd.testing.assert_frame_equal(
            *(pd.read_csv(place.path / "metrics" / f"{table}.csv") for place in (one, two)), atol=1e-5
        )
    # 14 and 26 queries: 4 and 7 steps an epoch
    assert json.loads(two.result()["metrics/train.json"])["steps"] == 22


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_killed_one_is_replaced(tmp_path: Path, biencoder: str, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # see docs/how-to/long-runs.md
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torchrun leaves its folder of logs there
    one, two, killed = (Trainable(tmp_path / name, biencoder, queries=31) for name in ("one", "two", "killed"))
    one.run()
    assert two.run(*TORCHRUN, "-m") == ""
    losses = [pd.read_csv(place.path / "metrics" / "curve_loss.csv") for place in (one, two)]
    pd.testing.assert_frame_equal(*(loss.head(7) for loss in losses), atol=1e-5)
    # the last step has three rows: its gradient is the mean of the means of two rows and of one row
    pd.testing.assert_frame_equal(*losses, atol=0.05)
    pd.testing.assert_frame_equal(*(pd.read_csv(place.path / "metrics" / "curve_dev.csv") for place in (one, two)))
    assert json.loads(two.result()["metrics/train.json"])["steps"] == 16
    assert sorted(path.name for path in (tmp_path / "two" / "models").iterdir()) == ["biencoder", "reranker", "static"]
    dying = (*TORCHRUN, "--max-restarts=1", "-m", "dying", "open", "checkpoint-13/curve-1.json")  # of the second epoch
    assert "train: goes on from step 12" in killed.run(*dying).splitlines()
    assert killed.result() == two.result()
