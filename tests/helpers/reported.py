"""The numbers of a small run for the report, with texts that look like markup."""

from html.parser import HTMLParser

import pandas as pd

from reranker.evaluation.costs import COST_COLUMNS
from reranker.report import cost_figures, explorer, figures, page, tables

HOSTILE = "<script>alert('x')</script> & $a_b$"
OTHERS = ("untouched_reranker", "fusion_without_cross_encoder")
SYSTEMS = pd.DataFrame(
    [
        ("bm25", "retrieved", 0.45, 0.43, 0.47, 0.35, 0.25, 0.55, 0.9),
        ("retriever", "retrieved", 0.51249, 0.49, 0.53, 0.4, 0.3, 0.6, 0.7),
        (HOSTILE, "retrieved", 0.5, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5),
        ("reranker", "retrieved", 0.64151, 0.62, 0.66, 0.61, 0.6, 0.68, 0.7),
        ("retriever", "all_positives", 0.6, 0.58, 0.62, 0.5, 0.4, 0.7, 1.0),
        (HOSTILE, "all_positives", 0.55, 0.5, 0.6, 0.5, 0.5, 0.6, 1.0),
        ("reranker", "all_positives", 0.75, 0.73, 0.77, 0.71, 0.7, 0.8, 1.0),
    ],
    columns=list(tables.SYSTEM_COLUMNS),
)
EVALUATION = {
    "queries": 1234,
    "ndcg@10": 0.64151,
    "ndcg@10_perfect": 0.70049,
    "gain_vs_bm25": 0.19151,
    "gain_vs_bm25_low": 0.17,
    "gain_vs_bm25_high": 0.21,
    "p_vs_bm25": 0.00005,
    "gain_vs_retriever": 0.12902,
    "gain_vs_retriever_low": 0.11,
    "gain_vs_retriever_high": 0.148,
    "p_vs_retriever": 0.00005,
    f"gain_vs_{HOSTILE}": -0.0002,
    "queries_of_faq": 1000,
    "ndcg@10_retriever_of_faq": 0.51,
    f"gain_vs_{HOSTILE}_low": -0.01,
    f"gain_vs_{HOSTILE}_high": 0.0096,
    f"p_vs_{HOSTILE}": 0.4321,
    **{f"gain_vs_{system}": 0.05 for system in OTHERS},
    **{f"p_vs_{system}": 0.04 for system in OTHERS},
    "tuning_gain": 0.02,
    "tuning_p": 0.2,
}
PREPARE = {
    "rows": 48211,
    "dropped_query_short": 17,
    "dropped_passage_empty": 0,
    **{f"{kind}_tokens_{key}": 9 for kind in ("query", "passage") for key in ("p50", "p90", "p99", "max")},
}
MINE = {"ndcg@10": 0.5, "negatives": 100, "refused_near_duplicate": 23, "refused_similar": 0}
TRAIN = {"steps": 600, "precision": "float32", "weight_bm25": 0.00004}
LOSS = pd.DataFrame({"step": [5, 10], "loss": [1.5, 0.5]})
DEV = pd.DataFrame({"step": [0, 10], "ndcg@10": [0.3, 0.6]})
LENGTHS = pd.DataFrame(
    [("query", 6, 8, 0.75), ("query", 8, 11, 0.25), ("passage", 32, 45, 0.2), ("passage", 45, 64, 0.8)],
    columns=["text", "from", "to", "share"],
)
# 0.1 + 0.2 differs from 0.3 in the last bit, but it is a tie
PER_QUERY = pd.DataFrame(
    {
        "query_id": ["q1", "q2", "q3", "q4"],
        "bm25": [0.4, 0.4, 0.4, 0.4],
        "retriever": [0.5, 0.3, 1.0, 0.0],
        HOSTILE: [0.2, 0.2, 0.2, 0.2],
        "reranker": [1.0, 0.1 + 0.2, 0.5, 1.0],
    }
)
ORIGINS = ["a.csv: row 1", "a.csv: row 8", f"{HOSTILE}: row 9", "a.csv: row 12"]
DROPPED = pd.DataFrame({"reason": "query_short", "origin": ORIGINS, "query": "sort", "passage": "Sorts."})
LEAKS = pd.DataFrame(
    [(f"sort it {number}", "test", HOSTILE, "train", number > 2) for number in range(9)],
    columns=list(page.LEAK_COLUMNS),
)
AUDIT = pd.DataFrame(
    [("refused: near_duplicate", "0.91249", "0.5", "how to sort", HOSTILE, "Sorts. " * 99)],
    columns=list(page.AUDIT_COLUMNS),
)
COMPARISON = SYSTEMS.assign(
    gain_vs_baseline=[-0.06, None, -0.012, 0.129, None, None, None],
    gain_vs_baseline_low=0.01,
    gain_vs_baseline_high=0.3,
    gain_vs_best=-0.1,
    gain_vs_best_low=-0.2,
    gain_vs_best_high=0.05,
    p_vs_baseline_holm=0.0001,
    p_vs_best_holm=0.25,
    detectable=0.031,
)
COSTS = pd.DataFrame(
    [
        ("bm25", 0, 0.0, 99_000.0, 0.3, 0.5, 0.8, 1.1, 0.0001),
        ("retriever", 0, 0.0, 90_000.0, 0.4, 0.6, 0.9, 1.2, 0.0001),
        (HOSTILE, 22_700_000, 90.9, 412.4, 72.0, 91.5, 240.0, 300.0, 0.0021),
        ("reranker", 53_000_000, 212.0, 290.0, 101.0, 120.0, 330.0, 400.0, 0.0033),
    ],
    columns=list(COST_COLUMNS),
)
PASSAGE_IDS = [f"p{number:02}" for number in range(13)]
PASSAGES = pd.DataFrame(
    {
        "passage_id": PASSAGE_IDS,
        "text": [f"Passage {number} of <b>sorted</b> lists. {HOSTILE}" for number in PASSAGE_IDS],
        "group": PASSAGE_IDS,
    }
)
QUERIES = pd.DataFrame(
    {
        "query_id": ["q1", "q2", "q3", "q4", "q/5"],
        "text": ["sort a list", HOSTILE, "Read a file of numbers", "graph with apples", "of training"],
        "group": "g",
        "split": ["test"] * 4 + ["train"],
        "source": "faq",
    }
)
JUDGMENTS = pd.DataFrame(
    [("q1", "p02", 1), ("q2", "p12", 1), ("q3", "p00", 1), ("q4", "p01", 1), ("q/5", "p00", 1)],
    columns=["query_id", "passage_id", "relevance"],
)
CANDIDATES = pd.DataFrame(
    [(query, passage, rank) for query in QUERIES["query_id"][:4] for rank, passage in enumerate(PASSAGE_IDS[:12], 1)]
    + [("q2", "p12", 99)],
    columns=["query_id", "passage_id", "rank"],
)
SCORED = {
    "retriever": CANDIDATES[["query_id", "passage_id"]].assign(score=1 / CANDIDATES["rank"]),
    "reranker": CANDIDATES[["query_id", "passage_id"]].assign(score=CANDIDATES["rank"] % 5 - CANDIDATES["rank"] / 100),
}


class Reader(HTMLParser):
    """Collects the cells of every table row, the names of the tags and the ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._in_cell = False
        self._in_script = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")
            self._in_script = True
        self.attributes += attrs
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data
        elif self._in_script:
            self.scripts[-1] += data


def numbers() -> page.Numbers:
    """The numbers in the form that the page takes."""
    retrieved = CANDIDATES["rank"] < 99
    passages = explorer.lookup(PASSAGES, JUDGMENTS, CANDIDATES)
    texts = dict(zip(QUERIES["query_id"], QUERIES["text"], strict=True))
    runs = {system: scored[retrieved] for system, scored in SCORED.items()}
    queries = explorer.explore(PER_QUERY, texts, passages, JUDGMENTS, runs, lambda query, passage: True)
    said = tables.verdict(EVALUATION)
    return page.Numbers(SYSTEMS, EVALUATION, said, PREPARE, DROPPED, LEAKS, MINE, AUDIT, TRAIN, queries, passages)


def pictures() -> dict[str, figures.Picture]:
    """The figures of these numbers."""
    return {
        "systems": figures.systems_figure(SYSTEMS),
        "training": figures.training_figure(LOSS, DEV),
        "gains": figures.gains_figure(PER_QUERY),
        "lengths": figures.lengths_figure(LENGTHS),
    }


def cost_pictures() -> dict[str, figures.Picture]:
    """The figures of the comparison."""
    return {
        "size": cost_figures.size_figure(COMPARISON, COSTS),
        "latency": cost_figures.latency_figure(COMPARISON, COSTS),
    }
