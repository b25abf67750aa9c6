"""Finds passages with nearly the same text.

A near duplicate of a relevant passage must not become a negative, and must not be in another split.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from reranker.common.progress import track

MAX_PASSAGES = 100_000
"""The largest number of passages that are compared. Among the others, only those with the same letters are found."""
SHINGLE_WORDS = 3
"""Words of a shingle. The similarity of two passages is the share of shingles that they have in common."""
MAX_COMPARISONS = 50
"""The largest number of texts that one is compared with. It bounds the comparisons of texts made from one template."""
MARGIN = 0.1
"""How far below the threshold MinHash searches, because it only estimates the similarity."""


def near_duplicates(texts: Sequence[str], threshold: float) -> NDArray[np.int64]:
    """Find pairs of similar texts.

    MinHash with locality-sensitive hashing finds candidate pairs (Broder, 1997; Leskovec et al., Mining of Massive
    Datasets, chapter 3), and the shingles themselves decide.

    Args:
        texts: texts in any order.
        threshold: smallest Jaccard similarity of the sets of shingles of a pair.

    Returns:
        Positions in `texts`; shape (pairs, 2).
    """
    sets = [shingles(text) for text in texts]
    # These weights say that a miss costs more than a comparison.
    index = MinHashLSH(threshold=threshold - MARGIN, num_perm=128, weights=(0.1, 0.9))
    pairs = []
    signatures = MinHash.generator((own.tolist() for own in sets), num_perm=128, hashfunc=int)
    for place, signature in track(enumerate(signatures), "prepare: near-duplicates", "passages", len(texts)):
        others = sorted(index.query(signature))[:MAX_COMPARISONS]
        pairs += [(other, place) for other in others if _similarity(sets[other], sets[place]) >= threshold]
        index.insert(place, signature, check_duplication=False)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def shingles(text: str) -> NDArray[np.uint32]:
    """Sorted hashes of a text's distinct shingles, which are runs of `SHINGLE_WORDS` words, letter case aside.

    A text of fewer words has one shingle.
    """
    words = re.findall(r"\w+", text.casefold()) or [text]
    starts = range(max(len(words) - SHINGLE_WORDS + 1, 1))
    return np.unique(
        np.array([zlib.crc32(" ".join(words[start : start + SHINGLE_WORDS]).encode()) for start in starts], np.uint32)
    )


def _similarity(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
