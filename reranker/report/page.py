"""Write the figures of a run as one HTML page. Equal numbers give a page of equal bytes."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from reranker.report.explorer import Passage, Query, cut, pack, worst
from reranker.report.figures import Picture
from reranker.report.tables import BASELINE, SHIPPED, comparison_rows, count, headline, result_rows, score, signed
from reranker.report.templates import fill

PERFECT = "ndcg@10_perfect"
"""The figure of evaluate.json that no order of the candidates can exceed; older runs lack it."""
LOSS_ROWS = 50
"""Queries in the table of losses, which is shown in print and without scripts."""
ORIGINS_PER_REASON = 3
"""Dropped rows whose origin is shown for each reason."""
LEAKS_PER_KIND = 5
"""Leaks that are shown for each kind and split."""
TEXT_CHARACTERS = 120
"""Characters of a dropped text that are shown."""
PASSAGE_CHARACTERS = 200
"""Characters of a candidate or a relevant passage that are shown."""
QUERY_CHARACTERS = 300
"""Characters of a query that are shown. The words in which two leaked queries differ may come late."""
LEAK_COLUMNS = ("query", "split", "other", "other_split", "equal")
AUDIT_COLUMNS = ("verdict", "biencoder_score", "biencoder_score_of_right", "query", "passage", "right_passage")


class Numbers(NamedTuple):
    """The figures and texts of the page, as the earlier stages wrote them."""

    systems: pd.DataFrame
    """One row per system and mode, in the order of display; columns `SYSTEM_COLUMNS`."""
    evaluation: Mapping[str, float]
    """The content of evaluate.json; `prepare`, `mine` and `train` have those of their files."""
    verdict: str
    """What fine-tuning was good for, in words."""
    prepare: Mapping[str, object]
    dropped: pd.DataFrame
    """Some of the dropped rows; columns reason, origin, query and passage."""
    leaks: pd.DataFrame
    """Some of the queries that are in two splits; columns `LEAK_COLUMNS`."""
    mine: Mapping[str, object]
    audit: pd.DataFrame
    """The most suspicious candidates of mining, the most suspicious first, then examples of each reason for a refusal;
    columns `AUDIT_COLUMNS`, as text."""
    train: Mapping[str, object]
    queries: Sequence[Query]
    """At least one test query, see `explorer.explore`."""
    passages: Mapping[str, Passage]
    """The passages that the queries name, by passage_id."""


class Fact(NamedTuple):
    """A line of a two-column table."""

    label: str
    value: str


class DropRow(NamedTuple):
    """A reason for which rows are dropped."""

    reason: str
    rows: str
    text: str
    """The text of the first row."""
    origins: str
    """The origins of the first rows."""


class LeakRow(NamedTuple):
    """A query that is in two splits, in the same or nearly the same words."""

    query: str
    split: str
    other: str
    other_split: str
    likeness: str


class RefusalRow(NamedTuple):
    """A reason for which candidates are refused as negatives, with an example if there is one."""

    reason: str
    candidates: str
    query: str
    passage: str
    relevant: str


class AuditRow(NamedTuple):
    """A candidate that may be relevant though nobody has labelled it."""

    query: str
    passage: str
    relevant: str
    """The relevant passage."""
    scores: str
    """The static embedding's scores of the candidate and of the relevant passage."""
    verdict: str


class LossRow(NamedTuple):
    """A query on which the reranker is worse than the retriever."""

    query_id: str
    query: str
    change: str
    """The change of NDCG@10, with the figures of both."""
    relevant: str
    """The relevant passage that the reranker ranks highest."""
    ranks: str
    """The ranks of that passage by the retriever and by the reranker."""
    first: str
    """The passage that the reranker ranks first."""
    reason: str


class TokenRow(NamedTuple):
    """The lengths of one kind of text in tokens."""

    label: str
    p50: str
    p90: str
    p99: str
    longest: str


def page(numbers: Numbers, pictures: Mapping[str, Picture]) -> str:
    """Render the report as one HTML file.

    Args:
        numbers: see `Numbers`.
        pictures: the figures `systems`, `training`, `gains` and `lengths`.
    """
    own_tables = re.compile("dropped_|refused_|(query|passage)_tokens_")
    counts = {key: value for key, value in numbers.prepare.items() if not own_tables.match(key)}
    mining = {key: value for key, value in numbers.mine.items() if not own_tables.match(key)}
    return fill(
        "report.html.jinja",
        ["explorer.js"],
        pictures,
        headline=headline(numbers.evaluation),
        verdict=numbers.verdict,
        perfect=score(numbers.evaluation[PERFECT]) if PERFECT in numbers.evaluation else "",
        queries=count(numbers.evaluation["queries"]),
        retrieved=result_rows(numbers.systems, "retrieved"),
        all_positives=result_rows(numbers.systems, "all_positives"),
        by_source=_facts({key: value for key, value in numbers.evaluation.items() if "_of_" in key}),
        comparisons=comparison_rows(numbers.systems, numbers.evaluation),
        explored=pack(numbers.queries, numbers.passages),
        losses=_loss_rows(worst(numbers.queries, LOSS_ROWS), numbers.passages),
        counts=_facts(counts),
        dropped=_drop_rows(numbers.prepare, numbers.dropped),
        leaks=_leak_rows(numbers.leaks),
        tokens=_token_rows(numbers.prepare),
        mined=_facts(mining),
        refused=_refusal_rows(numbers.mine, numbers.audit),
        audit=_audit_rows(numbers.audit),
        train=_facts(numbers.train),
    )


def _loss_rows(losses: Sequence[Query], passages: Mapping[str, Passage]) -> list[LossRow]:
    rows = []
    for query in losses:
        best = query.relevant[0]  # a query without a relevant passage cannot lose
        rows.append(
            LossRow(
                query.query_id,
                cut(query.text, QUERY_CHARACTERS),
                f"{signed(query.gain())} ({score(query.ndcg[BASELINE])} → {score(query.ndcg[SHIPPED])})",
                cut(passages[best.passage_id].text, PASSAGE_CHARACTERS),
                f"{best.retriever or '–'} → {best.reranker or '–'}",
                cut(passages[query.reranker[0].passage_id].text, PASSAGE_CHARACTERS),
                query.reason or "–",
            )
        )
    return rows


def _facts(values: Mapping[str, object]) -> list[Fact]:
    return [Fact(_words(key), _value(value)) for key, value in values.items()]


def _drop_rows(prepare: Mapping[str, object], dropped: pd.DataFrame) -> list[DropRow]:
    groups = dropped.fillna({"query": "", "passage": ""}).groupby("reason")
    first = {
        str(reason): (_example(rows), ", ".join(rows["origin"].head(ORIGINS_PER_REASON))) for reason, rows in groups
    }
    reasons = {key.removeprefix("dropped_"): value for key, value in prepare.items() if key.startswith("dropped_")}
    return [DropRow(_words(reason), _value(value), *first.get(reason, ("", ""))) for reason, value in reasons.items()]


def _example(rows: pd.DataFrame) -> str:
    """The text of the first row that the reason is about; the row's other text where that one is empty."""
    row = rows.iloc[0]
    kinds = ("passage", "query") if row["reason"].startswith("passage") else ("query", "passage")
    return next((text for kind in kinds if (text := cut(row[kind], TEXT_CHARACTERS))), "")


def _leak_rows(leaks: pd.DataFrame) -> list[LeakRow]:
    first = leaks.groupby(["split", "equal"], sort=False).head(LEAKS_PER_KIND)
    return [
        LeakRow(
            cut(row["query"], QUERY_CHARACTERS),
            row["split"],
            cut(row["other"], QUERY_CHARACTERS),
            row["other_split"],
            "equal" if row["equal"] else "near",
        )
        for row in first.to_dict("records")
    ]


def _refusal_rows(mine: Mapping[str, object], audit: pd.DataFrame) -> list[RefusalRow]:
    sizes = {"query": QUERY_CHARACTERS, "passage": PASSAGE_CHARACTERS, "right_passage": PASSAGE_CHARACTERS}
    first = {
        row["verdict"].removeprefix("refused: "): [cut(row[column], size) for column, size in sizes.items()]
        for row in audit.drop_duplicates("verdict").to_dict("records")
    }
    reasons = {key.removeprefix("refused_"): value for key, value in mine.items() if key.startswith("refused_")}
    return [
        RefusalRow(_words(reason), _value(value), *first.get(reason, [""] * 3)) for reason, value in reasons.items()
    ]


def _audit_rows(audit: pd.DataFrame) -> list[AuditRow]:
    return [
        AuditRow(
            cut(row["query"], QUERY_CHARACTERS),
            cut(row["passage"], PASSAGE_CHARACTERS),
            cut(row["right_passage"], PASSAGE_CHARACTERS),
            f"{float(row['biencoder_score']):.3f} / {float(row['biencoder_score_of_right']):.3f}",
            row["verdict"].replace("_", " "),
        )
        for row in audit.to_dict("records")
    ]


def _token_rows(prepare: Mapping[str, object]) -> list[TokenRow]:
    kinds = {"query_tokens": "Queries", "passage_tokens": "Passages"}
    return [
        TokenRow(name, *(_value(prepare[f"{kind}_{key}"]) for key in ("p50", "p90", "p99", "max")))
        for kind, name in kinds.items()
        if f"{kind}_p50" in prepare
    ]


def _words(key: str) -> str:
    text = re.sub(r"\b(ndcg|mrr|map)\b", lambda match: match.group().upper(), key.replace("_", " "))
    return text[:1].upper() + text[1:]


def _value(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.3f}" if abs(value) >= 0.001 else f"{value:.2g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
