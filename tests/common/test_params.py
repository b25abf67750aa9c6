import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from reranker.common.errors import UserError
from reranker.common.params import Params, load_params
from settings import change, place

COMMITTED = Path(__file__).resolve().parents[2] / "params.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def without_lr() -> str:
    lines = COMMITTED.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("lr:"))


def change_committed(folder: Path, **values: object) -> Path:
    """The committed parameters with other values."""
    path = write(folder, COMMITTED.read_text(encoding="utf-8"))
    change(path, **values)
    return path


def problem(path: Path) -> str:
    """The message of the error, without the path at its start."""
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).removeprefix(": ")


def test_committed_parameters_are_valid_and_name_each_key_of_the_schema():
    assert set(yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))) == set(Params.model_fields)
    assert load_params(COMMITTED).sources


@pytest.mark.parametrize("number", ["2e-05", "2E-5", "2.e-05", "0.2e-4", "0.00002", "+2e-05"])
def test_number_in_scientific_notation_is_a_float(tmp_path: Path, number: str):
    value = load_params(write(tmp_path, without_lr() + f"lr: {number}\n")).lr
    assert isinstance(value, float)
    assert value == 2e-5


def test_words_that_older_yaml_takes_for_booleans_are_texts(tmp_path: Path):
    path = write(tmp_path, COMMITTED.read_text(encoding="utf-8"))
    apply_overrides(path, ["query_prompt=yes", "passage_prompt=off"])
    text = path.read_text(encoding="utf-8")
    own = "sources:\n  no:\n    files: data/raw/a.csv\n    columns: {query: on, passage: y}\n"
    path.write_text(own + text[text.index("base_model:") :], encoding="utf-8")
    params = load_params(path)
    assert (params.query_prompt, params.passage_prompt) == ("yes", "off")
    assert params.sources["no"].columns.query == "on"
    assert params.sources["no"].columns.passage == "y"


def test_key_of_a_section_can_be_swept(tmp_path: Path):
    path = write(tmp_path, COMMITTED.read_text(encoding="utf-8"))
    apply_overrides(path, ["negatives.relative_margin=0.05", "lr=2e-5", "compute.precision=float32"])
    params = load_params(path)
    assert (params.negatives.relative_margin, params.lr, params.compute.precision) == (0.05, 2e-5, "float32")


def test_whole_number_is_a_rate_too(tmp_path: Path):
    assert load_params(change_committed(tmp_path, lr=1)).lr == 1


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("sampeling", "did you mean 'negatives.sampling'?"),
        ("head-lr", "did you mean 'head_lr'?"),
        ("zzzzz", "remove it"),
        (7, "remove it"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path, key: object, remedy: str):
    path = write(tmp_path, COMMITTED.read_text(encoding="utf-8") + f"\n{key}: 1\n")
    assert problem(path) == f"unknown key '{key}'; {remedy}"


def test_missing_key_is_named(tmp_path: Path):
    assert "key 'lr' is missing; add it" in problem(write(tmp_path, without_lr()))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("lr", "fast", "a valid number"),
        ("lr", 0, "greater than 0"),
        ("lr", -1e-5, "greater than 0"),
        ("lr", 2, "less than or equal to 1"),
        ("lr", None, "a valid number"),
        ("lr", True, "a valid number"),
        ("epochs", 1.5, "a valid integer"),
        ("epochs", "3", "a valid integer"),
        ("epochs", 0, "greater than or equal to 1"),
        ("dev_share", 1, "less than 1"),
        ("relative_margin", 2, "less than or equal to 1"),
        ("absolute_margin", "none", "a valid number"),
        ("near_duplicates", 0.4, "greater than or equal to 0.5"),
        ("near_duplicates", 90, "less than or equal to 1"),
        ("sampling", "best", "'top', 'random' or 'buckets'"),
        ("loss", "msee", "'group_softmax'"),
        ("loss", None, "'group_softmax'"),
        ("loss", {}, "at least 1 item"),
        ("targets", "labels", "'relevance' or 'teacher'"),
        ("teacher", None, "a valid string"),
        ("loss_arguments", None, "a valid dictionary"),
        ("num_layers", 0, "greater than or equal to 1"),
        ("lora", True, "a valid dictionary"),
        ("evaluators", [], "at least 1 item"),
        ("evaluations", 0, "greater than or equal to 1"),
        ("evaluations", "50", "a valid integer"),
        ("evaluations", [], "at least 1 item"),
        ("trainer", ["max_steps"], "a valid dictionary"),
        ("base_model", "", "at least 1 character"),
        ("sources", {}, "at least 1 item"),
        ("sources", ["numpy"], "a valid dictionary"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**31, "less than 2147483648"),
    ],
)
def test_value_that_is_not_allowed_is_named_with_what_is(tmp_path: Path, key: str, value: object, allowed: str):
    message = problem(change_committed(tmp_path, **{key: value}))
    assert message.startswith(f"{place(key)}: {value!r} is not allowed: it ")
    assert allowed in message


def test_evaluations_are_a_number_or_ascending_steps(tmp_path: Path):
    assert load_params(change_committed(tmp_path, evaluations=3)).dev.evaluations == 3
    assert load_params(change_committed(tmp_path, evaluations=[50, 100])).dev.evaluations == [50, 100]
    for steps in ([100, 50], [50, 50]):
        assert (
            problem(change_committed(tmp_path, evaluations=steps))
            == f"dev.evaluations: {steps}: must be ascending steps, each once"
        )
    assert problem(change_committed(tmp_path, evaluations=[0, 50])).startswith(
        "dev.evaluations: 0 is not allowed: it should be "
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "sources.mine: must have one of the keys packages, files, corpus, beir, hub, which tells what it is"),
        ("numpy", "sources.mine: must have one of the keys packages, files, corpus, beir, hub, which tells what it is"),
        (
            {"packages": ["numpy"], "files": "data/raw/a.csv"},
            "sources.mine: must have one of the keys packages, files, corpus, beir, hub, which tells what it is",
        ),
        ({"packages": []}, "sources.mine.packages: [] is not allowed: it should have at least 1 item"),
        ({"packages": "numpy"}, "sources.mine.packages: 'numpy' is not allowed: it should be a valid list"),
        ({"packages": ["numpy", 3]}, "sources.mine.packages: 3 is not allowed: it should be a valid string"),
        ({"packages": ["numpy"], "colums": 1}, "sources.mine: unknown key 'colums'; remove it"),
        ({"files": "a.csv"}, "sources.mine: key 'columns' is missing; add it, as in docs/parameters.md"),
        ({"files": "a.csv", "colums": {}}, "sources.mine: unknown key 'colums'; did you mean 'columns'?"),
        (
            {"files": "a.csv", "columns": {"query": "q", "pasage": "p"}},
            "sources.mine.columns: unknown key 'pasage'; did you mean 'passage'?",
        ),
        (
            {"files": "a.csv", "columns": {"query": "q"}},
            "sources.mine.columns: key 'passage' is missing; add it, as in docs/parameters.md",
        ),
        (
            {"files": {"valid": "a.csv"}, "columns": {"query": "q", "passage": "p"}},
            "sources.mine.files.valid: 'valid' is not allowed: it should be 'unsplit', 'train', 'dev' or 'test'",
        ),
        (
            {"files": {"test": []}, "columns": {"query": "q", "passage": "p"}},
            "sources.mine.files.test: [] is not allowed: it should have at least 1 item",
        ),
        (
            {"corpus": {"files": "a.csv", "columns": {"id": "i", "txt": "t"}}, "queries": {}, "judgments": {}},
            "sources.mine.corpus.columns: unknown key 'txt'; did you mean 'text'?",
        ),
        (
            {"corpus": {"files": "a.csv", "columns": {"id": "i", "text": "t"}}, "judgments": {}},
            "sources.mine: key 'queries' is missing; add it, as in docs/parameters.md",
        ),
        ({"beir": ["data/raw/scifact"]}, "sources.mine.beir: ['data/raw/scifact'] is not allowed: it should be a"),
        (
            {"hub": "a/b", "split": {"valid": "x"}, "columns": {"query": "q", "passage": "p"}},
            "sources.mine.split.valid: 'valid' is not allowed: it should be 'unsplit', 'train', 'dev' or 'test'",
        ),
        (
            {"hub": "a/b", "split": "train", "limit": 0, "columns": {"query": "q", "passage": "p"}},
            "sources.mine.limit: 0 is not allowed: it should be greater than or equal to 1",
        ),
        (
            {"files": "a.csv", "columns": {"query": "q", "passage": "p", "negatives": ["n", 3]}},
            "sources.mine.columns.negatives: 3 is not allowed: it should be a valid string",
        ),
        ({"files": 3, "columns": {"query": "q", "passage": "p"}}, "sources.mine.files: 3 is not allowed: it should be"),
    ],
)
def test_problem_of_a_source_is_named_with_its_place(tmp_path: Path, source: object, message: str):
    assert problem(change_committed(tmp_path, sources={"mine": source})).startswith(message)


def test_source_without_a_name_is_said_to_be_so(tmp_path: Path):
    assert "'' is not allowed: it should have at least 1 character" in problem(
        change_committed(tmp_path, sources={"": {"packages": ["numpy"]}})
    )


def test_files_of_a_source_are_one_or_several(tmp_path: Path):
    columns = {"query": "q", "passage": "p"}
    several = {"one": {"files": "a.csv", "columns": columns}, "two": {"files": ["b.csv", "c.csv"], "columns": columns}}
    result = load_params(change_committed(tmp_path, sources=several)).sources
    assert [result["one"].files, result["two"].files] == [{"unsplit": ["a.csv"]}, {"unsplit": ["b.csv", "c.csv"]}]


@pytest.mark.parametrize(
    ("values", "key", "rule"),
    [
        ({"min_query_words": 9, "max_query_words": 3}, "prepare.max_query_words: 3", "min_query_words"),
        ({"dev_share": 0.5, "test_share": 0.5}, "prepare.test_share: 0.5", "leave some queries for train"),
        ({"num_layers": 3, "frozen_layers": 3}, "frozen_layers: 3", "must be below num_layers"),
        (
            {
                "num_layers": 5,
                "lora": {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": None},
            },
            "num_layers: 5",
            "does not go with lora",
        ),
        ({"range_min": 5, "num_negatives": 4, "range_max": 8}, "negatives.range_max: 8", "range_min + num_negatives"),
    ],
)
def test_keys_that_do_not_fit_together_are_named(tmp_path: Path, values: dict[str, object], key: str, rule: str):
    message = problem(change_committed(tmp_path, **values))
    assert message.startswith(key)
    assert rule in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"faq": "mse", "docs": "lamda"}}, "loss.docs: 'lamda' is not allowed: it should be 'group_softmax'"),
        ({"lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}}, "lora: key 'target_modules' is missing; add it"),
        (
            {"lora": {"r": 8, "alpha": 16, "lora_dropout": 0.1, "target_modules": None}},
            "lora: unknown key 'alpha'; did you mean 'lora_alpha'?",
        ),
        (
            {"lora": {"r": 0, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query"]}},
            "lora.r: 0 is not allowed: it should be greater than or equal to 1",
        ),
    ],
)
def test_problem_inside_a_key_of_training_is_named_with_its_place(
    tmp_path: Path, values: dict[str, object], message: str
):
    assert problem(change_committed(tmp_path, **values)).startswith(message)


def test_loss_is_one_or_one_for_each_source_and_one_evaluator_may_stand_alone(tmp_path: Path):
    by_source = {"faq": "mse", "docs": "lambda"}
    assert load_params(change_committed(tmp_path, loss=by_source)).loss == by_source
    assert load_params(change_committed(tmp_path, loss="adr_mse")).loss == "adr_mse"
    assert load_params(change_committed(tmp_path, evaluators="all_positives")).dev.evaluators == ["all_positives"]


def test_experiment_can_add_to_what_is_empty_and_take_another_loss_or_adapters(tmp_path: Path):
    path = write(tmp_path, COMMITTED.read_text(encoding="utf-8"))
    adapters = "lora={r: 4, lora_alpha: 8, lora_dropout: 0.0, target_modules: null}"
    apply_overrides(
        path, ["+trainer.max_steps=5", "+loss_arguments.k=3", "loss=lambda", "dev.evaluators=[all_positives]", adapters]
    )
    params = load_params(path)
    assert (params.trainer, params.loss_arguments, params.loss) == ({"max_steps": 5}, {"k": 3}, "lambda")
    assert params.dev.evaluators == ["all_positives"]
    assert params.lora.r == 4


def test_range_that_just_holds_the_negatives_is_allowed(tmp_path: Path):
    assert load_params(change_committed(tmp_path, range_min=5, num_negatives=4, range_max=9)).negatives.range_max == 9


@pytest.mark.parametrize("text", ["lr: [1", "a: *nowhere", "\tlr: 1", "lr: 1: 2"])
def test_malformed_yaml_is_said_to_be_so_with_the_line(tmp_path: Path, text: str):
    message = problem(write(tmp_path, text))
    assert message.startswith("not valid YAML:")
    assert "line 1" in message


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- lr", "list"), ("lr", "str")])
def test_file_without_keys_is_said_to_be_so(tmp_path: Path, text: str, kind: str):
    assert problem(write(tmp_path, text)) == f"must be `key: value` lines, not {kind}"


def test_bytes_that_are_not_utf8_are_said_to_be_so(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"lr: \xff")
    assert problem(path).startswith("not valid YAML:")


def test_missing_file_is_named_with_the_way_to_get_it_back(tmp_path: Path):
    assert "does not exist; restore it with `git checkout" in problem(tmp_path / "params.yaml")


def test_parameters_cannot_be_changed_after_reading():
    with pytest.raises(ValueError, match="frozen"):
        load_params(COMMITTED).lr = 1.0


def test_key_that_stands_there_twice_is_an_error(tmp_path: Path):
    path = write(tmp_path, COMMITTED.read_text(encoding="utf-8") + "lr: 1e-5\n")
    with pytest.raises(UserError, match=r"not valid YAML: .*duplicate key .lr."):
        load_params(path)


def test_folder_in_place_of_the_file_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="could not be read"):
        load_params(tmp_path)


BLOCKS = [
    block
    for page in ("README.md", "docs/parameters.md", "docs/how-to/your-data.md")
    for block in re.findall(
        r"```yaml\n(sources:.*?)```", (COMMITTED.parent / page).read_text(encoding="utf-8"), re.DOTALL
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_sources_of_the_docs_are_allowed(tmp_path: Path, block: str):
    sources = load_params(change_committed(tmp_path, **yaml.safe_load(block))).sources
    assert sources.keys() == yaml.safe_load(block)["sources"].keys()


def test_every_kind_of_source_stands_in_the_docs():
    kinds = {kind for block in BLOCKS for source in yaml.safe_load(block)["sources"].values() for kind in source}
    assert kinds >= {"files", "corpus", "hub"}
