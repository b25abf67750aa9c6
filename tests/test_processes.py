"""A training on several processes sees the rows of a training on one."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset

from reranker.errors import UserError
from reranker.processes import SplitBatches, share, steps_per_epoch
from trainable import Trainable

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


def shards(rows: int, batch_size: int, number: int, passes: int, epoch: int = 0) -> list[list[list[int]]]:
    """The batches that each process gets."""
    data = Dataset.from_dict({"row": range(rows)})
    sampler = SplitBatches(data, batch_size // number // passes, 3, passes=passes)
    sampler.set_epoch(epoch)
    found = []
    for process in range(number):
        shard = BatchSamplerShard(sampler, number, process, even_batches=False)
        found.append([*shard])
        assert len(found[-1]) == len(shard)
    return found


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [4, 5, 24, 25, 26, 27, 40, 47, 48, 49])
def test_every_process_takes_the_same_steps_and_every_row_is_seen_once(
    monkeypatch, rows: int, number: int, passes: int
):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    batch_size = 4 * number * passes
    found = shards(rows, batch_size, number, passes)
    assert len({len(batches) for batches in found}) == 1
    assert sorted(row for batches in found for batch in batches for row in batch) == [*range(rows)]
    assert all(batch for batches in found for batch in batches)
    # the trainer takes so many passes for a step: its rows are those of one process
    assert -(-len(found[0]) // passes) == steps_per_epoch(rows, batch_size)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).tolist()
    for step in range(steps_per_epoch(rows, batch_size) - 1):
        seen = [row for part in found for batch in part[step * passes : (step + 1) * passes] for row in batch]
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
    with pytest.raises(UserError, match=r"^params.yaml: launcher: 2 rows are too few for 3 processes"):
        shards(2, 6, 3, 1)


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_killed_one_is_replaced(tmp_path: Path, biencoder: str, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # see docs/how-to/long-runs.md
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torchrun leaves its folder of logs there
    one, two, killed = (Trainable(tmp_path / name, biencoder, queries=31) for name in ("one", "two", "killed"))
    one.run()
    assert two.run(*TORCHRUN, "-m") == ""
    losses = [pd.read_csv(place.path / "metrics" / "curve_loss.csv") for place in (one, two)]
    pd.testing.assert_frame_equal(*(loss.head(7) for loss in losses), atol=1e-5)
    # a last step of three rows is the mean of the means of two and of one
    pd.testing.assert_frame_equal(*losses, atol=0.05)
    pd.testing.assert_frame_equal(*(pd.read_csv(place.path / "metrics" / "curve_dev.csv") for place in (one, two)))
    assert json.loads(two.result()["metrics/train.json"])["steps"] == 16
    assert sorted(path.name for path in (tmp_path / "two" / "models").iterdir()) == ["biencoder", "reranker", "static"]
    dying = (*TORCHRUN, "--max-restarts=1", "-m", "dying", "open", "checkpoint-6/curve-1.json")
    assert "train: goes on from step 5" in killed.run(*dying).splitlines()
    assert killed.result() == two.result()
