import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reranker.common import progress
from reranker.common.errors import UserError
from reranker.common.progress import quiet_libraries, run_stage, track

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_VERBOSITY",
    "TOKENIZERS_PARALLELISM",
)


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unset all switches, and restore them and the filters of warnings and logs after the test."""
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    for switch in SWITCHES:
        monkeypatch.setenv(switch, "")  # so that an unset one is unset again
        monkeypatch.delenv(switch)
    with warnings.catch_warnings():
        yield
    logger.setLevel(level)


def failing(error: BaseException):
    def main(arguments: Sequence[str]) -> str:
        raise error

    return main


def test_stage_prints_its_closing_line_and_succeeds(capsys: pytest.CaptureFixture[str]):
    assert run_stage(lambda arguments: f"made {arguments[0]}", ["three tables"]) == 0
    assert capsys.readouterr() == ("made three tables\n", "")


def test_bad_input_ends_a_stage_with_one_line_and_status_1(capsys: pytest.CaptureFixture[str]):
    assert run_stage(failing(UserError("params.yaml: lr: 'fast' is not allowed")), []) == 1
    assert capsys.readouterr() == ("", "error: params.yaml: lr: 'fast' is not allowed\n")


def test_interrupt_ends_a_stage_with_one_line_and_status_130(capsys: pytest.CaptureFixture[str]):
    assert run_stage(failing(KeyboardInterrupt()), []) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("interrupted")
    assert err.count("\n") == 1


def test_programming_error_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_stage(failing(ZeroDivisionError()), [])


@pytest.mark.usefixtures("bare_environment")
def test_hubs_are_out_of_reach_by_default():
    quiet_libraries()
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


@pytest.mark.usefixtures("bare_environment")
def test_hubs_are_in_reach_when_the_user_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    quiet_libraries()
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "0"


@pytest.mark.usefixtures("bare_environment")
def test_warnings_of_the_libraries_are_hidden_and_of_others_kept():
    warnings.simplefilter("always")
    quiet_libraries()
    with warnings.catch_warnings(record=True) as caught:
        for module in ("transformers.trainer", "torch", "torchlike", "reranker.data.dataset"):
            warnings.warn_explicit(f"from {module}", UserWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in caught] == ["from torchlike", "from reranker.data.dataset"]


def test_track_gives_every_item_and_is_silent_when_quick(capsys: pytest.CaptureFixture[str]):
    assert list(track("abc", "letters", "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_log_has_a_line_with_count_time_left_and_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.progress("train", 2000, "pairs") as bar:
        bar.advance(1500, note="loss 0.25")
        bar.advance(500)
    err = capsys.readouterr().err
    assert err.startswith("train: 1,500 of 2,000 pairs · ")
    assert err.endswith(" left · loss 0.25\n")
    assert err.count("\n") == 1  # the stage's closing line tells the end
