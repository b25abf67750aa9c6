import re
import shutil
from pathlib import Path

import pytest
import yaml

from reranker.common.errors import UserError
from reranker.common.params import load_params
from reranker.common.system_schema import STANDARD_SYSTEMS, SYSTEM_KINDS, in_order, kind, repeats
from reranker.report.tables import LABELS
from settings import change

COMMITTED = Path(__file__).resolve().parents[2] / "params.yaml"
KEYS = "retriever, biencoder, static, cross_encoder, experiment, fused, run"


def changed(folder: Path, **values: object) -> Path:
    path = folder / "params.yaml"
    shutil.copy(COMMITTED, path)
    change(path, **values)
    return path


BLOCKS = [
    block
    for page in ("README.md", "docs/parameters.md")
    for block in re.findall(
        r"```yaml\n(systems:.*?)```", (COMMITTED.parent / page).read_text(encoding="utf-8"), re.DOTALL
    )
]


def test_systems_of_the_docs_are_allowed_and_of_every_kind(tmp_path: Path):
    found = [load_params(changed(tmp_path, **yaml.safe_load(block))).systems for block in BLOCKS]
    assert len(found) == 2
    assert {type(system) for systems in found for system in systems.values()} == set(SYSTEM_KINDS.values())


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
    params = load_params(changed(tmp_path, systems={name: given for name, (given, _) in systems.items()}, baseline="i"))
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
        ({}, f"systems.mine: must have one of the keys {KEYS}, which tells what it is"),
        ("bm25", f"systems.mine: must have one of the keys {KEYS}, which tells what it is"),
        ({"run": "a", "static": "b"}, f"systems.mine: must have one of the keys {KEYS}, which tells what it is"),
        ({"cross_encoder": "x", "num_layer": 2}, "systems.mine: unknown key 'num_layer'; did you mean 'num_layers'?"),
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
            "systems.mine.fused: {'gone': 1}: 'gone' is no system; the systems are retriever, bm25,",
        ),
        ({"fused": {"mine": 1}}, "systems.mine.fused: {'mine': 1}: 'mine' needs the scores of 'mine' itself"),
    ],
)
def test_problem_of_a_system_is_named_with_its_place(tmp_path: Path, system: object, message: str):
    with pytest.raises(UserError) as caught:
        load_params(changed(tmp_path, systems={"mine": system}))
    assert str(caught.value).removeprefix(f"{tmp_path}/params.yaml: ").startswith(message)


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
            "baseline: 'student_1': is no system; the systems are retriever, bm25",
        ),
        (
            {"systems": {"a": {"fused": {"b": 1}}, "b": {"fused": {"a": 1}}}},
            "systems.b.fused: {'a': 1}: 'a' needs the scores of 'b' itself",
        ),
        (
            {"systems": {"a": {"fused": {"b": 1}}, "b": {"experiment": ["x", "y"]}}},
            "systems.a.fused: {'b': 1}: 'b' stands for several experiments; name one that stands for one",
        ),
        ({"student_layers": [1, 2, 1]}, "evaluation.student_layers: [1, 2, 1]: must not have a number twice"),
    ],
)
def test_systems_that_do_not_fit_together_are_refused(tmp_path: Path, values: dict[str, object], message: str):
    with pytest.raises(UserError) as caught:
        load_params(changed(tmp_path, **values))
    assert str(caught.value).removeprefix(f"{tmp_path}/params.yaml: ").startswith(message)


def test_fused_systems_come_after_their_parts(tmp_path: Path):
    systems = {
        "last": {"fused": {"middle": 1, "bm25": 1}},
        "middle": {"fused": {"first": 1}},
        "first": {"run": "a"},
        "other": {"run": "b"},
    }
    params = load_params(changed(tmp_path, systems=systems))
    assert [name for name, _ in in_order(params.systems)] == ["first", "middle", "last", "other"]
