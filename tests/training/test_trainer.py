"""A training that dies, diverges or does not fit into memory."""

import itertools
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sentence_transformers.base.evaluation import BaseEvaluator

from reranker.common.errors import UserError
from reranker.inference.loading import load_biencoder
from reranker.training import checkpoints
from reranker.training.biencoders import tune_biencoder
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import Curve, build_cross_encoder, tune_cross_encoder
from reranker.training.losses import GroupSoftmaxLoss
from reranker.training.trainer import Schedule, seed_everything
from trainable import ABOUT, Trainable, without_progress

SCHEDULE = Schedule(lr=1e-3, epochs=2, batch_size=4, warmup=0.1, weight_decay=0.01, precision="float32", seed=5)
GROUPS = [(query, [right, *(other for other in ABOUT.values() if other != right)]) for query, right in ABOUT.items()]
ROWS = Dataset.from_dict(
    {
        "query": [query for query, _ in GROUPS] * 9,
        "passages": [passages for _, passages in GROUPS] * 9,
        "label": [[2.0, 0.5, -0.5, -1.0]] * 36,
    }
)
"""Rows for nine steps an epoch."""
KILLED_BEFORE = 200
"""Number of the last file change at which a process is killed; the stage makes more than three times as many."""


class Script(BaseEvaluator):
    """Returns a figure for each step, and interrupts the training at a step without one."""

    def __init__(self, figures: dict[int, float]) -> None:
        super().__init__()
        self.primary_metric = "figure"
        self.figures = figures

    def __call__(self, model: object, output_path: object = None, epoch: object = -1, steps: int = -1) -> object:
        if steps not in self.figures:
            raise KeyboardInterrupt
        return {"figure": self.figures[steps]}


RISING = {step: step / 18 for step in range(3, 19, 3)}


class Training:
    """A cross-encoder that is trained for 18 steps, with an evaluation every third one."""

    def __init__(self, encoder: str, folder: Path, *, minutes: float | None = 0) -> None:
        self.encoder = encoder
        self.checkpoints = Checkpoints(folder, minutes, ("figures",))

    def run(self, figures: dict[int, float] = RISING, loss: type = GroupSoftmaxLoss, **changes: object) -> Curve:
        seed_everything(SCHEDULE.seed)
        self.model = build_cross_encoder(self.encoder, 32)
        return tune_cross_encoder(
            self.model,
            ROWS,
            loss(self.model, 0.5),
            SCHEDULE._replace(**changes),
            evaluator=Script(figures),
            evaluations=6,
            patience=3,
            head_lr=1e-2,
            label="train",
            checkpoints=self.checkpoints,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        folders = self.checkpoints.folder.glob("*/checkpoint-*")
        return sorted(checkpoints.step_of(folder) for folder in folders if not checkpoints.damage(folder))


@pytest.fixture
def tuned(encoder: str, tmp_path: Path) -> Training:
    return Training(encoder, tmp_path / "train")


@pytest.fixture
def other(encoder: str, tmp_path: Path) -> Training:
    """The same training without checkpoints between the evaluations."""
    return Training(encoder, tmp_path / "other", minutes=None)


def assert_same(curve: Curve, weights: dict[str, torch.Tensor], tuned: Training, expected: Curve) -> None:
    for left, right in zip(curve, expected, strict=True):
        if isinstance(left, pd.DataFrame):
            pd.testing.assert_frame_equal(left, right, check_exact=True)
        else:
            assert left == right
    for name, value in tuned.weights().items():
        assert torch.equal(weights[name], value), name


def own_lines(capsys: pytest.CaptureFixture[str], label: str = "train") -> list[str]:
    """The lines of stderr that begin with the label, without the progress."""
    said = without_progress(capsys.readouterr().err)
    return [line for line in said.splitlines() if line.startswith(f"{label}: ")]


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Limit the size of files, as a full disk does."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@pytest.mark.slow
def test_training_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, cross_encoder: str):
    place = Trainable(tmp_path, cross_encoder)
    whole = Trainable(tmp_path / "whole", cross_encoder, checkpoint_minutes=None)
    assert whole.run() == ""
    # it dies while a checkpoint is written, so that step 2 has the last complete one
    assert place.die("open", "checkpoint-3/trainer_state.json") == ""
    assert not (place.checkpoints()[-1] / checkpoints.MARKER).exists()
    # it dies before the marker gets its name, in the second epoch
    lines = place.die("os.rename", "checkpoint-11/whole.json")
    folder = place.checkpoints()[0].parent.relative_to(tmp_path)
    unfinished = "is not used: it was not finished"
    assert lines.splitlines() == [f"train: {folder}/checkpoint-3 {unfinished}", "train: goes on from step 2"]
    damage(place.checkpoints()[-2] / "optimizer.pt")
    # it dies after training, while the result is written
    lines = place.die("open", "fusion.json")
    assert lines.splitlines() == [
        f"train: {folder}/checkpoint-11 {unfinished}",
        f"train: {folder}/checkpoint-10 is not used: optimizer.pt is damaged",
        "train: goes on from step 9",
    ]
    assert not (tmp_path / "metrics").exists()
    assert place.run() == "train: goes on from step 16\n"
    assert place.result() == whole.result()


@pytest.mark.slow
def test_training_that_is_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, cross_encoder: str):
    whole = Trainable(tmp_path / "whole", cross_encoder, checkpoint_minutes=None)
    whole.run()
    place = Trainable(tmp_path, cross_encoder)
    seed = int(np.random.default_rng().integers(10**6))
    moments = np.random.default_rng(seed).integers(1, KILLED_BEFORE, size=3).tolist()
    for moment in moments:
        process = place.start("dying", "write", str(moment))
        output = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL, f"seed {seed}, moments {moments}, at {moment}: {output}"
    place.run()
    differ = [name for name, content in place.result().items() if content != whole.result()[name]]
    assert not differ, f"seed {seed}, moments {moments}"


def damage(file: Path) -> None:
    """Change a byte of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_other_params_data_or_code_start_anew(tuned: Training, capsys):
    with pytest.raises(KeyboardInterrupt):
        tuned.run({3: 0.1})
    (first,) = tuned.checkpoints.folder.iterdir()
    assert tuned.steps() == [3, 4, 5]
    with pytest.raises(KeyboardInterrupt):
        tuned.run({}, lr=2e-3)
    assert not first.exists()
    assert tuned.steps() == [1, 2]
    assert own_lines(capsys) == []
    model = tuned.model
    rows, others = pd.DataFrame({"text": ["a", "b"]}), pd.DataFrame({"text": ["a", "c"]})
    lists = ((model, rows), (model, others), (model, rows, 1), (model, rows))
    keys = [checkpoints.training_key(*parts) for parts in lists]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    assert checkpoints.training_key(model, rows) != keys[0]


@pytest.mark.slow
def test_patience_and_the_best_checkpoint_outlive_an_interrupt(tuned: Training, other: Training, capsys):
    falling = {3: 0.9, 6: 0.5, 9: 0.4, 12: 0.3}
    expected = other.run(falling)
    assert expected.steps == 12
    with pytest.raises(KeyboardInterrupt):
        tuned.run({3: 0.9, 6: 0.5})
    assert tuned.steps() == [3, 7, 8]
    curve = tuned.run(falling)
    assert own_lines(capsys) == ["train: goes on from step 8"]
    assert_same(curve, tuned.weights(), other, expected)
    # the result was not written, so training resumes from before the stop
    curve = tuned.run(falling)
    first, second = own_lines(capsys)
    assert first.endswith("checkpoint-12 is not used: the training had stopped there")
    assert second == "train: goes on from step 11"
    assert_same(curve, tuned.weights(), other, expected)


@pytest.mark.slow
def test_checkpoint_whose_best_one_is_damaged_is_not_used(tuned: Training, other: Training, capsys):
    falling = {**RISING, 3: 2.0, 6: 3.0}
    expected = other.run(falling)
    with pytest.raises(KeyboardInterrupt):
        tuned.run({3: 2.0, 6: 3.0})
    assert tuned.steps() == [6, 7, 8]
    (best,) = tuned.checkpoints.folder.glob("*/checkpoint-6")
    damage(best / "model.safetensors")
    curve = tuned.run(falling)
    lines = own_lines(capsys)
    problem = "checkpoint-6, the best checkpoint: model.safetensors is damaged"
    assert [problem in line for line in lines[:2]] == [True, True]
    assert lines[2].endswith("checkpoint-6 is not used: model.safetensors is damaged")
    assert len(lines) == 3
    assert_same(curve, tuned.weights(), other, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 150_000])
def test_full_disk_stops_with_one_line_and_leaves_the_last_checkpoint(
    tuned: Training, other: Training, capsys, size: int
):
    with pytest.raises(KeyboardInterrupt):
        tuned.run({3: 1 / 6})
    before = tuned.steps()
    assert before == [3, 4, 5]
    with file_limit(size), pytest.raises(UserError) as caught:
        tuned.run()
    assert "checkpoint-6: could not be written (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tuned.steps() == before
    assert not [*tuned.checkpoints.folder.glob("*/checkpoint-6")]
    curve = tuned.run()
    assert_same(curve, tuned.weights(), other, other.run())


@pytest.mark.slow
def test_biencoder_goes_on_from_its_checkpoint(biencoder: str, tmp_path: Path, capsys):
    rows = pd.DataFrame([*ABOUT.items()] * 8, columns=["query", "passage"]).assign(group=[*range(4)] * 8)
    whole, killed, resumed = (load_biencoder(biencoder, 32) for _ in range(3))
    passes = itertools.count()

    def interrupt(*_: object) -> None:
        if next(passes) == 20:  # a query and a passage side for each of ten steps
            raise KeyboardInterrupt

    killed.register_forward_pre_hook(interrupt)
    for model, name in ((whole, "whole"), (killed, "killed"), (resumed, "killed")):
        store = Checkpoints(tmp_path / name, 0, ())
        with pytest.raises(KeyboardInterrupt) if model is killed else nullcontext():
            tune_biencoder(model, rows, SCHEDULE, scale=20.0, label="biencoder", checkpoints=store)
    assert own_lines(capsys, "biencoder") == ["biencoder: goes on from step 10"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class Diverging(GroupSoftmaxLoss):
    """A loss that is not a number at the seventh step."""

    def forward(self, inputs: list[list[str]], labels: list[torch.Tensor], **others: object) -> torch.Tensor:
        self.passes = getattr(self, "passes", 0) + 1
        return super().forward(inputs, labels, **others) * (float("nan") if self.passes == 7 else 1)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "remedy"), [("float32", ""), ("bfloat16", ", or set precision: float32")])
def test_loss_that_is_not_finite_stops_with_the_step_and_a_query_of_its_batch(
    tuned: Training, precision: str, remedy: str
):
    with pytest.raises(UserError) as caught:
        tuned.run(loss=Diverging, precision=precision)
    assert re.fullmatch(
        rf"train: the loss is nan at step 7, in the batch of '({'|'.join(ABOUT)})'; take a lower learning rate{remedy}",
        str(caught.value),
    )
    assert tuned.steps() == [3, 5, 6]


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_kept(tuned: Training):
    with pytest.raises(UserError, match=r"^train: the (weights of .* are not finite after|loss is nan at) step 1"):
        tuned.run(lr=float("inf"))
    assert tuned.steps() == []


class Small(GroupSoftmaxLoss):
    """Imitates a memory that holds so many rows, from some step on."""

    rows = 2
    start = 0

    def forward(self, inputs: list[list[str]], labels: list[torch.Tensor], **others: object) -> torch.Tensor:
        self.passes = getattr(self, "passes", 0) + 1
        if len(inputs[0]) > self.rows and self.passes > self.start:
            raise torch.OutOfMemoryError
        return super().forward(inputs, labels, **others)


@pytest.mark.slow
def test_pass_that_does_not_fit_is_split_and_the_step_keeps_its_rows(tuned: Training, other: Training, capsys):
    split = tuned.run(loss=Small)
    weights = tuned.weights()
    assert own_lines(capsys) == ["train: out of memory: now 2 rows a pass, 2 passes a step"]
    whole = other.run()
    assert (split.steps, split.peak_lr) == (whole.steps, whole.peak_lr)
    np.testing.assert_allclose(split.loss["loss"], whole.loss["loss"], atol=1e-4)
    # the result is the same with two passes from the start
    for checkpoint in tuned.checkpoints.folder.glob("*/checkpoint-*"):
        shutil.rmtree(checkpoint)
    curve = tuned.run()
    assert own_lines(capsys) == []
    assert_same(split, weights, tuned, curve)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, None])
def test_memory_that_runs_out_later_costs_no_step(tuned: Training, other: Training, capsys, minutes: float | None):
    class Later(Small):
        start = 7

    tuned.checkpoints = tuned.checkpoints._replace(minutes=minutes)
    split = tuned.run(loss=Later)
    assert own_lines(capsys) == [
        "train: out of memory: now 2 rows a pass, 2 passes a step",
        "train: goes on from step 7",
    ]
    whole = other.run()
    pd.testing.assert_frame_equal(split.loss.head(7), whole.loss.head(7), check_exact=True)
    np.testing.assert_allclose(split.loss["loss"], whole.loss["loss"], atol=1e-4)
    pd.testing.assert_frame_equal(split.dev, whole.dev)


@pytest.mark.slow
def test_row_that_does_not_fit_is_an_error(tuned: Training, capsys):
    class Nothing(Small):
        rows = 0

    with pytest.raises(UserError, match=r"^train: a pass does not fit into memory \(rows: 1\); lower the batch size, "):
        tuned.run(loss=Nothing)
    assert own_lines(capsys) == [
        "train: out of memory: now 2 rows a pass, 2 passes a step",
        "train: out of memory: now 1 rows a pass, 4 passes a step",
    ]
