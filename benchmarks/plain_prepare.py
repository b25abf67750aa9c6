"""The steps of prepare as one writes them with datasets and pandas: everything in memory, no near-duplicates.

python -m benchmarks.plain_prepare ROWS.parquet FOLDER
"""

import hashlib
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def digest(text: str) -> str:
    """An id."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def fingerprint(text: str) -> str:
    """What trivial variants of a text have in common."""
    return re.sub(r"[\W\d_]+", "", text.casefold()) or text


def main(source: str, folder: Path) -> None:
    """Read, clean, merge, group, split, write."""
    rows = datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=str(folder)).to_pandas()
    rows["query"] = rows["query"].str.split().str.join(" ")
    rows["passage"] = rows["passage"].str.strip()
    rows = rows[rows["query"].str.count(" ").between(2, 39) & (rows["passage"].str.len() >= 40)]
    rows = rows.drop_duplicates(["query", "passage"])
    rows["query_id"] = "q" + rows["query"].str.casefold().map(digest)
    rows["passage_id"] = "p" + rows["passage"].map(digest)
    passages = rows.groupby("passage_id", as_index=False).agg(text=("passage", "first"))
    queries = rows.groupby("query_id", as_index=False).agg(text=("query", "min"))
    judgments = rows[["query_id", "passage_id"]].drop_duplicates().assign(relevance=1)
    at = pd.Series(np.arange(len(queries)), index=queries["query_id"])
    prints = passages.set_index("passage_id")["text"].map(fingerprint)
    nodes = np.concatenate(["q" + queries["text"].map(fingerprint), "p" + prints[judgments["passage_id"]]])
    ends = np.concatenate([at, at[judgments["query_id"]]])
    codes = pd.factorize(nodes)[0]
    size = len(queries) + codes.max() + 1
    graph = coo_array((np.ones(len(ends)), (ends, len(queries) + codes)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][: len(queries)]
    place = queries["query_id"].groupby(component).transform("min").map(lambda name: int(digest(name), 16) / 16**12)
    queries["split"] = np.select([place < 0.028, place < 0.04], ["test", "dev"], "train")
    for name, table in (("passages", passages), ("queries", queries), ("judgments", judgments)):
        table.to_parquet(folder / f"{name}.parquet", index=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
