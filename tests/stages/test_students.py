"""The stage students, as DVC starts it, on tiny models."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from reranker.common.errors import UserError
from stages import train
from trainable import Trainable

pytestmark = pytest.mark.slow


def test_students_have_their_layers_and_have_learned(tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch):
    place = Trainable(tmp_path, biencoder, 8, student_layers=[1, 2], loss="cross_entropy")
    monkeypatch.chdir(place.path)
    assert train.main(["--students"]).startswith("students: NDCG@10 on 30 dev queries by layers: 1: ")
    assert sorted(path.name for path in Path("models/students").iterdir()) == ["1", "2"]
    pairs = [("sort a list", "order numbers in a list"), ("sort a list", "green apples")]
    scores = []
    for layers in (1, 2):
        model = CrossEncoder(f"models/students/{layers}")
        assert (model[0].model.config.num_hidden_layers, model.num_labels) == (layers, 1)
        scores.append(model.predict(pairs))
    assert not np.allclose(*scores)
    assert not list(Path(".checkpoints").glob("student-*/*"))


def test_no_students_are_an_empty_folder_and_too_many_layers_an_error(
    tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch
):
    place = Trainable(tmp_path, biencoder, 8, student_layers=[])
    monkeypatch.chdir(place.path)
    assert train.main(["--students"]).startswith(
        "students: NDCG@10 on 30 dev queries by layers: none, as student_layers is empty"
    )
    assert list(Path("models/students").iterdir()) == []
    place.set(student_layers=[1, 3])
    with pytest.raises(UserError, match="student_layers: 3: the model has 2 layers"):
        train.main(["--students"])
    assert list(Path("models/students").iterdir()) == []


def test_each_student_has_a_report_of_its_own(tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch):
    place = Trainable(tmp_path, biencoder, 8, student_layers=[1, 2], epochs=1, trainer={"report_to": ["dvclive"]})
    monkeypatch.chdir(place.path)
    train.main(["--students"])
    assert sorted(path.name for path in Path("dvclive").iterdir()) == ["student-1", "student-2"]
