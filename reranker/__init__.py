"""Fine-tune cross-encoder rerankers on your own text and prove whether they are better.

`from reranker import Reranker` loads the shipped reranker, and `Search` the whole search of a corpus; `choose_compute`
says how they are to be computed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reranker.inference.compute import choose_compute
    from reranker.inference.reranker import Reranker, Search

__all__ = ["Reranker", "Search", "choose_compute"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the packages that do without torch stay without it."""
    if name in ("Reranker", "Search"):
        from reranker.inference import reranker

        return getattr(reranker, name)
    if name == "choose_compute":
        from reranker.inference.compute import choose_compute

        return choose_compute
    raise AttributeError(f"module 'reranker' has no attribute '{name}'")
