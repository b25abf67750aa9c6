"""How fast the report page is with many test queries, in a real browser.

Queries and passages are those of a run of the pipeline; each query gets its right passage and others by chance in an
order by chance, so that no passage of the corpus is left out: the worst case for the size of the page.

    python -m benchmarks.page PROJECT [--queries 10000]
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright

from reranker.common.artifacts import PATHS, Tables
from reranker.evaluation import metrics
from reranker.evaluation.costs import COST_COLUMNS
from reranker.report import cost_figures, explorer, figures, tables
from reranker.report import page as report_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
)  # fmt: skip
CANDIDATES = 30
SEARCHES = ("array", "array of", "a", "sparse matrix", "zzz", "")
REPEATS = 5

# the work of one event until the page is laid out anew
TIMED = """([id, value]) => {
  const input = document.getElementById(id);
  const started = performance.now();
  input.value = value;
  input.dispatchEvent(new Event(id === "search" ? "input" : "change"));
  document.body.getBoundingClientRect();
  return performance.now() - started;
}"""


def main() -> None:
    """Make the page, open it a few times, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--queries", type=int, default=10_000)
    options = parser.parse_args()
    html = make(options.project, options.queries)
    print(f"{options.queries:,} queries, page of {len(html.encode()) / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "index.html"
        path.write_text(html, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = [timed(browser.new_page(), path.as_uri()) for _ in range(REPEATS)]
        browser.close()
    for name in opened[0]:
        values = [times[name] for times in opened]
        print(f"{name:<24}{statistics.median(values):8.0f} ms  ({min(values):.0f} to {max(values):.0f})")


def timed(page: Page, address: str) -> dict[str, float]:
    """Milliseconds of the first paint, of the whole list, and of each filter."""
    page.goto(address, wait_until="commit")
    page.locator("#list a").first.wait_for()
    times = {"list there": page.evaluate("performance.now()")}
    paints = page.evaluate("performance.getEntriesByType('paint').map((entry) => [entry.name, entry.startTime])")
    times = {"first paint": dict(paints)["first-contentful-paint"], **times}
    for text in SEARCHES:
        times[f"search {text!r}"] = page.evaluate(TIMED, ["search", text])
    for name, value in (("outcome", "all"), ("against", "0"), ("order", "text"), ("order", "losses")):
        times[f"{name}: {value}"] = page.evaluate(TIMED, [name, value])
    page.close()
    return times


def make(project: Path, number: int) -> str:
    """The page of a run with so many queries."""
    data = Tables(*(pd.read_parquet(project / path) for path in (PATHS.passages, PATHS.queries, PATHS.judgments)))
    random = np.random.default_rng(1)
    queries = data.queries.sort_values("query_id").head(number)
    judgments = data.judgments[data.judgments["query_id"].isin(queries["query_id"])]
    right = judgments.groupby("query_id")["passage_id"].first().reindex(queries["query_id"])
    ids = data.passages["passage_id"].to_numpy()
    drawn = random.choice(ids, (len(queries), CANDIDATES))
    drawn[:, 0] = right
    pairs = pd.DataFrame(
        {"query_id": np.repeat(queries["query_id"].to_numpy(), CANDIDATES), "passage_id": drawn.ravel()}
    )
    pairs = pairs.drop_duplicates(ignore_index=True)
    scored = {name: pairs.assign(score=random.random(len(pairs))) for name in (tables.BASELINE, tables.SHIPPED)}
    values = {name: metrics.per_query(judgments, run, ["nDCG@10"])["nDCG@10"] for name, run in scored.items()}
    passages = explorer.lookup(data.passages, pairs, judgments)
    texts = dict(zip(queries["query_id"], queries["text"], strict=True))
    explored = explorer.explore(
        pd.DataFrame(values).reset_index(), texts, passages, judgments, scored, lambda query, passage: True
    )
    systems = pd.read_csv(project / PATHS.metrics / "systems.csv")
    empty = pd.DataFrame(columns=list(COST_COLUMNS), dtype=float)
    numbers = report_page.Numbers(
        systems,
        json.loads((project / PATHS.metrics / "evaluate.json").read_text(encoding="utf-8")),
        {},
        pd.DataFrame(columns=["reason", "origin", "query", "passage"]),
        pd.DataFrame(columns=list(report_page.LEAK_COLUMNS)),
        {},
        pd.DataFrame(columns=list(report_page.AUDIT_COLUMNS)),
        {},
        systems,
        empty,
        explored,
        passages,
    )
    curves = pd.DataFrame(columns=["step", "loss", "ndcg@10"], dtype=float)
    pictures = {
        "systems": figures.systems_figure(systems),
        "size": cost_figures.size_figure(systems, empty),
        "latency": cost_figures.latency_figure(systems, empty),
        "training": figures.training_figure(curves, curves),
        "gains": figures.gains_figure(pd.DataFrame(values)),
        "lengths": figures.lengths_figure(pd.DataFrame(columns=["text", "from", "to", "share"])),
    }
    return report_page.page(numbers, pictures)


if __name__ == "__main__":
    main()
