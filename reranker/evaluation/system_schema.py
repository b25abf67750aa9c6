"""The schema of `systems` in compare/params.yaml: the keys that each kind of compared system may have."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from reranker.common.source_schema import Count, Length, Name, Names, Retriever, Section, kind_of

SystemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""A name that is also used for files."""
STANDARD_SYSTEMS = {
    "bm25": "bm25",
    "retriever": "hybrid",
    "tuned_biencoder": "biencoder",
    "untouched_reranker": "cross_encoder",
    "cross_encoder": "cross_encoder",
    "fusion_without_cross_encoder": "fused",
    "reranker": "fused",
}
"""The kinds of the systems that evaluate measures, with which those of `systems` are compared."""


class RetrieverSystem(Section):
    """`bm25` or an embedding model, or several of them, merged by reciprocal rank fusion."""

    retriever: Retriever


class BiencoderSystem(Section):
    """An embedding model. Prompts that are null are those that the model comes with."""

    biencoder: Name
    max_length: Length | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None


class StaticSystem(Section):
    """A static embedding."""

    static: Name


class CrossEncoderSystem(Section):
    """A cross-encoder, the first layers of one, or an exported one."""

    cross_encoder: Name
    num_layers: Count | None = None
    max_length: Length | None = None


class ExperimentSystem(Section):
    """A model that another revision has trained. Several revisions are repeats of one system."""

    experiment: Annotated[Names, Field(min_length=1)]
    model: Literal["reranker", "cross_encoder"] = "reranker"


class FusedSystem(Section):
    """The weighted sum of other systems' scores."""

    fused: Annotated[dict[Name, float], Field(min_length=1)]


class RunSystem(Section):
    """A file of scores in TREC's format."""

    run: Name


System = (
    RetrieverSystem | BiencoderSystem | StaticSystem | CrossEncoderSystem | ExperimentSystem | FusedSystem | RunSystem
)
SYSTEM_KINDS: dict[str, type[Section]] = {
    "retriever": RetrieverSystem,
    "biencoder": BiencoderSystem,
    "static": StaticSystem,
    "cross_encoder": CrossEncoderSystem,
    "experiment": ExperimentSystem,
    "fused": FusedSystem,
    "run": RunSystem,
}
"""The schema of each kind of system, by the key that tells the kind."""


def _read(entry: object) -> object:
    """An entry by the schema of its kind. A union of the schemas would name the kind as a key of each problem."""
    kind = kind_of(SYSTEM_KINDS)(entry)
    if kind is None:
        keys = ", ".join(SYSTEM_KINDS)
        raise PydanticCustomError("no_kind", f"should have one of the keys {keys}, which tells what it is")
    schema = SYSTEM_KINDS[kind]
    if isinstance(entry, dict) and not {*entry} <= {*schema.model_fields}:
        raise PydanticCustomError("unknown_key", f"should have no other keys than {', '.join(schema.model_fields)}")
    return schema.model_validate(entry)


Systems = dict[SystemName, Annotated[System, PlainValidator(_read)]]


def kind(system: System) -> str:
    """The kind of a system, as the tables name it."""
    if isinstance(system, RetrieverSystem):
        first, *others = system.retriever
        return "hybrid" if others else "bm25" if first == "bm25" else "retriever"
    if isinstance(system, ExperimentSystem):
        return "fused" if system.model == "reranker" else "cross_encoder"
    return next(name for name, model in SYSTEM_KINDS.items() if isinstance(system, model))


def in_order(systems: Mapping[str, System]) -> Iterator[tuple[str, System]]:
    """Yield the systems in an order in which each comes after the systems whose scores it adds.

    Raises:
        ValueError: a name is one that evaluate uses, or a part is no system, stands for several runs, or needs itself.
            The message consists of the key and of what is allowed, with a bar between them.
    """
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> Iterator[tuple[str, System]]:
        system = systems[name]
        for part in system.fused if isinstance(system, FusedSystem) else ():
            key = f"systems.{name}.fused"
            if part in STANDARD_SYSTEMS:
                continue
            if part not in systems:
                raise ValueError(
                    f"{key}|'{part}' is no system; the systems are {', '.join([*STANDARD_SYSTEMS, *systems])}"
                )
            if part in (*above, name):
                raise ValueError(f"{key}|'{part}' needs the scores of '{name}' itself")
            if len(repeats(systems[part])) > 1:
                raise ValueError(f"{key}|'{part}' stands for several experiments; name one that stands for one")
            yield from visit(part, (*above, name))
        if name not in done:
            done.add(name)
            yield name, system

    for name in systems:
        if name in STANDARD_SYSTEMS:
            raise ValueError(f"systems.{name}|is the name of a system that evaluate measures; choose another name")
        yield from visit(name, ())


def repeats(system: System) -> list[System]:
    """A list of the system itself, or of one system for each experiment that it names."""
    if not isinstance(system, ExperimentSystem):
        return [system]
    return [system.model_copy(update={"experiment": [name]}) for name in system.experiment]
