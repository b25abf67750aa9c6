"""Files with some bytes changed.

A normal run tries a hundred of each; for more of them: FUZZ_EXAMPLES=1500 .venv/bin/python -m pytest tests -k damage
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to three places overwritten, shortened or lengthened by up to four bytes."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(changed)
