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
    place = Trainable(tmp_path, biencoder, 8, base_model=biencoder, loss="cross_entropy")
    monkeypatch.chdir(place.path)
    pairs = [("sort a list", "order numbers in a list"), ("sort a list", "green apples")]
    scores = []
    for layers in (1, 2):
        assert train.main(["--student", str(layers)]).startswith(f"student {layers}: NDCG@10 ")
        model = CrossEncoder(f"models/students/{layers}")
        assert (model[0].model.config.num_hidden_layers, model.num_labels) == (layers, 1)
        scores.append(model.predict(pairs))
    assert not np.allclose(*scores)
    assert not list(Path(".checkpoints").glob("student-*/*"))


def test_too_many_layers_and_a_number_that_is_none_are_errors(
    tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch
):
    place = Trainable(tmp_path, biencoder, 8, base_model=biencoder)
    monkeypatch.chdir(place.path)
    with pytest.raises(UserError, match="student_layers: 3: the model has 2 layers"):
        train.main(["--student", "3"])
    for arguments in (["--student"], ["--student", "none"], ["--student", "0"], ["--students"]):
        with pytest.raises(UserError, match="the only argument is --student"):
            train.main(arguments)
    assert not Path("models/students").exists()


def test_each_student_has_a_report_of_its_own(tmp_path: Path, biencoder: str, monkeypatch: pytest.MonkeyPatch):
    place = Trainable(tmp_path, biencoder, 8, base_model=biencoder, epochs=1, trainer={"report_to": ["dvclive"]})
    monkeypatch.chdir(place.path)
    for layers in ("1", "2"):
        train.main(["--student", layers])
    assert sorted(path.name for path in Path("dvclive").iterdir()) == ["student-1", "student-2"]
