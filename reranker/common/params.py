"""The typed schema of params.yaml. Every default lives in params.yaml alone: a key left out is an error."""

import difflib
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from reranker.common.errors import UserError
from reranker.common.source_schema import KINDS, AnySource, Count, Name, Names, Section
from reranker.common.system_schema import EVALUATED, SYSTEM_KINDS, Length, Retriever, Systems, in_order

Share = Annotated[float, Field(ge=0, lt=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Minutes = Annotated[float, Field(ge=0)] | None
IndexName = Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq"]
LossName = Literal[
    "group_softmax",
    "binary_cross_entropy",
    "cross_entropy",
    "multiple_negatives_ranking",
    "cached_multiple_negatives_ranking",
    "mse",
    "margin_mse",
    "lambda",
    "list_net",
    "list_mle",
    "plist_mle",
    "rank_net",
    "adr_mse",
]
Losses = Annotated[
    Annotated[LossName, Tag("[one]")] | Annotated[dict[Name, LossName], Field(min_length=1), Tag("[by source]")],
    Discriminator(lambda value: "[by source]" if isinstance(value, dict) else "[one]"),
]
"""One for all queries, or one for those of each source."""
Evaluations = Annotated[
    Annotated[Count, Tag("[one]")] | Annotated[list[Count], Field(min_length=1), Tag("[steps]")],
    Discriminator(lambda value: "[steps]" if isinstance(value, list) else "[one]"),
]
"""How many, or at which steps."""
UNIONS = {"sources": KINDS, "systems": SYSTEM_KINDS}
"""Keys with entries of several kinds: what tells them apart."""
WITHOUT_EFFECT = frozenset(
    {"checkpoint_minutes", "engine", "review_min_gain", "review_max_loss", "review_alpha", "review_test_looks"}
)
"""Keys that no result depends on: a change need not run a stage again."""


class LoraSection(Section):
    """Low-rank adapters, with the names of peft's LoraConfig."""

    r: Count
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Share
    target_modules: Annotated[list[Name], Field(min_length=1)] | Name | None


class Params(Section):
    """params.yaml, key by key; units and meaning stand there."""

    sources: Annotated[dict[Name, AnySource], Field(min_length=1)]
    min_query_words: Count
    max_query_words: Count
    min_passage_chars: Count
    dev_share: Share
    test_share: Share
    allow_leakage: bool
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None

    base_model: Name
    retriever: Retriever
    query_prompt: str | None
    passage_prompt: str | None
    index: IndexName
    index_recall: Annotated[float, Field(ge=0, le=1)]
    max_length: Length
    biencoder_max_length: Length
    precision: Literal["auto", "float32", "bfloat16"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]
    backend: Literal["auto", "torch", "openvino", "openvino-int8", "onnx-int8"]
    engine: Literal["local", "ray"]
    checkpoint_minutes: Minutes
    launcher: Name

    warm_lr: Rate
    warm_queries: Count
    warm_batch_size: Annotated[int, Field(ge=2)]
    warm_max_length: Length
    warm_warmup: Share
    warm_weight_decay: Annotated[float, Field(ge=0)]
    warm_scale: Annotated[float, Field(gt=0)]
    warm_seed: Seed
    control_queries: Count

    static_model: Name
    static_lr: Rate
    static_queries: Count
    static_epochs: Count
    static_batch_size: Annotated[int, Field(ge=2)]
    static_dropout: Share
    static_scale: Annotated[float, Field(gt=0)]
    static_max_tokens: Count
    static_seed: Seed

    top_k: Count
    train_queries: Count
    num_negatives: Count
    random_share: Annotated[float, Field(ge=0, le=1)]
    range_min: CountOrZero
    range_max: Count
    sampling: Literal["top", "random", "buckets"]
    rescorer: Name | None
    absolute_margin: float | None
    relative_margin: Annotated[float, Field(ge=0, le=1)] | None
    max_score: float | None
    min_score: float | None
    group_guard: bool
    duplicate_similarity: Annotated[float, Field(gt=0, le=1)] | None
    containment: Annotated[float, Field(gt=0, le=1)] | None
    mining_seed: Seed

    lr: Rate
    head_lr: Rate
    loss: Losses
    loss_arguments: dict[Name, Any]
    targets: Literal["relevance", "teacher"]
    teacher: Name
    distillation: Annotated[float, Field(ge=0, le=1)]
    start_from_biencoder: bool
    num_layers: Count | None
    frozen_layers: CountOrZero
    lora: LoraSection | None
    epochs: Count
    batch_size: Count
    warmup: Share
    weight_decay: Annotated[float, Field(ge=0)]
    evaluations: Evaluations
    eval_queries: Count
    patience: Count
    evaluators: Annotated[Names, Field(min_length=1)]
    trainer: dict[Name, Any]
    seed: Seed

    student_layers: list[Count]

    statistics_seed: Seed

    systems: Systems
    baseline: Name
    judged_only: bool

    usd_per_hour: Annotated[float, Field(ge=0)]
    review_min_gain: Annotated[float, Field(ge=0)]
    review_max_loss: Annotated[float, Field(ge=0)]
    review_alpha: Annotated[float, Field(gt=0, lt=1)]
    review_test_looks: Count

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        if self.max_query_words < self.min_query_words:
            raise ValueError("max_query_words|must not be below min_query_words")
        if self.dev_share + self.test_share >= 1:
            raise ValueError("test_share|dev_share and test_share must leave some queries for train")
        if self.range_max < self.range_min + self.num_negatives:
            raise ValueError("range_max|must be at least range_min + num_negatives")
        if self.num_layers is not None and self.num_layers <= self.frozen_layers:
            raise ValueError("frozen_layers|must be below num_layers: one layer must be left to train")
        for layers in self.student_layers:
            if self.student_layers.count(layers) > 1:
                raise ValueError("student_layers|must not have a number twice")
        check_ascending(self.evaluations)
        known = [*EVALUATED, *(name for name, _ in in_order(self.systems))]
        if self.baseline not in known:
            raise ValueError(f"baseline|is no system; there are {', '.join(known)}")
        if self.num_layers is not None and self.lora is not None:
            raise ValueError("num_layers|does not go with lora: a student is trained whole; set one of them to null")
        return self


def check_ascending(evaluations: int | list[int]) -> None:
    """Check the order of the steps, where there are some; raises what `read_params` turns into a line."""
    if isinstance(evaluations, list) and evaluations != sorted(set(evaluations)):
        raise ValueError("evaluations|must be ascending steps, each once")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads `2e-05` as a number, as YAML 1.2 and DVC do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands there twice", key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load_params(path: Path) -> Params:
    """Read and check params.yaml, see `read_params`."""
    return read_params(path, Params)


Schema = TypeVar("Schema", bound=Section)


def read_params(path: Path, schema: type[Schema]) -> Schema:
    """Read and check a file of parameters.

    Raises:
        UserError: the file is missing or is not YAML, or a key is unknown, missing or out of range; the
            message names the key, the value and what is allowed.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; restore it with `git checkout {path}`") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be `key: value` lines, found {type(values).__name__}")
    try:
        return schema(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        # A misspelt key is unknown and missing at once; what was meant is the more helpful of the two.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(first, schema)}") from None


def _explain(problem: Any, schema: type[Section]) -> str:
    where, fields = _place(problem["loc"], schema)
    *parents, key = where or [""]
    inside = ".".join(parents) + ": " if parents else ""
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, fields, n=1)
        return f"{inside}unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "; remove it")
    if problem["type"] == "missing":
        example = "the committed params.yaml" if not parents else "docs/parameters.md"
        return f"{inside}key '{key}' is missing; add it, as in {example}"
    if problem["type"] == "union_tag_not_found":
        kinds = ", ".join(UNIONS[str(problem["loc"][0])])
        return f"{'.'.join(where)}: must have one of the keys {kinds}, which tells what it is"
    if problem["type"] == "value_error":
        key, _, allowed = str(problem["ctx"]["error"]).partition("|")
        value = problem["input"]
        for part in key.split("."):
            value = value[part]
        return f"{'.'.join([*where, key])}: {value!r}: {allowed}"
    allowed = re.sub(r"^\w+ should", "should", problem["msg"])
    return f"{'.'.join(where)}: {problem['input']!r} is not allowed: it {allowed}"


def _place(loc: tuple[int | str, ...], schema: type[Section]) -> tuple[list[str], Iterable[str]]:
    """The keys that lead to a problem, and which keys are known beside the last of them."""
    model: type[BaseModel] = schema
    rest = list(loc)
    if loc[:1] and loc[0] in UNIONS and len(loc) > 2:
        key, name, kind, *rest = loc  # pydantic puts the tag of a union between the key and what is in it
        model = UNIONS[str(key)].get(str(kind), Section)
        loc = (key, name, *rest)
    for parent in rest[:-1]:
        inner = model.model_fields[str(parent)].annotation if parent in model.model_fields else None
        inner = next((part for part in typing.get_args(inner) if part is not type(None)), inner)  # of `X | None`, X
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else Section
    tags = ("unsplit", "[key]", "[one]", "[by source]", "[steps]")
    keys = [part for part in loc if isinstance(part, str) and part not in tags]
    return keys, model.model_fields
