import re
import shutil
from pathlib import Path

import pytest
import yaml

from reranker.common.errors import UserError
from reranker.evaluation.compare_params import CompareParams, read_params
from reranker.evaluation.system_schema import (
    STANDARD_SYSTEMS,
    SYSTEM_KINDS,
    CrossEncoderSystem,
    in_order,
    kind,
    repeats,
)
from reranker.report.tables import LABELS
from settings import change

ROOT = Path(__file__).resolve().parents[2]
KEYS = "retriever, biencoder, static, cross_encoder, experiment, fused, run"
NO_KIND = f"it should have one of the keys {KEYS}, which tells what it is"


def read(folder: Path, **values: object) -> CompareParams:
    """The committed parameters with other values."""
    path = folder / "params.yaml"
    shutil.copy(ROOT / "compare" / "params.yaml", path)
    change(path, **{f"compare.{key}": value for key, value in values.items()})
    return read_params(path)


def test_systems_of_the_docs_are_allowed_and_of_every_kind(tmp_path: Path):
    text = (ROOT / "docs" / "how-to" / "compare.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(systems:.*?)```", text, re.DOTALL)
    systems = read(tmp_path, **yaml.safe_load(block)).systems
    assert {type(system) for system in systems.values()} == {*SYSTEM_KINDS.values()}


def test_committed_systems_are_of_models_that_the_pipeline_of_the_comparison_makes():
    compare = read_params(ROOT / "compare" / "params.yaml")
    students = {f"models/students/{layers}" for layers in compare.student_layers}
    assert students == {
        system.cross_encoder for system in compare.systems.values() if isinstance(system, CrossEncoderSystem)
    }


def test_systems_of_evaluate_are_those_that_have_labels():
    assert list(STANDARD_SYSTEMS) == list(LABELS)


def test_every_kind_is_read_and_named(tmp_path: Path):
    systems = {
        "a": ({"retriever": "bm25"}, "bm25"),
        "b": ({"retriever": ["bm25", "bundled/static-256"]}, "hybrid"),
        "c": ({"retriever": "bundled/static-256"}, "retriever"),
        "d": ({"biencoder": "x/y", "max_length": 64, "query_prompt": "query: "}, "biencoder"),
        "e": ({"static": "models/static"}, "static"),
        "f": ({"cross_encoder": "x/y", "num_layers": 2}, "cross_encoder"),
        "g": ({"experiment": "seed-13"}, "fused"),
        "h": ({"experiment": ["seed-13", "seed-14"], "model": "cross_encoder"}, "cross_encoder"),
        "i": ({"fused": {"a": 1, "reranker": 0.5}}, "fused"),
        "j": ({"run": "data/raw/other.trec"}, "run"),
    }
    params = read(tmp_path, systems={name: given for name, (given, _) in systems.items()}, baseline="i")
    found = params.systems
    assert {name: kind(system) for name, system in found.items()} == {name: of for name, (_, of) in systems.items()}
    assert {type(system) for system in found.values()} == set(SYSTEM_KINDS.values())
    assert [[single.experiment for single in repeats(found[name])] for name in "gh"] == [
        [["seed-13"]],
        [["seed-13"], ["seed-14"]],
    ]
    assert repeats(found["a"]) == [found["a"]]


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({}, f"systems.mine: {{}} is not allowed: {NO_KIND}"),
        ("bm25", f"systems.mine: 'bm25' is not allowed: {NO_KIND}"),
        ({"run": "a", "static": "b"}, f"systems.mine: {{'run': 'a', 'static': 'b'}} is not allowed: {NO_KIND}"),
        (
            {"cross_encoder": "x", "num_layer": 2},
            "systems.mine: {'cross_encoder': 'x', 'num_layer': 2} is not allowed: it should have no other keys than "
            "cross_encoder, num_layers, max_length",
        ),
        ({"cross_encoder": "x", "num_layers": 0}, "systems.mine.num_layers: 0 is not allowed: it should be greater"),
        ({"cross_encoder": None}, "systems.mine.cross_encoder: None is not allowed: it should be a valid string"),
        ({"experiment": []}, "systems.mine.experiment: [] is not allowed: it should have at least 1 item"),
        (
            {"experiment": "x", "model": "static"},
            "systems.mine.model: 'static' is not allowed: it should be",
        ),
        ({"fused": {}}, "systems.mine.fused: {} is not allowed: it should have at least 1 item"),
        ({"fused": {"bm25": "much"}}, "systems.mine.fused.bm25: 'much' is not allowed: it should be a valid number"),
        (
            {"fused": {"bm25": float("inf")}},
            "systems.mine.fused.bm25: inf is not allowed: it should be a finite",
        ),
        (
            {"fused": {"gone": 1}},
            "systems.mine.fused: {'gone': 1}: 'gone' is no system; the systems are bm25, retriever,",
        ),
        ({"fused": {"mine": 1}}, "systems.mine.fused: {'mine': 1}: 'mine' needs the scores of 'mine' itself"),
    ],
)
def test_problem_of_a_system_is_named_with_its_place(tmp_path: Path, system: object, message: str):
    with pytest.raises(UserError) as caught:
        read(tmp_path, systems={"mine": system})
    assert str(caught.value).removeprefix(f"{tmp_path}/params.yaml: compare.").startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"systems": {"reranker": {"run": "a"}}},
            "systems.reranker: {'run': 'a'}: is the name of a system that evaluate measures",
        ),
        ({"systems": {"a/b": {"run": "a"}}}, "systems.a/b: 'a/b' is not allowed: it should match pattern"),
        (
            {"systems": {}, "baseline": "student_1"},
            "baseline: 'student_1': is no system; the systems are bm25, retriever",
        ),
        (
            {"systems": {"a": {"fused": {"b": 1}}, "b": {"fused": {"a": 1}}}},
            "systems.b.fused: {'a': 1}: 'a' needs the scores of 'b' itself",
        ),
        (
            {"systems": {"a": {"fused": {"b": 1}}, "b": {"experiment": ["x", "y"]}}},
            "systems.a.fused: {'b': 1}: 'b' stands for several experiments; name one that stands for one",
        ),
        ({"student_layers": [1, 2, 1]}, "student_layers: [1, 2, 1]: must not have a number twice"),
    ],
)
def test_systems_that_do_not_fit_together_are_refused(tmp_path: Path, values: dict[str, object], message: str):
    with pytest.raises(UserError) as caught:
        read(tmp_path, **values)
    assert str(caught.value).removeprefix(f"{tmp_path}/params.yaml: compare.").startswith(message)


def test_fused_systems_come_after_their_parts(tmp_path: Path):
    systems = {
        "last": {"fused": {"middle": 1, "bm25": 1}},
        "middle": {"fused": {"first": 1}},
        "first": {"run": "a"},
        "other": {"run": "b"},
    }
    params = read(tmp_path, systems=systems)
    assert [name for name, _ in in_order(params.systems)] == ["first", "middle", "last", "other"]
