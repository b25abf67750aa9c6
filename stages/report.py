"""report: write one page with the figures of the earlier stages, every test query, four pictures and the results.

python -m stages.report
"""

import sys
import time
from collections.abc import Callable, Sequence

import pandas as pd
from tokenizers import Tokenizer

from reranker.common.artifacts import (
    PATHS,
    read_csv,
    read_json,
    read_table,
    read_tables,
    record_time,
    scored_file,
    write_bytes,
    write_text,
)
from reranker.common.errors import UserError
from reranker.common.model_files import tokenizer_file
from reranker.common.params import Params, load_params
from reranker.common.progress import run_stage
from reranker.inference.excerpts import can_hold
from reranker.report import explorer, figures, page, tables
from reranker.report.explorer import Passage

KEYS = ["query_id", "passage_id"]


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = load_params(PATHS.params)
    systems = read_csv(PATHS.metrics / "systems.csv", tables.SYSTEM_COLUMNS)
    evaluation = read_json(PATHS.metrics / "evaluate.json")
    names = systems["system"].unique().tolist()
    per_query = read_csv(PATHS.metrics / "per_query.csv", ["query_id", *names], as_text=True)
    per_query[names] = per_query[names].astype(float)
    loss = read_csv(PATHS.metrics / "curve_loss.csv", ["step", "loss"])
    dev = read_csv(PATHS.metrics / "curve_dev.csv", ["step", "ndcg@10"])
    lengths = read_csv(PATHS.metrics / "lengths.csv", ["text", "from", "to", "share"])
    queries, passages = _explore(params, per_query)
    pictures = {
        "systems": figures.systems_figure(systems),
        "training": figures.training_figure(loss, dev),
        "gains": figures.gains_figure(per_query),
        "lengths": figures.lengths_figure(lengths),
    }
    try:
        verdict = tables.verdict(evaluation)
        numbers = page.Numbers(
            systems=systems,
            evaluation=evaluation,
            verdict=verdict,
            prepare=read_json(PATHS.metrics / "prepare.json"),
            dropped=read_table(PATHS.dropped, ["reason", "origin", "query", "passage"]),
            leaks=read_table(PATHS.leaks, page.LEAK_COLUMNS),
            mine=read_json(PATHS.metrics / "mine.json"),
            audit=read_csv(PATHS.audit, page.AUDIT_COLUMNS, as_text=True),
            train=read_json(PATHS.metrics / "train.json"),
            queries=queries,
            passages=passages,
        )
        html = page.page(numbers, pictures)
    except KeyError as missing:
        raise UserError(f"{PATHS.metrics}/: a figure {missing} is missing; run `dvc repro --force`") from None

    for name, picture in pictures.items():
        write_text(picture.svg, PATHS.figures / f"{name}.svg")
        write_bytes(picture.png, PATHS.figures / f"{name}.png")
    write_text(html, PATHS.report)
    record_time("report", time.monotonic() - started)
    table = tables.text_table(systems, int(evaluation["queries"]))
    return f"\n{table}\n\n{verdict}\n\nreport: figures, comparisons and data -> {PATHS.report}"


def _explore(params: Params, per_query: pd.DataFrame) -> tuple[list[explorer.Query], dict[str, Passage]]:
    """The test queries with the first passages of both rankings, and the texts of these passages."""
    data = read_tables()
    judgments = data.judgments[data.judgments["query_id"].isin(per_query["query_id"])]
    candidates = read_table(PATHS.candidates, [*KEYS, "rank"])
    retrieved = candidates.loc[candidates["rank"] <= params.top_k, KEYS]
    scored = {
        system: retrieved.merge(read_table(scored_file(system), [*KEYS, "score"]), on=KEYS)
        for system in (tables.BASELINE, tables.SHIPPED)
    }
    passages = explorer.lookup(data.passages, judgments, *scored.values())
    texts = dict(zip(data.queries["query_id"], data.queries["text"], strict=True))
    try:
        return explorer.explore(per_query, texts, passages, judgments, scored, _reader(params)), passages
    except KeyError as missing:
        raise UserError(f"{PATHS.queries.parent}/: the text of {missing} is missing; run `dvc repro`") from None


def _reader(params: Params) -> Callable[[str, str], bool]:
    """A function that says whether the cross-encoder can read a query's words in a passage.

    It always says yes for a model of the Hub, because its tokenizer is not at hand.
    """
    file = tokenizer_file(params.base_model)
    if not file:
        return lambda query, passage: True
    tokenizer = Tokenizer.from_file(str(file))
    return lambda query, passage: can_hold(tokenizer, params.max_length, query, passage)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
