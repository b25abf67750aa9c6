"""The typed schema of pairs/params.yaml; only that file has default values."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from reranker.common.params import CountOrZero, Evaluations, Minutes, Rate, Seed, Share, check_ascending
from reranker.common.params import read_params as read
from reranker.common.source_schema import ColumnNames, Count, Header, Name, Section, SplitFiles

Task = Literal["score", "duplicates", "class"]


class PairColumns(ColumnNames):
    """Columns of a table of labelled pairs."""

    first: Name
    second: Name
    label: Name


class PairSource(Section):
    """Files of labelled pairs."""

    files: SplitFiles
    columns: PairColumns
    header: Header = None
    quoted: bool = True


class PairParams(Section):
    """The keys under `pairs` of pairs/params.yaml, which documents their units and meaning."""

    task: Task
    source: PairSource
    lowest_score: float
    highest_score: float
    skip_labels: list[str | int]
    dev_share: Share
    test_share: Share
    allow_leakage: bool

    base_model: Name
    max_length: Annotated[int, Field(ge=8, le=8192)]
    precision: Literal["auto", "float32", "bfloat16"]
    checkpoint_minutes: Minutes

    lr: Rate
    head_lr: Rate
    frozen_layers: CountOrZero
    epochs: Count
    batch_size: Count
    warmup: Share
    weight_decay: Annotated[float, Field(ge=0)]
    evaluations: Evaluations
    patience: Count
    seed: Seed

    statistics_seed: Seed

    @model_validator(mode="after")
    def _consistent(self) -> "PairParams":
        if self.highest_score <= self.lowest_score:
            raise ValueError("highest_score|must be above lowest_score")
        if self.dev_share + self.test_share >= 1:
            raise ValueError("test_share|dev_share and test_share must leave some pairs for train")
        check_ascending(self.evaluations, "evaluations")
        return self


class _File(Section):
    pairs: PairParams


def read_params(path: Path) -> PairParams:
    """Read and check pairs/params.yaml.

    Raises:
        UserError: see `reranker.common.params.read_params`.
    """
    return read(path, _File).pairs
