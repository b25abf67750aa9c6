"""Real text for trainings: docstrings of networkx, by the project's own preparation and BM25."""

import numpy as np
import pandas as pd

from prepared import tables
from reranker.data.sources import pydocs
from reranker.retrieval.retrievers import Lexical

WRONG = 3
"""Wrong passages of a query: the first ones of BM25."""


def documented(queries: int) -> pd.DataFrame:
    """Mined pairs of so many queries, the right passage before the wrong ones.

    Columns query_id, query, passage_id, text, kind, relevance and teacher: BM25's score, standardised.
    """
    texts = tables(example for part in pydocs.read(["networkx"]) for example in part.examples)
    asked = texts.queries[texts.queries["split"] == "train"].merge(texts.judgments).drop_duplicates("query_id")
    asked = asked[:queries]
    passages = texts.passages.set_index("passage_id")["text"]
    first_stage = Lexical(passages.tolist(), asked["text"].tolist())
    found = first_stage.search(np.arange(queries), WRONG + 1, label="").positions
    pairs = pd.DataFrame(
        [
            (place, passage_id)
            for place, right, others in zip(range(queries), asked["passage_id"], found, strict=True)
            for passage_id in [right, *passages.index[others].drop(right, errors="ignore")[:WRONG]]
        ],
        columns=["place", "passage_id"],
    )
    right = pairs["place"] != pairs["place"].shift()
    scores = first_stage.scores(pairs["place"].to_numpy(), passages.index.get_indexer(pairs["passage_id"]))
    return pd.DataFrame(
        {
            "query_id": asked["query_id"].to_numpy()[pairs["place"]],
            "query": asked["text"].to_numpy()[pairs["place"]],
            "passage_id": pairs["passage_id"],
            "text": pairs["passage_id"].map(passages),
            "kind": np.where(right, "positive", "hard"),
            "relevance": right.astype(int),
            "teacher": (scores - scores.mean()) / scores.std(),
        }
    )
