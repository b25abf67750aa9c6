"""Which languages texts seem to be in: a guess, by which a person sees that the sources hold what they should."""

from collections import Counter
from collections.abc import Sequence

from py3langid import classify

READ = 1_000
"""Characters of a text that are looked at."""
SHOWN = 3
"""Languages that are named."""


def commonest(texts: Sequence[str]) -> dict[str, float]:
    """The commonest languages of some texts.

    Each text is put into one language by naive Bayes over its runs of bytes (Lui and Baldwin, langid.py, ACL 2012; the
    model is py3langid's). A text of a few words, or of code, is often put into a wrong one.

    Args:
        texts: one at least.

    Returns:
        Share of the texts by ISO 639 code (zxx: no language), the `SHOWN` largest, largest first.
    """
    counts = Counter(classify(text[:READ])[0] for text in texts)
    first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return {code: count / len(texts) for code, count in first}
