"""params.yaml with other values. A key inside a section may go by its last name where no other key has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reranker.common.params import Params


def with_values(values: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """The values, some of them changed.

    Args:
        values: of a file of parameters.
        changes: by key, such as `lr`, `negatives.range_max` or `range_max`.
    """
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key, value in changes.items():
        section, _, name = place(key).rpartition(".")
        (changed[section] if section else changed)[name] = value
    return changed


def place(key: str) -> str:
    """A key with its section before it."""
    if "." in key or key in Params.model_fields:
        return key
    sections = {name: field.annotation for name, field in Params.model_fields.items()}
    owners = [name for name, kind in sections.items() if key in getattr(kind, "model_fields", ())]
    return f"{owners[0]}.{key}" if len(owners) == 1 else key


def change(path: Path, **changes: object) -> None:
    """Give keys of a file of parameters other values; comments are lost."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    values = with_values(yaml.load(path), changes)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
