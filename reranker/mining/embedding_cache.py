"""Vectors of texts, kept on disk by all that they depend on: the model, how it is used, the text."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from reranker.common.errors import printable
from reranker.inference import scoring
from reranker.inference.compute import PLAIN, Compute

SHARD = 16_384
"""Texts a file: what a run that is killed loses at most."""
LIMIT = 8 * 2**30
"""Bytes that the folder may hold; the model in use keeps its vectors even if they alone are more."""
IN_MEMORY = 2**30
"""Bytes of vectors above which they are returned in a file of no name and not in memory."""
ABANDONED = 24 * 3600
"""Seconds after which a file under a temporary name is none that another run is writing."""
ROWS = 16_384
"""Rows that are copied or looked at together."""
FORMAT = 1
"""Of the files; part of the key, so another number leaves the earlier ones to be forgotten."""
KEY = "S16"
TOKENIZER_SETTINGS = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "special_tokens_map",
    "split_special_tokens",
    "chat_template",
)
"""What a transformers tokenizer adds to the rules of the tokenizers library that it calls."""


class Cache:
    """A folder of vectors, each under the hash of its text in a folder under the hash of its model.

    Several runs may use it at once. What cannot be read is computed, and a folder that cannot be written costs
    time and one note on stderr, no more.

    Args:
        folder: made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writes = True

    def embed(
        self,
        model: SentenceTransformer,
        texts: Sequence[str],
        *,
        label: str,
        prompt: str = "",
        compute: Compute = PLAIN,
    ) -> NDArray[np.float32]:
        """What `reranker.inference.scoring.embed` gives; only texts whose vectors are not kept are passed to the model.

        A static embedding gives the same bits either way. A transformer's last bits depend on the texts that share a
        pass, so those of new texts may differ from a run that embeds all.

        Args:
            model: a bi-encoder or a static embedding.
            texts: any number; those that are equal are embedded once.
            label: what is being done, shown beside the progress.
            prompt: put before each text; the model's own default prompt, if it has one, where it is empty.
            compute: how vectors that are not in the folder are computed; this process alone reads and writes it.

        Returns:
            Shape (texts, dimensions), in the order of the texts. Above `IN_MEMORY` bytes it is a memory map of a file
            that has no name any more and goes with the array.

        Raises:
            UserError: a vector is not finite. Those of earlier texts are kept.
        """
        dimensions = model.get_embedding_dimension()
        key = model_key(model, prompt, compute.precision) if len(texts) else None
        if len(texts) and key is None:
            _tell(f"{label}: vectors are not kept: the model's weights or tokenizer cannot be compared with others'")
        if dimensions is None or key is None:
            return scoring.embed(model, texts, label=label, prompt=prompt, compute=compute)
        folder = self._folder / key
        self._open(folder)
        hashes = _hashes(texts)
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        vectors = self._room(folder, len(texts), dimensions)
        missing = np.ones(len(distinct), bool)
        for rows, found in _kept(folder, distinct, missing, dimensions, label):
            vectors[first[rows]] = found
            missing[rows] = False
        new = np.sort(first[missing])  # as the texts come, so that the passes are those of an embed without a cache
        wanted = [texts[place] for place in new]
        passes = scoring.batches(model, wanted, label=label, prompt=prompt, compute=compute)
        self._fill(vectors, new, passes, hashes, folder)
        source = first[inverse]
        for some in _parts(np.flatnonzero(source != np.arange(len(texts)))):
            vectors[some] = vectors[source[some]]
        zero = sum(int((~vectors[some].any(axis=1)).sum()) for some in _parts(np.arange(len(texts))))
        if zero:
            _tell(
                f"{label}: {zero:,} of {len(texts):,} texts have a vector of zeros, and cosine 0 with every other: "
                "the model knows none of their tokens"
            )
        self._forget(folder)
        return vectors

    def _fill(
        self,
        vectors: NDArray[np.float32],
        new: NDArray[np.int64],
        passes: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]],
        hashes: NDArray[np.bytes_],
        folder: Path,
    ) -> None:
        """Put what the model makes at the places `new` of `vectors`, and keep it shard by shard."""
        held: list[NDArray[np.int64]] = []
        try:
            for some, found in passes:
                held.append(new[some])
                vectors[new[some]] = found
                if sum(map(len, held)) >= SHARD:
                    places, held = np.concatenate(held), []
                    self._keep(folder, hashes[places], vectors[places])
        finally:  # an interrupt, too, loses nothing that was computed
            if held:
                places = np.concatenate(held)
                self._keep(folder, hashes[places], vectors[places])

    def _open(self, folder: Path) -> None:
        """Make the folder, note that it is used now, and clear what killed runs left."""
        if not self._writes:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "used").touch()
            for path in folder.glob("*.part"):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - ABANDONED:
                        path.unlink()
        except OSError as error:
            self._give_up(error)

    def _keep(self, folder: Path, keys: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> None:
        """Write a shard, whose name no other run can have."""
        if not self._writes:
            return
        path = folder / f"{uuid.uuid4().hex}.npy"
        temporary = path.with_suffix(".part")
        shard = np.zeros(1, _layout(*vectors.shape))
        shard["key"][0], shard["check"][0], shard["vector"][0] = keys, _checks(keys, vectors), vectors
        try:
            folder.mkdir(parents=True, exist_ok=True)  # another run may have taken it away
            with temporary.open("wb") as file:
                np.save(file, shard)
            temporary.replace(path)
        except OSError as error:
            self._give_up(error)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self._writes = False
        _tell(f"{self._folder}: could not be written ({error.strerror or error}); vectors are not kept for another run")

    def _room(self, folder: Path, rows: int, dimensions: int) -> NDArray[np.float32]:
        """An array to fill: in memory, or in a file if it is large and there is a disk for it."""
        size = rows * dimensions * np.dtype(np.float32).itemsize
        if size > IN_MEMORY and self._writes:
            try:
                with tempfile.TemporaryFile(dir=folder) as file:
                    _reserve(file.fileno(), size)
                    return np.memmap(file, np.float32, "r+", shape=(rows, dimensions))
            except OSError as error:
                self._give_up(error)
        return np.empty((rows, dimensions), np.float32)

    def _forget(self, current: Path) -> None:
        """Delete the models' folders that were not used for longest until the whole is no more than `LIMIT`."""
        used, sizes = {}, {}
        for marker in self._folder.glob("*/used"):
            with suppress(OSError):  # another run takes it away
                used[marker.parent] = marker.stat().st_mtime_ns
                sizes[marker.parent] = sum(path.stat().st_size for path in marker.parent.iterdir())
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda path: (used[path], path)):
            if total > LIMIT and folder != current:
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


def model_key(model: SentenceTransformer, prompt: str = "", precision: str = "float32") -> str | None:
    """A hash over all that decides the vector of a text: 32 hexadecimal digits.

    Weights by their bytes and tokenizers by their rules, neither by a name or a path: two models of one name share
    nothing, and one model at two places shares all.

    Returns:
        None where the model cannot be told from others, as its weights or tokenizer are not in view.
    """
    readers = [module for module in model.modules() if isinstance(module, InputModule)]
    if model.get_backend() != "torch" or not readers:
        return None
    digest = hashlib.blake2b(digest_size=16)

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))  # else parts could be cut elsewhere and give the same
        digest.update(part)

    add(json.dumps(_settings(model, prompt, precision), sort_keys=True, default=str).encode())
    for reader in readers:
        tokenizer = _tokenizer(reader)
        if tokenizer is None:
            return None
        add(tokenizer.encode())
    tensors = {**dict(model.named_buffers()), **model.state_dict()}  # buffers that are not saved are used all the same
    for name, tensor in sorted(tensors.items()):
        if type(tensor) not in (Tensor, Parameter) or tensor.is_quantized or tensor.layout != torch.strided:
            return None
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(model: SentenceTransformer, prompt: str, precision: str) -> dict[str, object]:
    """What is no weight: how the model is built and used."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    libraries = "torch", "transformers", "sentence-transformers", "openvino"
    return {
        "format": FORMAT,
        "prompt": prompt or model.prompts.get(model.default_prompt_name or "", ""),
        "precision": precision,
        "devices": [model.device.type, torch.cuda.is_available()],
        "truncate_dim": model.truncate_dim,
        "versions": [metadata.version(library).split(".")[0] for library in libraries],
        # the second shows what lies in the module, the first its settings
        "modules": [[name, repr(module), Module.__repr__(module)] for name, module in model.named_children()],
        "classes": sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in model.modules()}),
        "max_seq_length": [getattr(module, "max_seq_length", None) for module in model],
        "configs": [{**config.to_dict(), "transformers_version": "", "_name_or_path": ""} for config in configs],
        "attention": [config._attn_implementation for config in configs],
    }


def _tokenizer(reader: InputModule) -> str | None:
    """All of a tokenizer; None for one of another kind than the fast ones of tokenizers and transformers."""
    tokenizer = getattr(reader, "processor", getattr(reader, "tokenizer", None))
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.to_str()
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    # truncation and padding are set anew by each call, from max_seq_length and what follows
    rules = {**json.loads(tokenizer.backend_tokenizer.to_str()), "truncation": None, "padding": None}
    return json.dumps([rules, {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS}], default=str)


def _hashes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    digests = bytearray()
    for text in texts:
        digests += hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.frombuffer(bytes(digests), KEY)


def _layout(rows: int, dimensions: int) -> np.dtype[np.void]:
    """Of a shard: one record, with the keys in one piece so that a look-up reads them alone."""
    return np.dtype([("key", KEY, (rows,)), ("check", "<u4", (rows,)), ("vector", "<f4", (rows, dimensions))])


def _checks(keys: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> NDArray[np.uint32]:
    """A sum over each key and vector, which shows a row that is not as it was written."""
    words = np.ascontiguousarray(keys).view("<u4").reshape(len(keys), 4), np.ascontiguousarray(vectors).view("<u4")
    sums: NDArray[np.uint32] = sum(side.sum(axis=1, dtype=np.uint32) for side in words)
    return sums


def _kept(
    folder: Path, distinct: NDArray[np.bytes_], missing: NDArray[np.bool_], dimensions: int, label: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """What `_look_up` gives of each shard of a folder; one that is damaged is named and deleted."""
    for path in sorted(folder.glob("*.npy")):
        try:
            yield _look_up(path, distinct, missing, dimensions)
        except OSError:
            pass  # another run has taken it away
        except (ValueError, TypeError, SyntaxError, OverflowError, TokenError):
            _tell(f"{label}: {path} is damaged, cut short or of another model; its texts are embedded again")
            with suppress(OSError):
                path.unlink()


def _look_up(
    path: Path, distinct: NDArray[np.bytes_], missing: NDArray[np.bool_], dimensions: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The vectors of a shard that are still missing.

    Args:
        path: of the shard.
        distinct: keys, sorted.
        missing: which of them are wanted.
        dimensions: of a vector.

    Returns:
        Places in `distinct`, and their vectors.

    Raises:
        ValueError: the shard is damaged, cut short or of other dimensions; or what numpy raises for a damaged header.
    """
    file = np.lib.format.open_memmap(path, mode="r")
    layout = _layout(file.nbytes // _layout(1, dimensions).itemsize, dimensions)
    if file.shape != (1,) or file.dtype != layout:
        raise ValueError("not a shard of this model")
    keys = np.array(file["key"][0])
    at = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
    rows = np.flatnonzero((distinct[at] == keys) & missing[at])
    vectors: NDArray[np.float32] = np.asarray(file["vector"][0])[rows]
    if (_checks(keys[rows], vectors) != file["check"][0][rows]).any():
        raise ValueError("a vector is not what was written")
    return at[rows], vectors


def _parts(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), ROWS):
        yield places[start : start + ROWS]


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now: a memory map that the disk has no room for kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _tell(message: str) -> None:
    print(printable(message), file=sys.stderr, flush=True)
