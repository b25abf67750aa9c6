"""Find the files of a model by its name in params.yaml: a bundled model, a local folder or a Hub id."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from reranker.common.artifacts import PRODUCER
from reranker.common.bundled.conversion import BLOCK
from reranker.common.bundled.models import BUNDLED, bundled_tokenizer, bundled_weights, find_bundled, is_static
from reranker.common.errors import UserError, first_line


def resolve(name: str) -> str:
    """Turn a model's name into one that a library can load: a local folder, or a Hub id where the hub is switched on.

    Args:
        name: `bundled/…`, a local folder or a Hub id.

    Raises:
        UserError: the bundled model or the folder does not exist, the weights are not the published ones, or the
            model is bundled but not a transformer.
    """
    if name.startswith("bundled/"):
        weights = bundled_weights(name)
        if is_static(weights):
            raise UserError(
                f"params.yaml: model '{name}' is a static embedding, which is no transformer to fine-tune; "
                "use it as `retriever` or as `static.model`"
            )
        return str(weights.parent)
    if Path(name).is_dir():
        return name
    # These are the values that huggingface_hub treats as true.
    offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() in ("1", "ON", "YES", "TRUE")
    if offline and not _cache_file(name):
        raise UserError(
            f"params.yaml: model '{name}' is neither bundled ({', '.join(BUNDLED)}) nor a local folder, "
            "and the hub is switched off; set HF_HUB_OFFLINE=0 to download it"
        )
    return name


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn a library's failure to load a model into an error of one line.

    Args:
        name: a local folder, perhaps one that a stage wrote, or a Hub id.

    Raises:
        UserError: the block failed because the folder or the Hub repository holds no usable model.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        stage = PRODUCER.get(Path(name))
        remedy = f"run `dvc repro --force {stage}`" if stage else "name a folder or a Hub id that holds a whole model"
        raise UserError(f"model '{name}' could not be loaded ({first_line(error)}); {remedy}") from None


def check_words(model: object) -> None:
    """Check that a model's tokenizer has words.

    Without the file of the words, transformers makes a tokenizer that has special tokens alone.

    Args:
        model: a model; it passes if it has no tokenizer of transformers.

    Raises:
        ValueError: the tokenizer has no words; `loading` turns this into one line.
    """
    tokenizer = getattr(model, "tokenizer", None)
    special = getattr(tokenizer, "all_special_tokens", None)
    if tokenizer is not None and special is not None and len(tokenizer) <= len(special):
        raise ValueError("its tokenizer has no words: a file such as tokenizer.json is missing")


def tokenizer_file(name: str) -> Path | None:
    """The tokenizer.json of a bundled or local model, or None for a model on a hub."""
    if name.startswith("bundled/"):
        return bundled_tokenizer(name)
    path = Path(name) / "tokenizer.json"
    return path if path.exists() else None


def weight_files(name: str) -> list[Path]:
    """The files of a model's weights, none for a model of a hub that is not in the hub's cache.

    Args:
        name: `bundled/…`, a local folder or a Hub id.
    """
    if name.startswith("bundled/"):
        return [bundled_weights(name)]
    folder = _folder(name)
    if folder is None:
        return []
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text(encoding="utf-8")) if modules.exists() else [{"path": ""}]
    parts = [folder / path for path in dict.fromkeys(module["path"] for module in listed)]
    weights = [file for part in parts for file in sorted(part.glob("*.safetensors"))]
    return weights or [file for part in parts for file in sorted(part.glob("pytorch_model*.bin"))]


def fingerprint(name: str) -> str:
    """A hash of all files of a model.

    For a bundled model it is the hash of the weights, which is verified anyway. For a Hub id that is not in the hub's
    cache it is the name.

    Args:
        name: `bundled/…`, a local folder or a Hub id.
    """
    if name.startswith("bundled/"):
        return find_bundled(name).sha256
    folder = _folder(name)
    if folder is None:
        return name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _folder(name: str) -> Path | None:
    """The folder of a model's files, or None for a model of a hub that is not in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    file = _cache_file(name)
    return file.parent if file else None


def _cache_file(name: str) -> Path | None:
    """A file at the top of a model's folder in the hub's cache, or None if the model is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        paths = (try_to_load_from_cache(name, file) for file in ("config.json", "modules.json"))
        return next((Path(path) for path in paths if isinstance(path, str)), None)
    except HFValidationError:
        return None  # the name is no Hub id but a path that does not exist
