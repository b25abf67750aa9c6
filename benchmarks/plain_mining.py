"""Hard negatives as one mines them with Sentence Transformers: exact search by FAISS, everything in memory.

The model looks its vectors up, so that embedding is not timed. Of the output formats it is the one made in least time.
With a cross-encoder, every candidate is a negative, so that all scores can be compared.

    python -m benchmarks.plain_mining FOLDER OUT.parquet [--rescorer CROSS_ENCODER]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
from torch import nn

from benchmarks.measured import DEPTH, NEGATIVES, TABLES, note, now

LOADED = now()


class LookUp(SentenceTransformer):
    """A model that knows the vectors of the texts of a folder, which are distinct and come in their order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(modules=[nn.Identity()], device="cpu")
        self.folder = folder

    def get_embedding_dimension(self) -> int:
        """Of the vectors."""
        return int(np.load(self.folder / "passages.npy", mmap_mode="r").shape[1])

    def encode_document(self, texts: list[str], **_: object) -> NDArray[np.float32]:
        """Vectors of all passages."""
        return self._vectors("passages", texts)

    def encode_query(self, texts: list[str], **_: object) -> NDArray[np.float32]:
        """Vectors of all queries."""
        return self._vectors("queries", texts)

    def _vectors(self, name: str, texts: list[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = np.load(self.folder / f"{name}.npy")
        if len(vectors) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(vectors)} vectors of {name}")
        return vectors


def main() -> None:
    """Read, mine, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rescorer", type=Path)
    options = parser.parse_args()
    passages, queries, judgments = (pd.read_parquet(options.folder / f"{name}.parquet") for name in TABLES)
    rows = judgments.merge(queries, on="query_id").merge(passages, on="passage_id", suffixes=("", "_passage"))
    rows = rows.sort_values(["query_id", "passage_id"])
    mined = mine_hard_negatives(
        Dataset.from_dict({"query": rows["text"].tolist(), "passage": rows["text_passage"].tolist()}),
        LookUp(options.folder),
        corpus=passages["text"].tolist(),
        cross_encoder=CrossEncoder(str(options.rescorer)) if options.rescorer else None,
        range_max=DEPTH,
        max_score=float("inf") if options.rescorer else None,  # without a limit, it does not use the cross-encoder
        num_negatives=DEPTH if options.rescorer else NEGATIVES,
        sampling_strategy="top",
        output_format="n-tuple",
        output_scores=bool(options.rescorer),
        use_faiss=True,
        verbose=False,
    )
    mined.to_parquet(options.out)
    note(options.out, LOADED)


if __name__ == "__main__":
    main()
