"""Export a cross-encoder to files for OpenVINO or ONNX Runtime, and load such files.

The files lie where `CrossEncoder(folder, backend="openvino" or "onnx")` looks for them. The graph has a second
output, `scores`, so that scoring a pair takes only a tokenizer and the runtime.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reranker.common.artifacts import write_json
from reranker.common.errors import UserError, first_line
from reranker.inference.backends import Forward, onnx_runtime, openvino_runtime
from reranker.inference.compute import choose_precision
from reranker.inference.graphs import (
    check_installed,
    onnx_graph,
    openvino_graph,
    quantise_onnx,
    quantise_openvino,
    without_telemetry,
)
from reranker.inference.scoring import BATCH

FILES = {
    "openvino": "openvino/openvino_model.xml",
    "openvino-int8": "openvino/openvino_model_qint8_quantized.xml",
    "onnx-int8": "onnx/model_qint8.onnx",
}
"""File of the graph by backend, named as Sentence Transformers names it."""
ABOUT = "export.json"
SCORES = "scores"
TRACE_PAIRS = [("sort a list", "of numbers"), ("a pair of more words", "than the first, so that one of them is padded")]
"""Pairs with which a model is traced into a graph."""


class About(NamedTuple):
    """Facts about the original model that its exported graph does not contain."""

    parameters: int
    """Number of the model's parameters, before any was quantised."""
    origin: str
    """Fingerprint of the original model, see `reranker.common.model_files.fingerprint`."""


class _WholeModel(nn.Module):
    """All modules of a cross-encoder and its activation, called with tensors by position."""

    def __init__(self, model: CrossEncoder, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.activation = model.activation_fn or nn.Identity()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.model(dict(zip(self.inputs, tensors, strict=True)))
        scores: Tensor = self.activation(outputs["scores"])
        return outputs[self.model[0].module_output_name], scores.reshape(-1)


def export(model: CrossEncoder, backend: str, folder: Path, origin: str) -> None:
    """Write a cross-encoder with one output for a backend, with its tokenizer and configuration.

    Args:
        model: loaded from a folder, on the CPU.
        backend: one of `FILES`.
        folder: an empty folder.
        origin: see `About`.

    Raises:
        UserError: a package of the backend is missing, the model is not a transformer, or it has several outputs.
    """
    check_installed(backend)
    transformer = model[0]
    if not isinstance(transformer, Transformer) or model.num_labels != 1:
        raise UserError("the model cannot be exported: it must be a transformer with one output")
    inputs = _tensors(model, TRACE_PAIRS)
    outputs = [str(transformer.modality_config["text"]["method_output_name"]), SCORES]
    path = folder / FILES[backend]
    path.parent.mkdir(parents=True)
    whole = _WholeModel(model, list(inputs))
    if backend == "onnx-int8":
        path.write_bytes(quantise_onnx(onnx_graph(whole, inputs, outputs)))
    else:
        graph = openvino_graph(whole, inputs, outputs)
        if backend == "openvino-int8":
            graph = quantise_openvino(graph)
        with without_telemetry():
            from openvino import save_model

        save_model(graph, path, compress_to_fp16=False)
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "model.safetensors").unlink()
    about = About(sum(part.numel() for part in model.parameters()), origin)
    write_json(about._asdict(), folder / ABOUT)


def _tensors(model: CrossEncoder, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    return {name: value for name, value in model.preprocess(pairs).items() if isinstance(value, Tensor)}


def graph_file(folder: Path) -> tuple[str, Path] | None:
    """The backend and the graph file of an exported model; None if the folder holds no exported model."""
    if (folder / "model.safetensors").exists():
        return None
    return next(((backend, folder / file) for backend, file in FILES.items() if (folder / file).is_file()), None)


def precisions(backend: str) -> list[str]:
    """The precisions that this machine can use for what is not in int8; the one that it chooses by itself is first."""
    if backend == "onnx-int8":
        return ["float32"]
    return list(dict.fromkeys([choose_precision("auto"), "float32"]))


def graph_bytes(path: Path) -> int:
    """The size of a graph on disk, with the separate file of weights that OpenVINO writes."""
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists())


def read_about(folder: Path) -> About:
    """The facts about the original of an exported model.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        facts = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return About(int(facts["parameters"]), str(facts["origin"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / ABOUT} is missing or damaged; run `python -m stages.export`") from None


class ExportedModel:
    """An exported cross-encoder.

    Args:
        folder: a folder that `export` wrote.
        precision: `auto`, `float32` or `bfloat16`, for what OpenVINO does not compute in int8.

    Raises:
        UserError: the folder holds no exported model or a damaged one, or a package is missing.
    """

    def __init__(self, folder: Path, precision: str = "auto") -> None:
        file = graph_file(folder)
        if file is None:
            raise UserError(f"model '{folder}' is not an exported model; run `python -m stages.export`")
        backend, self.graph = file
        check_installed(backend)
        for name in ("tokenizer.json", "tokenizer_config.json"):  # without them the library makes another tokenizer
            if not (folder / name).is_file():
                raise UserError(f"model '{folder}' is incomplete: it has no {name}; run `python -m stages.export`")
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
            self._compute: Forward = (
                onnx_runtime(self.graph, SCORES)
                if backend == "onnx-int8"
                else openvino_runtime(self.graph, SCORES, choose_precision(precision))
            )
        except Exception as error:  # libraries raise all kinds of errors for a truncated file
            raise UserError(
                f"model '{folder}' could not be loaded ({first_line(error)[:100]}); run `python -m stages.export`"
            ) from None
        self.max_length = int(self.tokenizer.model_max_length)
        self.inputs: list[str] = list(self.tokenizer.model_input_names)

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Score of each query with the passage at the same place; shape (pairs,)."""
        if not queries:
            return np.zeros(0)
        encoded = self.tokenizer(list(queries), list(passages), truncation=True, max_length=self.max_length)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        scores = np.zeros(len(order))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = {name: [values[place] for place in places] for name, values in encoded.items()}
            scores[places] = self._compute(dict(self.tokenizer.pad(batch, return_tensors="np")))
        return scores
