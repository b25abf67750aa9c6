"""What a program gets that imports the package: a reranker, and nothing of its own changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import reranker

ROOT = Path(__file__).resolve().parents[1]
STATE = """
import json, logging, os, sys, warnings
import bm25s, datasets, sentence_transformers, torch, transformers  # what these change themselves does not count

def state():
    loggers = logging.root.manager.loggerDict.items()
    levels = {name: logger.level for name, logger in loggers if hasattr(logger, "level")}
    filters = {str(number): str(each) for number, each in enumerate(warnings.filters)}
    return [dict(os.environ), {"root": logging.root.level}, levels, filters]

logging.getLogger("sentence_transformers").setLevel(logging.INFO)
logging.getLogger("sentence_transformers.base")
before = state()
from reranker import Reranker, Search, choose_compute
after = state()
loaded = [name for name in ("openvino", "openvino_telemetry", "nncf", "dvc") if name in sys.modules]
new = [{key: now[key] for key in now if now[key] != old.get(key, 0)} for old, now in zip(before, after)]
print(json.dumps([new, loaded]))
"""


@pytest.mark.slow
def test_import_changes_no_environment_variable_logging_level_or_warning_filter() -> None:
    done = subprocess.run([sys.executable, "-c", STATE], cwd=ROOT, capture_output=True, text=True, check=True)
    # a logger that is new has the level 0, with which it takes its parent's
    assert json.loads(done.stdout) == [[{}, {}, {}, {}], []]


def test_public_names_are_there_and_others_are_not() -> None:
    assert {*reranker.__all__} == {"Reranker", "Search", "choose_compute"}
    assert {each.__module__ for each in (reranker.Reranker, reranker.Search)} == {"reranker.inference.reranker"}
    assert reranker.choose_compute("float32").precision == "float32"
    with pytest.raises(AttributeError, match="module 'reranker' has no attribute 'Rerankers'"):
        _ = reranker.Rerankers


def test_package_itself_brings_no_torch() -> None:
    code = "import sys, reranker; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
