"""The reports of `trainer: {report_to: …}`, as the packages write them, from the stage train on tiny models."""

import json
import socket
from pathlib import Path

import pandas as pd
import pytest

from stages import train
from trainable import Trainable

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, cross_encoder: str, monkeypatch: pytest.MonkeyPatch) -> Trainable:
    """Where the stage runs, without a network."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    return Trainable(tmp_path, cross_encoder, 8, epochs=2, evaluations=2)


def curves() -> tuple[dict[int, float], dict[int, float]]:
    """Loss and NDCG@10 on dev by step, in the stage's own metrics, without the model before training."""
    tables = (pd.read_csv(f"metrics/curve_{name}.csv").set_index("step") for name in ("loss", "dev"))
    loss, dev = (table.iloc[:, 0].to_dict() for table in tables)
    assert len(loss) == 4
    assert dev.pop(0) == json.loads(Path("metrics/train.json").read_text(encoding="utf-8"))["dev_ndcg@10_before"]
    assert len(dev) == 2
    return loss, dev


def test_dvclive_has_plots_of_loss_and_dev_over_the_steps(place: Trainable):
    place.set(trainer={"report_to": ["dvclive"]})
    train.main([])
    plots = [
        pd.read_csv(f"dvclive/train/plots/metrics/{name}.tsv", sep="\t").set_index("step").iloc[:, 0].to_dict()
        for name in ("loss", "eval/ndcg@10")
    ]
    for plot, curve in zip(plots, curves(), strict=True):
        assert plot == pytest.approx(curve)
    assert json.loads(Path("dvclive/train/metrics.json").read_text(encoding="utf-8"))["step"] == 4
    assert sorted(path.name for path in Path("dvclive").iterdir()) == ["train"]
    assert not Path("dvc.yaml").exists()


def test_tensorboard_has_events_of_loss_and_dev_over_the_steps(place: Trainable):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place.set(trainer={"report_to": ["tensorboard"]})
    train.main([])
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-train")
    events = EventAccumulator(str(folder)).Reload()
    for name, curve in zip(("train/loss", "eval/ndcg@10"), curves(), strict=True):
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(curve)


def test_without_reports_nothing_is_written_beside_the_results_and_they_are_the_same(place: Trainable):
    train.main([])
    assert not [path for path in ("dvclive", "runs") if Path(path).exists()]
    expected = place.result()
    place.set(trainer={"report_to": ["dvclive", "tensorboard"]})
    train.main([])
    assert place.result() == expected
