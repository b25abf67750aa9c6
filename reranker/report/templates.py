"""Fill the templates of the pages. A page is one HTML file that needs no network.

The scripts are part of the page, and its Content-Security-Policy allows only these scripts, by their hashes.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from reranker.report.figures import DARK, LIGHT, Picture

FOLDER = Path(__file__).parent


def fill(template: str, scripts: Sequence[str], pictures: Mapping[str, Picture], **values: object) -> str:
    """Fill a template.

    Args:
        template: the name of its file.
        scripts: the names of the files of the page's scripts, in the order in which they run.
        pictures: the figures of the page; the template finds their SVG under `figures`.
        values: whatever else the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in scripts]
    return environment.get_template(template).render(
        scripts=[Markup(text) for text in texts],  # noqa: S704  our own files
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in texts),
        light=LIGHT,
        dark=DARK,
        figures={name: _inline(picture, name) for name, picture in pictures.items()},
        **values,
    )


def _inline(picture: Picture, name: str) -> Markup:
    """Prepare an SVG for the page: give it unique ids, the page's colours and its alternative text."""
    body = picture.svg[picture.svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<title>.*?</title>\s*|<style.*?</style>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    view_box = re.search(r'viewBox="[^"]*"', body)
    inner = body[body.index(">") + 1 :]
    for tip in picture.tips:
        part = f'<g id="{name}-{tip.id}"'
        inner = inner.replace(part, f'{part} class="point" tabindex="0" role="img" aria-label="{escape(tip.text)}"')
    role = "group" if picture.tips else "img"  # elements inside an image cannot get the focus
    opening = f'<svg role="{role}" aria-label="{escape(picture.alt)}" {view_box.group() if view_box else ""}>'
    return Markup(opening + inner)  # noqa: S704  matplotlib escaped the names inside, escape() the text above


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
