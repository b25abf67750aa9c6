"""Turn a package's ONNX file with weights in int8 into an ordinary checkpoint, once, in a cache folder."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from reranker.common.errors import UserError

BLOCK = 2**20
"""Number of bytes of a file that are read at once."""
ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
QUANTIZED = "_quantized"
"""End of the name of a tensor of int8. Its scale and zero point have the same name with another end."""
CACHE = "RERANKER_LAB_CACHE"
"""Environment variable that names the cache folder."""


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint is made of."""

    original: str
    """Id of the model whose weights these are."""
    licence: str
    source: str
    """The package and its version, for the model card."""
    sha256: str
    """Hash of the weights in float32. The conversion gives the same bytes each time."""
    files: Mapping[str, str]
    """Hash of each of the package's files that is read. All but the ONNX file are copied."""
    configuration: Mapping[str, object]
    """Content of each JSON file that the checkpoint has besides."""

    def texts(self) -> dict[str, str]:
        """The text files that the conversion writes, by path in the checkpoint."""
        texts = {name: json.dumps(content, indent=2) + "\n" for name, content in self.configuration.items()}
        card = f"""# {self.original}, from weights in int8

- Original model: {self.original}, licence {self.licence}.
- Source: `{ONNX}` of {self.source}, sha256 {self.files[ONNX]}.
- Conversion: each weight in int8 became float32 as (value − zero point) × scale. All else was float32 already.
- `{WEIGHTS}`: sha256 {self.sha256}.
"""
        return {**texts, "README.md": card}


def checkpoint(name: str, conversion: Conversion, find: Callable[[str], Path]) -> Path:
    """The folder of a checkpoint in the cache folder. It is made if it is not there whole.

    Args:
        name: name of the folder.
        conversion: what it is made of.
        find: gives the path of one of the package's files, whose hash is verified.

    Raises:
        UserError: `find` raised it, the cache folder cannot be written, or the conversion gave other weights.
    """
    cache = cache_folder()
    path = cache / name
    if _is_whole(path, conversion):
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{name}.lock"):
            if not _is_whole(path, conversion):  # another process may have made it meanwhile
                with TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=cache) as folder:
                    part = Path(folder, name)
                    _write(part, conversion, find)
                    shutil.rmtree(path, ignore_errors=True)
                    part.replace(path)
    except OSError as error:
        raise _unwritable(str(cache), error.strerror or str(error)) from None
    return path


def cache_folder() -> Path:
    """The folder of the converted models: `$RERANKER_LAB_CACHE`, or reranker-lab in the user's folder of caches.

    Raises:
        UserError: the user has no home folder.
    """
    named, caches = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(named or Path(caches, "reranker-lab"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise _unwritable(str(folder), str(error)) from None


def sha256(path: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _unwritable(folder: str, reason: str) -> UserError:
    return UserError(
        f"{folder}: the cache folder of converted models cannot be written ({reason}); "
        f"set {CACHE} to a folder that can be"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let no other process into the block while one is in it. The system opens the lock of a process that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path, conversion: Conversion) -> bool:
    """Whether a checkpoint has every file, each with its content."""
    hashes = {**_copied(conversion), WEIGHTS: conversion.sha256}
    try:
        texts = all((path / name).read_bytes() == text.encode() for name, text in conversion.texts().items())
        return texts and all(sha256(path / name) == digest for name, digest in hashes.items())
    except OSError:
        return False  # a file is missing or cannot be read


def _copied(conversion: Conversion) -> dict[str, str]:
    return {name: digest for name, digest in conversion.files.items() if name != ONNX}


def _write(folder: Path, conversion: Conversion, find: Callable[[str], Path]) -> None:
    folder.mkdir()
    for name in _copied(conversion):
        shutil.copyfile(find(name), folder / name)
    for name, text in conversion.texts().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    source = find(ONNX)
    (folder / WEIGHTS).write_bytes(save(_tensors(source), metadata={"format": "pt"}))
    if (digest := sha256(folder / WEIGHTS)) != conversion.sha256:
        raise UserError(
            f"{source}: converted to float32 it has sha256 {digest[:12]}… in place of {conversion.sha256[:12]}…; "
            "install the packages of requirements.lock with `make setup`"
        )


def _tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of an ONNX file in float32, by the names that transformers gives them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}

    def floats(name: str) -> NDArray[np.float32]:
        scale, zero = values[f"{name}_scale"], values[f"{name}_zero_point"].astype(np.float32)
        product: NDArray[np.float32] = (values[name + QUANTIZED].astype(np.float32) - zero) * scale
        return product

    tensors = {name: value for name, value in values.items() if name.endswith((".bias", "LayerNorm.weight"))}
    for name in (each.removesuffix(QUANTIZED) for each in values if each.endswith("embeddings.weight" + QUANTIZED)):
        tensors[name] = floats(name)
    for node in graph.node:
        if node.op_type == "MatMulInteger":  # the matrix of a layer has a number for a name; the node has the layer's
            layer = ".".join(node.name.strip("/").split("/")[:-1])
            tensors[f"{layer}.weight"] = np.ascontiguousarray(floats(node.input[1].removesuffix(QUANTIZED)).T)
    return tensors
