"""Passages that are nearly the same text: a twin of a right answer is neither a negative nor a leak."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from reranker.common.progress import track

MOST = 100_000
"""Passages that are looked at: beyond them, only those with equal letters are found."""
WORDS = 3
"""Of a run; two passages are as alike as the share of the runs that they have in common."""
LOOKS = 50
"""Texts that one is compared with at most: a template would be compared with all that it was filled in to."""
MARGIN = 0.1
"""So much below the threshold MinHash looks, for it only estimates."""


def near_duplicates(texts: Sequence[str], threshold: float) -> NDArray[np.int64]:
    """Pairs of texts that are alike.

    MinHash with locality-sensitive hashing finds the pairs (Broder, 1997; Leskovec et al., Mining of Massive Datasets,
    chapter 3), the runs themselves decide.

    Args:
        texts: not held to any order.
        threshold: Jaccard similarity of their sets of runs of `WORDS` words, letter case aside.

    Returns:
        Places in `texts`; shape (pairs, 2).
    """
    sets = [runs(text) for text in texts]
    index = MinHashLSH(threshold=threshold - MARGIN, num_perm=128, weights=(0.1, 0.9))  # a miss is worse than a look
    found = []
    signatures = MinHash.generator((own.tolist() for own in sets), num_perm=128, hashfunc=int)
    for place, signature in track(enumerate(signatures), "prepare: near-duplicates", "passages", len(texts)):
        others = sorted(index.query(signature))[:LOOKS]
        found += [(other, place) for other in others if _likeness(sets[other], sets[place]) >= threshold]
        index.insert(place, signature, check_duplication=False)
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def runs(text: str) -> NDArray[np.uint32]:
    """Hashes of the distinct runs of `WORDS` words of a text, letter case aside; one at least, sorted."""
    words = re.findall(r"\w+", text.casefold()) or [text]
    starts = range(max(len(words) - WORDS + 1, 1))
    return np.unique(
        np.array([zlib.crc32(" ".join(words[start : start + WORDS]).encode()) for start in starts], np.uint32)
    )


def _likeness(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
