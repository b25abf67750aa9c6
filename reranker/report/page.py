"""The figures of a run as one page: a file that needs no network.

The page is the same to the byte for the same numbers. Its scripts are a part of it, and its Content-Security-Policy
lets run nothing but them, by their hashes.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from reranker.report.explorer import Passage, Query, cut, pack, worst
from reranker.report.figures import DARK, LIGHT, Picture
from reranker.report.tables import (
    BASELINE,
    SHIPPED,
    compared_rows,
    comparison_rows,
    cost_rows,
    count,
    headline,
    result_rows,
    score,
    signed,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCRIPTS = tuple(TEMPLATE.with_name(name) for name in ("explorer.js", "tips.js"))
SHOWN_LOSSES = 50
"""Queries of the table that stands there without a script and in print."""
SHOWN_ORIGINS = 3
"""Dropped rows that are named for each reason."""
SHOWN_LEAKS = 5
"""Leaks of each kind and split that are shown."""
CUT_TEXT = 120
"""Characters of a dropped text that are shown."""
CUT_PASSAGE = 200
"""The same of a candidate, and of the right passage beside it."""
CUT_QUERY = 300
"""The same of a query in two splits: the words in which two differ may come late."""
LEAK_COLUMNS = ("query", "split", "other", "other_split", "equal")
AUDIT_COLUMNS = ("verdict", "teacher_score", "teacher_score_of_right", "query", "passage", "right_passage")


class Numbers(NamedTuple):
    """What the page shows, as the earlier stages wrote it."""

    systems: pd.DataFrame
    """One row per system and mode, in the order of display; columns `SYSTEM_COLUMNS`."""
    evaluation: Mapping[str, float]
    """evaluate.json."""
    prepare: Mapping[str, object]
    dropped: pd.DataFrame
    """Some of the dropped rows; columns reason, origin, query and passage."""
    leaks: pd.DataFrame
    """Some of the queries that stand in two splits; columns `LEAK_COLUMNS`."""
    mine: Mapping[str, object]
    audit: pd.DataFrame
    """The most suspicious candidates of mining, the most suspicious first, and some that were refused for each reason;
    columns `AUDIT_COLUMNS`, as text."""
    train: Mapping[str, object]
    comparison: pd.DataFrame
    """Columns `COMPARISON_COLUMNS`."""
    costs: pd.DataFrame
    """Columns `evaluation.costs.COST_COLUMNS`."""
    queries: Sequence[Query]
    """The test queries, one at least, as `explorer.explore` gives them."""
    passages: Mapping[str, Passage]
    """Those that the queries name, by passage_id."""


class Fact(NamedTuple):
    """A line of a two-column table."""

    label: str
    value: str


class DropRow(NamedTuple):
    """A reason for which rows are dropped."""

    reason: str
    rows: str
    text: str
    """Of the first of them."""
    origins: str
    """The first few of them."""


class LeakRow(NamedTuple):
    """A query that stands in two splits in the same or nearly the same words."""

    query: str
    split: str
    other: str
    other_split: str
    likeness: str


class RefusedRow(NamedTuple):
    """A reason for which candidates are refused as negatives, with one of them if there is any."""

    reason: str
    candidates: str
    query: str
    passage: str
    right: str


class AuditRow(NamedTuple):
    """A candidate that may be a right answer which nobody has labelled."""

    query: str
    passage: str
    right: str
    """The right passage."""
    scores: str
    """The teacher's of the candidate and of the right passage."""
    verdict: str


class LossRow(NamedTuple):
    """A query that the reranker loses on against the retriever."""

    query_id: str
    query: str
    change: str
    """Of NDCG@10, with the figures of both."""
    right: str
    """The right passage that the reranker puts first."""
    ranks: str
    """Of that passage with the retriever and the reranker."""
    first: str
    """The passage that the reranker puts first."""
    reason: str


class TokenRow(NamedTuple):
    """Lengths of one kind of text."""

    label: str
    p50: str
    p90: str
    p99: str
    longest: str


def page(numbers: Numbers, pictures: Mapping[str, Picture]) -> str:
    """The report as one HTML file.

    Args:
        numbers: see `Numbers`.
        pictures: `systems`, `size`, `latency`, `training`, `gains` and `lengths`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    scripts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    shown_apart = re.compile("dropped_|refused_|(query|passage)_tokens_")
    counts = {key: value for key, value in numbers.prepare.items() if not shown_apart.match(key)}
    mined = {key: value for key, value in numbers.mine.items() if not shown_apart.match(key)}
    return environment.get_template(TEMPLATE.name).render(
        scripts=[Markup(text) for text in scripts],  # noqa: S704  our own files
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in scripts),
        light=LIGHT,
        dark=DARK,
        headline=headline(numbers.evaluation),
        queries=count(numbers.evaluation["queries"]),
        retrieved=result_rows(numbers.systems, "retrieved"),
        all_positives=result_rows(numbers.systems, "all_positives"),
        by_source=_facts({key: value for key, value in numbers.evaluation.items() if "_of_" in key}),
        comparisons=comparison_rows(numbers.systems, numbers.evaluation),
        compared=compared_rows(numbers.comparison),
        costs=cost_rows(numbers.comparison, numbers.costs),
        explored=pack(numbers.queries, numbers.passages),
        losses=_loss_rows(worst(numbers.queries, SHOWN_LOSSES), numbers.passages),
        figures={name: _inline(picture, name) for name, picture in pictures.items()},
        counts=_facts(counts),
        dropped=_drop_rows(numbers.prepare, numbers.dropped),
        leaks=_leak_rows(numbers.leaks),
        tokens=_token_rows(numbers.prepare),
        mined=_facts(mined),
        refused=_refused_rows(numbers.mine, numbers.audit),
        audit=_audit_rows(numbers.audit),
        train=_facts(numbers.train),
    )


def _inline(picture: Picture, name: str) -> Markup:
    """The SVG as a part of the page: a name of its own for every id, the page's colours, its alternative text."""
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
    role = "group" if picture.tips else "img"  # what is inside an image cannot get the focus
    opening = f'<svg role="{role}" aria-label="{escape(picture.alt)}" {view_box.group() if view_box else ""}>'
    return Markup(opening + inner)  # noqa: S704  matplotlib escaped the names inside, escape() the text above


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _loss_rows(losses: Sequence[Query], passages: Mapping[str, Passage]) -> list[LossRow]:
    rows = []
    for query in losses:
        best = query.right[0]  # a query without a right passage has nothing to lose
        rows.append(
            LossRow(
                query.query_id,
                cut(query.text, CUT_QUERY),
                f"{signed(query.gain())} ({score(query.ndcg[BASELINE])} → {score(query.ndcg[SHIPPED])})",
                cut(passages[best.passage_id].text, CUT_PASSAGE),
                f"{best.retriever or '–'} → {best.reranker or '–'}",
                cut(passages[query.reranker[0].passage_id].text, CUT_PASSAGE),
                query.reason or "–",
            )
        )
    return rows


def _facts(values: Mapping[str, object]) -> list[Fact]:
    return [Fact(_words(key), _shown(value)) for key, value in values.items()]


def _drop_rows(prepare: Mapping[str, object], dropped: pd.DataFrame) -> list[DropRow]:
    groups = dropped.fillna({"query": "", "passage": ""}).groupby("reason")
    first = {str(reason): (_example(rows), ", ".join(rows["origin"].head(SHOWN_ORIGINS))) for reason, rows in groups}
    reasons = {key.removeprefix("dropped_"): value for key, value in prepare.items() if key.startswith("dropped_")}
    return [DropRow(_words(reason), _shown(value), *first.get(reason, ("", ""))) for reason, value in reasons.items()]


def _example(rows: pd.DataFrame) -> str:
    """Of the first row the text that the reason names; the other one where that is empty."""
    row = rows.iloc[0]
    kinds = ("passage", "query") if row["reason"].startswith("passage") else ("query", "passage")
    return next((text for kind in kinds if (text := cut(row[kind], CUT_TEXT))), "")


def _leak_rows(leaks: pd.DataFrame) -> list[LeakRow]:
    shown = leaks.groupby(["split", "equal"], sort=False).head(SHOWN_LEAKS)
    return [
        LeakRow(
            cut(row["query"], CUT_QUERY),
            row["split"],
            cut(row["other"], CUT_QUERY),
            row["other_split"],
            "equal" if row["equal"] else "near",
        )
        for row in shown.to_dict("records")
    ]


def _refused_rows(mine: Mapping[str, object], audit: pd.DataFrame) -> list[RefusedRow]:
    sizes = {"query": CUT_QUERY, "passage": CUT_PASSAGE, "right_passage": CUT_PASSAGE}
    first = {
        row["verdict"].removeprefix("refused: "): [cut(row[column], size) for column, size in sizes.items()]
        for row in audit.drop_duplicates("verdict").to_dict("records")
    }
    reasons = {key.removeprefix("refused_"): value for key, value in mine.items() if key.startswith("refused_")}
    return [
        RefusedRow(_words(reason), _shown(value), *first.get(reason, [""] * 3)) for reason, value in reasons.items()
    ]


def _audit_rows(audit: pd.DataFrame) -> list[AuditRow]:
    return [
        AuditRow(
            cut(row["query"], CUT_QUERY),
            cut(row["passage"], CUT_PASSAGE),
            cut(row["right_passage"], CUT_PASSAGE),
            f"{float(row['teacher_score']):.3f} / {float(row['teacher_score_of_right']):.3f}",
            row["verdict"].replace("_", " "),
        )
        for row in audit.to_dict("records")
    ]


def _token_rows(prepare: Mapping[str, object]) -> list[TokenRow]:
    kinds = {"query_tokens": "Queries", "passage_tokens": "Passages"}
    return [
        TokenRow(name, *(_shown(prepare[f"{kind}_{key}"]) for key in ("p50", "p90", "p99", "max")))
        for kind, name in kinds.items()
        if f"{kind}_p50" in prepare
    ]


def _words(key: str) -> str:
    text = re.sub(r"\b(ndcg|mrr|map)\b", lambda found: found.group().upper(), key.replace("_", " "))
    return text[:1].upper() + text[1:]


def _shown(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.3f}" if abs(value) >= 0.001 else f"{value:.2g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
