"""Work for a machine of a cluster that is lost while it works."""

import fcntl
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from reranker.inference import scoring


def node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def until_lost(
    model: SentenceTransformer, parts: Iterable[list[str]], *, doomed: str, pipe: Path, lock: Path
) -> Iterator[np.ndarray]:
    """The vectors; the doomed machine tells that it has started and never ends, the other waits for its end."""
    if node() == doomed:
        pipe.write_bytes(b"started")
        threading.Event().wait()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    yield from scoring._vectors(model, parts, label="", prompt="", precision="float32")
