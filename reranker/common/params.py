"""The typed schema of params.yaml. Defaults stand in params.yaml alone, so a key that is left out is an error."""

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reranker.common.errors import UserError
from reranker.common.source_schema import KINDS, AnySource, Count, Length, Name, Names, Retriever, Section

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
"""One loss for all queries, or one for the queries of each source."""
Evaluations = Annotated[
    Annotated[Count, Tag("[one]")] | Annotated[list[Count], Field(min_length=1), Tag("[steps]")],
    Discriminator(lambda value: "[steps]" if isinstance(value, list) else "[one]"),
]
"""The number of evaluations, or the steps at which they happen."""
Unions = Mapping[str, Mapping[str, type[Section]]]
"""Keys whose entries are of several kinds: the schema of each kind, by the key that tells the kind."""
SOURCES: Unions = {"sources": KINDS}

WITHOUT_EFFECT = frozenset({"execution", "review"})
"""Sections that no result depends on, so that a change need not run a stage again."""


class LoraSection(Section):
    """Low-rank adapters. The keys have the names of peft's LoraConfig."""

    r: Count
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Share
    target_modules: Annotated[list[Name], Field(min_length=1)] | Name | None


class PrepareSection(Section):
    """How the sources become tables."""

    min_query_words: Count
    max_query_words: Count
    min_passage_chars: Count
    dev_share: Share
    test_share: Share
    allow_leakage: bool
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None


class IndexSection(Section):
    """The index over the passages' vectors."""

    kind: IndexName
    min_recall: Annotated[float, Field(ge=0, le=1)]


class BiencoderSection(Section):
    """Which transformer is tuned as a bi-encoder, and how."""

    base_model: Name
    max_length: Length
    lr: Rate
    queries: Count
    batch_size: Annotated[int, Field(ge=2)]
    train_max_length: Length
    warmup: Share
    weight_decay: Annotated[float, Field(ge=0)]
    scale: Annotated[float, Field(gt=0)]
    seed: Seed


class StaticSection(Section):
    """Which static embedding is tuned, and how."""

    model: Name
    lr: Rate
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    dropout: Share
    scale: Annotated[float, Field(gt=0)]
    max_tokens: Count
    seed: Seed


class NegativesSection(Section):
    """Which candidates become hard negatives."""

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
    seed: Seed


class DevSection(Section):
    """How the best checkpoint is chosen."""

    evaluations: Evaluations
    queries: Count
    patience: Count
    evaluators: Annotated[Names, Field(min_length=1)]


class EvaluationSection(Section):
    """How systems are measured."""

    seed: Seed


class ComputeSection(Section):
    """Precision, attention and backend of the models."""

    precision: Literal["auto", "float32", "bfloat16"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]
    backend: Literal["auto", "torch", "openvino", "openvino-int8", "onnx-int8"]


class ExecutionSection(Section):
    """Where the stages run, and how often they save checkpoints."""

    launcher: Name
    engine: Literal["local", "ray"]
    checkpoint_minutes: Minutes


class ReviewSection(Section):
    """What a review demands of a change."""

    min_gain: Annotated[float, Field(ge=0)]
    max_loss: Annotated[float, Field(ge=0)]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    test_looks: Count


class Params(Section):
    """The keys of params.yaml, where their units and meanings stand."""

    sources: Annotated[dict[Name, AnySource], Field(min_length=1)]

    base_model: Name
    retriever: Retriever
    retriever_share: Annotated[float, Field(gt=0, lt=1)]
    query_prompt: str | None
    passage_prompt: str | None
    max_length: Length

    top_k: Count
    train_queries: Count
    num_negatives: Count

    lr: Rate
    head_lr: Rate
    epochs: Count
    batch_size: Count
    warmup: Share
    weight_decay: Annotated[float, Field(ge=0)]
    loss: Losses
    loss_arguments: dict[Name, Any]
    targets: Literal["relevance", "teacher"]
    teacher: Name
    distillation: Annotated[float, Field(ge=0, le=1)]
    num_layers: Count | None
    frozen_layers: CountOrZero
    lora: LoraSection | None
    trainer: dict[Name, Any]
    seed: Seed

    prepare: PrepareSection
    index: IndexSection
    static: StaticSection
    biencoder: BiencoderSection
    negatives: NegativesSection
    dev: DevSection
    evaluation: EvaluationSection
    compute: ComputeSection
    execution: ExecutionSection
    review: ReviewSection

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        prepare, negatives = self.prepare, self.negatives
        if prepare.max_query_words < prepare.min_query_words:
            raise ValueError("prepare.max_query_words|must not be below min_query_words")
        if prepare.dev_share + prepare.test_share >= 1:
            raise ValueError("prepare.test_share|dev_share and test_share must leave some queries for train")
        if negatives.range_max < negatives.range_min + self.num_negatives:
            raise ValueError("negatives.range_max|must be at least range_min + num_negatives")
        if self.num_layers is not None and self.num_layers <= self.frozen_layers:
            raise ValueError("frozen_layers|must be below num_layers: one layer must be left to train")
        check_ascending(self.dev.evaluations, "dev.evaluations")
        if self.num_layers is not None and self.lora is not None:
            raise ValueError("num_layers|does not go with lora: a student is trained whole; set one of them to null")
        return self

    def with_effect(self) -> dict[str, Any]:
        """The values that a result may depend on, which are all but those of `WITHOUT_EFFECT`."""
        return self.model_dump(exclude=set(WITHOUT_EFFECT))


def check_ascending(evaluations: int | list[int], key: str) -> None:
    """Check that steps are in ascending order.

    Args:
        evaluations: the number of evaluations, or their steps.
        key: the key in params.yaml, for the message.

    Raises:
        ValueError: the steps are not ascending; `read_params` turns this into a line.
    """
    if isinstance(evaluations, list) and evaluations != sorted(set(evaluations)):
        raise ValueError(f"{key}|must be ascending steps, each once")


def load_params(path: Path) -> Params:
    """Read and check params.yaml; see `read_params`."""
    return read_params(path, Params)


Schema = TypeVar("Schema", bound=Section)


def read_params(path: Path, schema: type[Schema], unions: Unions = SOURCES) -> Schema:
    """Read and check a file of parameters.

    Args:
        path: the file.
        schema: what it must hold.
        unions: keys whose entries are of several kinds, at the top level or in a section.

    Raises:
        UserError: the file is missing or is not YAML, or a key is unknown, missing or out of range; the
            message names the key, the value and what is allowed.
    """
    try:
        # DVC reads and writes YAML 1.2, in which 2e-05 is a number and `no` and `on` are texts.
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; restore it with `git checkout {path}`") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror or error})") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be `key: value` lines, not {type(values).__name__}")
    try:
        return schema(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        # A misspelt key is unknown while the right one is missing; the message on the unknown key helps more.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(first, schema, unions)}") from None


def _explain(problem: Any, schema: type[Section], unions: Unions) -> str:
    where, fields = _locate(problem["loc"], schema, unions)
    *parents, key = where or [""]
    inside = ".".join(parents) + ": " if parents else ""
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, fields, n=1)
        return f"{inside}unknown key '{key}'" + (f"; did you mean '{fields[near[0]]}'?" if near else "; remove it")
    if problem["type"] == "missing":
        example = "docs/parameters.md" if {*problem["loc"]} & unions.keys() else "the committed params.yaml"
        return f"{inside}key '{key}' is missing; add it, as in {example}"
    if problem["type"] == "union_tag_not_found":
        kinds = ", ".join(next(unions[part] for part in problem["loc"] if part in unions))
        return f"{'.'.join(where)}: must have one of the keys {kinds}, which tells what it is"
    if problem["type"] == "value_error":
        key, _, allowed = str(problem["ctx"]["error"]).partition("|")
        value = problem["input"]
        for part in key.split("."):
            value = value[part]
        return f"{'.'.join([*where, key])}: {value!r}: {allowed}"
    allowed = re.sub(r"^\w+ should", "should", problem["msg"])
    return f"{'.'.join(where)}: {problem['input']!r} is not allowed: it {allowed}"


def _locate(loc: tuple[int | str, ...], schema: type[Section], unions: Unions) -> tuple[list[str], dict[str, str]]:
    """Locate a problem.

    Returns:
        The keys that lead to the problem, and the full key of each name that could replace the last of them. At the
        top level these include the keys inside the sections.
    """
    model: type[BaseModel] = schema
    rest = list(loc)
    union = next((place for place, part in enumerate(loc) if part in unions), None)
    if union is not None and len(loc) > union + 2:
        key, _, kind, *rest = loc[union:]  # pydantic puts the tag of a union before the key inside it
        model = unions[str(key)].get(str(kind), Section)
        loc = (*loc[: union + 2], *rest)
    for parent in rest[:-1]:
        model = _section(model, str(parent)) or Section
    tags = ("unsplit", "[key]", "[one]", "[by source]", "[steps]")
    keys = [part for part in loc if isinstance(part, str) and part not in tags]
    inside = {name: f"{key}.{name}" for key in model.model_fields for name in _fields(_section(model, key))}
    return keys, {**(inside if len(loc) == 1 else {}), **{key: key for key in model.model_fields}}


def _section(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The schema of a key's value, or None if the value is no section."""
    inner = model.model_fields[key].annotation if key in model.model_fields else None
    inner = next((part for part in typing.get_args(inner) if part is not type(None)), inner)  # X of `X | None`
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _fields(section: type[BaseModel] | None) -> Iterable[str]:
    return section.model_fields if section else ()
