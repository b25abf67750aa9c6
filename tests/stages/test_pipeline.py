"""The files dvc.yaml, stages/ and the files params.yaml agree: what a stage reads is what DVC watches."""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel

from reranker.common.params import WITHOUT_EFFECT, Params
from reranker.evaluation.compare_params import CompareParams
from reranker.pairs.params import PairParams
from stages.train import CARD_PARAMS

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"rerank"}
"""Scripts beside the stages that DVC does not run."""
SCRIPTS = sorted(
    path.relative_to(ROOT / "stages").with_suffix("").as_posix()
    for folder in ("stages", "stages/compare")
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in {"__init__", *COMMANDS}
)
FILES = "dvc.yaml", "export/dvc.yaml", "compare/dvc.yaml"
"""Pipelines whose scripts read params.yaml."""
PACKAGES = ("reranker", "stages")


def sections(schema: type[BaseModel], above: str = "") -> dict[str, list[str]]:
    """The keys of each section of a file of parameters, all with what stands above them."""
    return {
        f"{above}{name}": [f"{above}{name}.{key}" for key in field.annotation.model_fields]
        for name, field in schema.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


SECTIONS = sections(Params) | sections(CompareParams, "compare.")
KEYS = {
    *Params.model_fields,
    *(f"compare.{name}" for name in CompareParams.model_fields),
    *(key for keys in SECTIONS.values() for key in keys),
}
OF_USERS = {"data/raw": {"prepare"}, "data/teachers": {"train", "students"}, "data/runs": {"systems"}}
"""Folders with files of the user's, and the stages that read them."""
ROOTS: dict[str, list[str]] = {"params": [], "compare": ["compare"]}
"""The names that scripts give to their parameters, and what stands above the keys in the file."""
MANY = 3
"""Files of a folder from which a stage depends on the whole folder."""
WITHOUT_TORCH = (
    "reranker.common.artifacts", "reranker.common.params", "reranker.data.dataset", "reranker.data.sources.readers",
    "reranker.evaluation.comparison", "reranker.evaluation.costs", "reranker.evaluation.metrics",
    "reranker.evaluation.significance", "reranker.evaluation.trec", "reranker.inference.fusion",
    "reranker.evaluation.compare_params", "reranker.pairs.metrics", "reranker.report.comparison_page",
    "reranker.report.cost_figures", "reranker.report.page",
    "stages.compare.page", "stages.evaluate", "stages.pairs.prepare", "stages.prepare", "stages.report",
)  # fmt: skip


class Stage(NamedTuple):
    """A stage of dvc.yaml as it is written: `${...}` is not filled in."""

    name: str
    cmd: str
    desc: str
    repeated: bool
    deps: list[str]
    params: list[str]
    outs: list[str]

    @property
    def script(self) -> Path:
        """The file that the command runs; two stages may share one."""
        module = self.cmd.removeprefix("python").removeprefix("${execution.launcher}").removeprefix(" -m ").split()[0]
        return ROOT.joinpath(*module.split(".")).with_suffix(".py")

    @property
    def code_deps(self) -> set[str]:
        """The files and folders of the repo's packages among the deps."""
        return {path for path in self.deps if path.split("/")[0] in PACKAGES}

    @property
    def keys(self) -> set[str]:
        """The keys of files of parameters that it names; a section stands for all of its keys."""
        return {key for name in self.params for key in SECTIONS.get(name, [name])}


def read_stages(text: str) -> list[Stage]:
    """Read the stages of a dvc.yaml, in its order; a matrix or foreach stage is one."""
    stages = []
    for name, body in yaml.safe_load(text)["stages"].items():
        stage = body.get("do", body)
        outs = [out for kind in ("outs", "metrics", "plots") for out in paths(stage.get(kind, []))]
        stages.append(
            Stage(
                name=name,
                cmd=stage["cmd"],
                desc=stage.get("desc", body.get("desc", "")),
                repeated="foreach" in body or "matrix" in body,
                deps=paths(stage.get("deps", [])),
                params=param_names(stage.get("params", [])),
                outs=outs,
            )
        )
    return stages


def paths(entries: list[Any]) -> list[str]:
    """Name each entry, which is a path or `path: {options}`."""
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


def param_names(entries: list[Any]) -> list[str]:
    """Name each key, which stands alone or in a list under its file's name."""
    return [
        key
        for entry in entries
        for key in ([entry] if isinstance(entry, str) else [key for keys in entry.values() for key in keys])
    ]


def imported_files(script: Path) -> set[Path]:
    """Follow the imports of a script inside the repo, those in functions included; the script itself is one."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [file for module in imported_modules(path) if (file := module_file(module))]
    return found


def imported_modules(path: Path) -> set[str]:
    """Name what a file imports; `from a import b` gives `a` and `a.b`, either of which may be a file."""
    package = path.relative_to(ROOT).parent.parts
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*parents, *filter(None, [node.module])])
            modules |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return modules


def module_file(module: str) -> Path | None:
    """Find the file of a module of this repo; a package's __init__.py is only a docstring and is left out."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if module.split(".")[0] in PACKAGES and path.is_file() else None


def used_params(script: Path, known: Container[str] = frozenset(KEYS)) -> set[str]:
    """Name the keys of `params` and `compare` in a script, such as `negatives.range_max` and `compare.systems`."""
    return params_under(ast.parse(script.read_text(encoding="utf-8")), known)


def always_used_params(script: Path) -> set[str]:
    """Name those that `main` takes outside every `if`: whatever the arguments are, they are read."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            node.body, node.orelse = [], []
        elif isinstance(node, ast.IfExp):
            node.body = node.orelse = ast.Constant(None)
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return params_under(main, KEYS)


def params_under(tree: ast.AST, known: Container[str]) -> set[str]:
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = [chain(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in inner]
    # of params.sources.items the key is `sources`
    prefixes = ([".".join(name[:length]) for length in range(len(name), 0, -1)] for name in names)
    used = {key for of_name in prefixes if (key := next((each for each in of_name if each in known), None))}
    keys = {key for name in used for key in SECTIONS.get(name, [name])}
    return {key for key in keys if key.partition(".")[0] not in WITHOUT_EFFECT}


def chain(node: ast.expr) -> list[str]:
    """The attributes that are taken from `params` one after the other, or `compare` and its; none of another object."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in ROOTS:
        return []
    return [*ROOTS[node.id], *names]


def handed_on(script: Path) -> list[int]:
    """Find the lines that give all parameters to a function of another file, where no key can be seen."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [
        call.lineno
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and not (isinstance(call.func, ast.Name) and call.func.id in own)
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(argument, ast.Name) and argument.id in ROOTS
    ]


def relative(files: set[Path]) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return [stage for name in FILES for stage in read_stages((ROOT / name).read_text(encoding="utf-8"))]


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> Path:
    return ROOT / "stages" / f"{request.param}.py"


@pytest.fixture
def users(script: Path, stages: list[Stage]) -> list[Stage]:
    """The stages that run the script: one, or a few with different arguments."""
    return [stage for stage in stages if stage.script == script]


def test_every_stage_runs_a_script_and_every_script_has_a_stage_of_its_name(stages: list[Stage]) -> None:
    scripts = [stage.script.relative_to(ROOT / "stages").with_suffix("").as_posix() for stage in stages]
    assert {*scripts} == {*SCRIPTS}
    assert {stage.name for stage in stages} >= {Path(script).name for script in SCRIPTS}


def expected_deps(script: Path) -> set[str]:
    """The files that a script imports; in place of `MANY` or more of a folder, the folder."""
    files = {Path(name) for name in relative(imported_files(script))}
    packages = Counter(parent for file in files for parent in file.parents if len(parent.parts) == 2)
    folders = {folder for folder, number in packages.items() if number >= MANY and folder.parts[0] == "reranker"}
    return {(next((folder for folder in folders if file.is_relative_to(folder)), file)).as_posix() for file in files}


def test_deps_are_what_the_script_imports(script: Path, users: list[Stage]) -> None:
    for stage in users:
        assert stage.code_deps == expected_deps(script), stage.name


def test_page_template_and_scripts_lie_in_a_folder_that_report_depends_on() -> None:
    assets = {path.parent for path in (ROOT / "reranker").rglob("*") if path.suffix in {".jinja", ".js"}}
    assert assets == {ROOT / "reranker" / "report"}
    for script in ("report", "compare/page"):
        assert "reranker/report" in expected_deps(ROOT / "stages" / f"{script}.py")


def test_params_are_the_keys_that_the_script_reads(script: Path, users: list[Stage]) -> None:
    assert {key for stage in users for key in stage.keys} == used_params(script)
    for stage in users:
        assert stage.keys >= always_used_params(script), stage.name
        assert len(stage.keys) == sum(len(SECTIONS.get(name, [name])) for name in stage.params), stage.name


def test_only_their_stages_depend_on_folders_with_files_of_the_users(stages: list[Stage]) -> None:
    users = {folder: {stage.name for stage in stages if folder in stage.deps} for folder in OF_USERS}
    assert users == OF_USERS
    assert all((ROOT / folder / "README.md").is_file() for folder in OF_USERS)


def test_no_script_hides_its_keys_by_handing_all_params_on(script: Path) -> None:
    assert handed_on(script) == []


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_stage_of_pairs_names_the_files_and_keys_that_its_script_uses(name: str) -> None:
    (stage,) = (
        stage for stage in read_stages((ROOT / "pairs" / "dvc.yaml").read_text(encoding="utf-8")) if stage.name == name
    )
    assert stage.script == ROOT / "stages" / "pairs" / f"{name}.py"
    assert stage.code_deps == expected_deps(stage.script)
    used = used_params(stage.script, PairParams.model_fields) - {"checkpoint_minutes"}
    assert {key.removeprefix("pairs.") for key in stage.params} == used
    assert handed_on(stage.script) == []
    assert "requirements.lock" in stage.deps


def test_every_stage_depends_on_the_locked_packages(stages: list[Stage]) -> None:
    assert [stage.name for stage in stages if "requirements.lock" not in stage.deps] == []


def test_every_stage_says_what_it_does(stages: list[Stage]) -> None:
    assert [stage.name for stage in stages if not stage.desc] == []


def test_no_out_is_listed_twice_or_lies_inside_another(stages: list[Stage]) -> None:
    outs = sorted(out for stage in stages for out in stage.outs)
    assert [(a, b) for a in outs for b in outs if b.startswith(f"{a}/")] == []
    assert len(set(outs)) == len(outs)


def test_what_dvc_registers_shows_and_draws_is_an_out_of_a_stage(stages: list[Stage]) -> None:
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    drawn = [path for entry in body["plots"] for path in ([entry] if isinstance(entry, str) else sources_of(entry))]
    named = [body["artifacts"]["reranker"]["path"], *body["metrics"], *drawn]
    assert len(drawn) == len(body["plots"])
    outs = {out for stage in stages for out in stage.outs}
    assert [path for path in named if not outs & {path, str(Path(path).parent)}] == []
    assert "metrics/costs.csv" not in body["metrics"]  # its times differ from run to run


def sources_of(plot: dict[str, dict[str, Any]]) -> list[str]:
    """The files of a plot of columns."""
    return [path for options in plot.values() for path in options["y"]]


def test_outs_of_a_repeated_stage_differ_by_item(stages: list[Stage]) -> None:
    assert [out for stage in stages if stage.repeated for out in stage.outs if "${" not in out] == []


def test_params_file_has_the_keys_of_the_schema_in_its_order() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert list(values) == list(Params.model_fields)
    compared = yaml.safe_load((ROOT / "compare" / "params.yaml").read_text(encoding="utf-8"))
    assert list(compared) == ["compare"]
    assert list(compared["compare"]) == list(CompareParams.model_fields)
    values |= {f"compare.{name}": value for name, value in compared["compare"].items()}
    assert {name: [f"{name}.{key}" for key in values[name]] for name in SECTIONS} == SECTIONS


def test_parameters_on_the_model_card_are_among_those_that_train_reads(stages: list[Stage]) -> None:
    (train,) = (stage for stage in stages if stage.name == "train")
    assert {*CARD_PARAMS} <= train.keys


def test_no_figure_has_the_name_of_a_parameter_or_of_another_stages_figure() -> None:
    """Else `dvc exp show` puts the name of the file before both columns."""
    named = Counter(KEYS - {*SECTIONS})
    for stage in ("prepare", "mine", "train", "evaluate"):
        named.update(json.loads((ROOT / "metrics" / f"{stage}.json").read_text(encoding="utf-8")).keys())
    assert [name for name, times in named.items() if times > 1] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_files_hold_no_code(package: str) -> None:
    for path in {*(ROOT / package).rglob("__init__.py")} - {ROOT / "reranker" / "__init__.py"}:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        assert all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in statements), path


def test_reranker_never_imports_stages() -> None:
    for path in (ROOT / "reranker").rglob("*.py"):
        assert not {module for module in imported_modules(path) if module.split(".")[0] == "stages"}, path


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_module_does_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reader_sees_repeated_stages_options_and_params_of_a_file() -> None:
    text = """
    stages:
      prepare:
        desc: text to tables
        cmd: python -m stages.prepare
        deps: [stages/prepare.py, reranker, {data/raw: {hash: md5}}]
        params: [dev_share, {params.yaml: [test_share]}]
        outs: [data/prepared]
        metrics: [{metrics/prepare.json: {cache: false}}]
      score:
        foreach: [{system: bm25}]
        do:
          cmd: python -m stages.score ${item.system}
          outs: ["data/scored/${item.system}.parquet"]
    """
    prepare, score = read_stages(text)
    assert prepare.deps == ["stages/prepare.py", "reranker", "data/raw"]
    assert prepare.code_deps == {"stages/prepare.py", "reranker"}
    assert prepare.params == ["dev_share", "test_share"]
    assert prepare.outs == ["data/prepared", "metrics/prepare.json"]
    assert (prepare.repeated, score.repeated) == (False, True)


def test_imports_are_followed_through_modules_and_inside_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    files = {
        "stages/one.py": "from reranker import a\nimport json\n",
        "reranker/a.py": "def f():\n    from reranker.b import g\n    return g\n",
        "reranker/b.py": "from . import c\nfrom .d import x\n",
        "reranker/c.py": "",
        "reranker/d.py": "x = 1\n",
        "reranker/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = relative(imported_files(tmp_path / "stages" / "one.py"))
    assert found == set(files) - {"reranker/unused.py"}


def test_keys_read_always_or_in_a_branch_and_all_params_handed_on_are_found(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text(
        "def main(params):\n    if params.loss:\n        return params.lr\n"
        "    print(params.index, params.review.alpha)\n"
        "    return params.seed if params.dev.patience else 0\nmain(params)\ntrain(params)\n"
        "print(compare.systems, compare.baseline)\n",
        encoding="utf-8",
    )
    compared = {"compare.systems", "compare.baseline"}
    assert used_params(script) == {"loss", "lr", "seed", "dev.patience", "index.kind", "index.min_recall", *compared}
    assert always_used_params(script) == {"loss", "dev.patience", "index.kind", "index.min_recall"}
    assert handed_on(script) == [7]
