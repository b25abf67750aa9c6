"""A cache of text vectors on disk, keyed by all that a vector depends on: the model, its settings and the text."""

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
"""Texts per file; a run that is killed loses the vectors of at most so many."""
LIMIT = 8 * 2**30
"""The largest size of the folder in bytes; the vectors of the model in use are kept even if they alone are larger."""
IN_MEMORY = 2**30
"""Vectors of more bytes are returned in an unnamed file instead of memory."""
ABANDONED = 24 * 3600
"""A temporary file that is older, in seconds, is no longer being written by another run."""
ROWS = 16_384
"""Rows that are copied or checked together."""
FORMAT = 1
"""The version of the file format. It is a part of the key, so files of another version are never read."""
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
"""Settings that a transformers tokenizer adds to the rules of the tokenizers library that it calls."""


class Cache:
    """A folder of vectors: each model has a folder under its hash, which stores each vector with the hash of its text.

    Several runs may use the cache at once. Vectors that cannot be read are computed again. If the folder cannot be
    written, a run takes more time and prints one note on stderr, but it does not fail.

    Args:
        folder: the folder; it is made when it is first needed.
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
        """Embed texts like `reranker.inference.scoring.embed`, but pass only texts that are not cached to the model.

        A static embedding gives the same bits either way. A transformer's last bits depend on the texts in the same
        batch, so vectors of new texts may differ in these from those of a run that embeds all texts.

        Args:
            model: a bi-encoder or a static embedding.
            texts: any number of texts; equal texts are embedded once.
            label: the name of the step, shown beside the progress.
            prompt: the text that is put before each text; an empty one stands for the model's default prompt, if any.
            compute: how missing vectors are computed; this process alone reads and writes the folder.

        Returns:
            Shape (texts, dimensions), in the order of the texts. Above `IN_MEMORY` bytes it is a memory map of an
            unnamed file, which is deleted with the array.

        Raises:
            UserError: a vector is not finite. The vectors of earlier texts stay in the cache.
        """
        dimensions = model.get_embedding_dimension()
        key = model_key(model, prompt, compute.precision) if len(texts) else None
        if len(texts) and key is None:
            _warn(f"{label}: vectors are not cached, because the model's weights or tokenizer cannot be identified")
        if dimensions is None or key is None:
            return scoring.embed(model, texts, label=label, prompt=prompt, compute=compute)
        folder = self._folder / key
        self._prepare(folder)
        hashes = _hashes(texts)
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        vectors = self._allocate(folder, len(texts), dimensions)
        missing = np.ones(len(distinct), bool)
        for rows, cached in _read_shards(folder, distinct, missing, dimensions, label):
            vectors[first[rows]] = cached
            missing[rows] = False
        new = np.sort(first[missing])  # in the order of the texts, so that batches are those of a run without a cache
        passes = scoring.batches(model, [texts[place] for place in new], label=label, prompt=prompt, compute=compute)
        self._fill(vectors, new, passes, hashes, folder)
        source = first[inverse]
        for some in _chunks(np.flatnonzero(source != np.arange(len(texts)))):
            vectors[some] = vectors[source[some]]
        zero = sum(int((~vectors[some].any(axis=1)).sum()) for some in _chunks(np.arange(len(texts))))
        if zero:
            _warn(
                f"{label}: {zero:,} of {len(texts):,} texts have a vector of zeros, and cosine 0 with every other: "
                "the model knows none of their tokens"
            )
        self._delete_unused(folder)
        return vectors

    def _fill(
        self,
        vectors: NDArray[np.float32],
        new: NDArray[np.int64],
        passes: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]],
        hashes: NDArray[np.bytes_],
        folder: Path,
    ) -> None:
        """Write the model's vectors to the rows `new` of `vectors`, and to the folder shard by shard."""
        waiting: list[NDArray[np.int64]] = []
        try:
            for rows, batch in passes:
                waiting.append(new[rows])
                vectors[new[rows]] = batch
                if sum(map(len, waiting)) >= SHARD:
                    places, waiting = np.concatenate(waiting), []
                    self._write_shard(folder, hashes[places], vectors[places])
        finally:  # an interrupt must not lose vectors that are computed
            if waiting:
                places = np.concatenate(waiting)
                self._write_shard(folder, hashes[places], vectors[places])

    def _prepare(self, folder: Path) -> None:
        """Make the folder, note the time of its use, and delete temporary files of killed runs."""
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

    def _write_shard(self, folder: Path, keys: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> None:
        """Write a shard under a name that no other run can have."""
        if not self._writes:
            return
        path = folder / f"{uuid.uuid4().hex}.npy"
        temporary = path.with_suffix(".part")
        shard = np.zeros(1, _layout(*vectors.shape))
        shard["key"][0], shard["check"][0], shard["vector"][0] = keys, _checks(keys, vectors), vectors
        try:
            folder.mkdir(parents=True, exist_ok=True)  # another run may have deleted it
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
        _warn(
            f"{self._folder}: could not be written ({error.strerror or error}); vectors are not cached for later runs"
        )

    def _allocate(self, folder: Path, rows: int, dimensions: int) -> NDArray[np.float32]:
        """Allocate an array in memory, or in a file if it is large and the disk has room."""
        size = rows * dimensions * np.dtype(np.float32).itemsize
        if size > IN_MEMORY and self._writes:
            try:
                with tempfile.TemporaryFile(dir=folder) as file:
                    _reserve(file.fileno(), size)
                    return np.memmap(file, np.float32, "r+", shape=(rows, dimensions))
            except OSError as error:
                self._give_up(error)
        return np.empty((rows, dimensions), np.float32)

    def _delete_unused(self, current: Path) -> None:
        """Delete the folders of the least recently used models until the whole is at most `LIMIT` bytes."""
        used, sizes = {}, {}
        for marker in self._folder.glob("*/used"):
            with suppress(OSError):  # another run may be deleting it
                used[marker.parent] = marker.stat().st_mtime_ns
                sizes[marker.parent] = sum(path.stat().st_size for path in marker.parent.iterdir())
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda path: (used[path], path)):
            if total > LIMIT and folder != current:
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


def model_key(model: SentenceTransformer, prompt: str = "", precision: str = "float32") -> str | None:
    """A hash of all that decides the vector of a text: 32 hexadecimal digits.

    The hash covers the bytes of the weights and the rules of the tokenizers, but no name or path. Two models of one
    name share no vectors, and copies of one model share all of them.

    Returns:
        None where the weights or the tokenizer cannot be read, so that the model cannot be told from others.
    """
    readers = [module for module in model.modules() if isinstance(module, InputModule)]
    if model.get_backend() != "torch" or not readers:
        return None
    digest = hashlib.blake2b(digest_size=16)

    def add(part: bytes | memoryview) -> None:
        digest.update(len(part).to_bytes(8, "little"))  # without the length, parts cut elsewhere would hash the same
        digest.update(part)

    add(json.dumps(_settings(model, prompt, precision), sort_keys=True, default=str).encode())
    for reader in readers:
        tokenizer = _tokenizer(reader)
        if tokenizer is None:
            return None
        add(tokenizer.encode())
    tensors = {**dict(model.named_buffers()), **model.state_dict()}  # the model also uses buffers that are not saved
    for name, tensor in sorted(tensors.items()):
        if type(tensor) not in (Tensor, Parameter) or tensor.is_quantized or tensor.layout != torch.strided:
            return None
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(model: SentenceTransformer, prompt: str, precision: str) -> dict[str, object]:
    """All that decides a vector beside weights and tokenizers: how the model is built and used."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    libraries = "torch", "transformers", "sentence-transformers", "openvino"
    return {
        "format": FORMAT,
        "prompt": prompt or model.prompts.get(model.default_prompt_name or "", ""),
        "precision": precision,
        "devices": [model.device.type, torch.cuda.is_available()],
        "truncate_dim": model.truncate_dim,
        "versions": [metadata.version(library).split(".")[0] for library in libraries],
        # repr(module) may show settings alone; Module.__repr__ shows the modules inside
        "modules": [[name, repr(module), Module.__repr__(module)] for name, module in model.named_children()],
        "classes": sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in model.modules()}),
        "max_seq_length": [getattr(module, "max_seq_length", None) for module in model],
        "configs": [{**config.to_dict(), "transformers_version": "", "_name_or_path": ""} for config in configs],
        "attention": [config._attn_implementation for config in configs],
    }


def _tokenizer(reader: InputModule) -> str | None:
    """A tokenizer's rules and settings; None if it is not a fast tokenizer of tokenizers or transformers."""
    tokenizer = getattr(reader, "processor", getattr(reader, "tokenizer", None))
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.to_str()
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    # each call sets truncation and padding again, from max_seq_length and the settings below
    rules = {**json.loads(tokenizer.backend_tokenizer.to_str()), "truncation": None, "padding": None}
    return json.dumps([rules, {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS}], default=str)


def _hashes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    digests = bytearray()
    for text in texts:
        digests += hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.frombuffer(bytes(digests), KEY)


def _layout(rows: int, dimensions: int) -> np.dtype[np.void]:
    """The layout of a shard: one record that stores all keys together, so that a look-up reads them alone."""
    return np.dtype([("key", KEY, (rows,)), ("check", "<u4", (rows,)), ("vector", "<f4", (rows, dimensions))])


def _checks(keys: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> NDArray[np.uint32]:
    """A checksum of each key and vector, by which a damaged row is recognised."""
    words = np.ascontiguousarray(keys).view("<u4").reshape(len(keys), 4), np.ascontiguousarray(vectors).view("<u4")
    sums: NDArray[np.uint32] = sum(side.sum(axis=1, dtype=np.uint32) for side in words)
    return sums


def _read_shards(
    folder: Path, distinct: NDArray[np.bytes_], missing: NDArray[np.bool_], dimensions: int, label: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield the result of `_look_up` for each shard of a folder; a damaged shard is reported and deleted."""
    for path in sorted(folder.glob("*.npy")):
        try:
            yield _look_up(path, distinct, missing, dimensions)
        except OSError:
            pass  # another run has deleted it
        except (ValueError, TypeError, SyntaxError, OverflowError, TokenError):
            _warn(f"{label}: {path} is damaged, cut short or of another model; its texts are embedded again")
            with suppress(OSError):
                path.unlink()


def _look_up(
    path: Path, distinct: NDArray[np.bytes_], missing: NDArray[np.bool_], dimensions: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Read the vectors of a shard that are still missing.

    Args:
        path: the file of the shard.
        distinct: the sorted keys of the texts.
        missing: which keys have no vector yet.
        dimensions: the dimensions of a vector.

    Returns:
        Indices in `distinct`, and their vectors.

    Raises:
        ValueError: the shard is damaged, cut short or of other dimensions. numpy raises other errors for some headers.
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


def _chunks(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), ROWS):
        yield places[start : start + ROWS]


def _reserve(file: int, size: int) -> None:
    """Reserve the room on the disk now, because a memory map that outgrows the disk kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _warn(message: str) -> None:
    print(printable(message), file=sys.stderr, flush=True)
