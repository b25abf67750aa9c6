"""The typed schema of compare/params.yaml; only that file has default values."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from reranker.common.params import read_params as read
from reranker.common.source_schema import Count, Name, Section
from reranker.evaluation.system_schema import STANDARD_SYSTEMS, Systems, in_order


class CompareParams(Section):
    """The keys under `compare` of compare/params.yaml, which documents their units and meaning."""

    control_queries: Count
    student_layers: list[Count]
    systems: Systems
    baseline: Name
    judged_only: bool
    usd_per_hour: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _consistent(self) -> "CompareParams":
        if len(set(self.student_layers)) < len(self.student_layers):
            raise ValueError("student_layers|must not have a number twice")
        systems = [*STANDARD_SYSTEMS, *(name for name, _ in in_order(self.systems))]
        if self.baseline not in systems:
            raise ValueError(f"baseline|is no system; the systems are {', '.join(systems)}")
        return self


class _File(Section):
    compare: CompareParams


def read_params(path: Path) -> CompareParams:
    """Read and check compare/params.yaml.

    Raises:
        UserError: see `reranker.common.params.read_params`.
    """
    return read(path, _File).compare
