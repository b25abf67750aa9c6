"""Write the keys of a recipe into the file of parameters; other keys and all comments stay.

python -m tools.recipe NAME

NAME is a file of recipes/ without its ending: `medquad` is written into params.yaml, and `pairs/stsb` into
pairs/params.yaml.
`git checkout params.yaml` brings the committed parameters back.
"""

import json
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase, CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.tokens import CommentToken

from reranker.common.artifacts import PATHS, write_text
from reranker.common.errors import UserError
from reranker.common.params import Params, read_params
from reranker.common.progress import run_stage
from reranker.pairs.params import read_params as read_pair_params

RECIPES = Path("recipes")
WHOLE = {"sources", "lora", "loss_arguments", "trainer", "source"}
"""Keys whose value replaces the earlier one as a whole, because users choose the names of the keys inside."""
VALUE_CHARACTERS = 60
"""Characters of a value in a message."""


def main(arguments: Sequence[str]) -> str:
    """Apply a recipe and check the result; a result that is not valid is not kept."""
    names = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))
    if len(arguments) != 1 or arguments[0] not in names:
        raise UserError(f"make recipe NAME=…: name one of the recipes {', '.join(names)}")
    (name,) = arguments
    pairs = name.startswith("pairs/")
    target = PATHS.pair_params if pairs else PATHS.params
    before = target.read_text(encoding="utf-8")
    text, changed = apply_recipe(before, (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    write_text(text, target)
    try:
        read_pair_params(target) if pairs else read_params(target, Params)
    except UserError:
        write_text(before, target)
        raise
    return "\n".join([*changed, f"recipe: {name}: {len(changed)} keys -> {target}"])


def apply_recipe(params: str, recipe: str) -> tuple[str, list[str]]:
    """Write the keys of a recipe into a file of parameters.

    Args:
        params: the text of the file.
        recipe: the text of the recipe, which has keys of the file and perhaps comments.

    Returns:
        The new text, and a line for each key with its earlier and its new value.
    """
    yaml = YAML()
    yaml.width = 4096
    null = ScalarNode("tag:yaml.org,2002:null", "null")
    yaml.representer.add_representer(type(None), lambda *_: null)
    values = yaml.load(params)
    changed = _merge(values, YAML().load(recipe), "")
    stream = StringIO()
    yaml.dump(values, stream)
    return stream.getvalue(), changed


def _merge(values: CommentedMap, recipe: CommentedMap, inside: str) -> list[str]:
    changed = []
    for key, value in recipe.items():
        old = values.get(key)
        if isinstance(value, CommentedMap) and isinstance(old, CommentedMap) and key not in WHOLE:
            changed += _merge(old, value, f"{inside}{key}.")
            continue
        behind = _lines_after(old)
        values[key] = value
        if behind:
            _put_after(value, behind)
        changed.append(f"{inside}{key}: {_one_line(old)} -> {_one_line(value)}")
    return changed


def _last(node: Any) -> tuple[CommentedBase, Any, int] | None:
    """The innermost last item of a block, and the place of its comment, which also has the lines after the block."""
    if not isinstance(node, CommentedMap | CommentedSeq) or not node or node.fa.flow_style():
        return None
    key, place = (next(reversed(node)), 2) if isinstance(node, CommentedMap) else (len(node) - 1, 0)
    return _last(node[key]) or (node, key, place)


def _lines_after(node: Any) -> str:
    """The blank lines and comments between a block and the next key."""
    last = _last(node)
    comments = last[0].ca.items.get(last[1]) if last else None
    token = comments[last[2]] if last and comments else None
    return token.value.partition("\n")[2] if token else ""


def _put_after(node: Any, lines: str) -> None:
    if last := _last(node):
        owner, key, place = last
        comments = owner.ca.items.setdefault(key, [None, None, None, None])
        own = comments[place].value if comments[place] else "\n"
        comments[place] = CommentToken(own + lines, CommentMark(0), None)


def _one_line(value: Any) -> str:
    """A value in one line, cut to `VALUE_CHARACTERS` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}…"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
