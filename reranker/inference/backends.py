"""Choose what computes a transformer's forward pass: torch and its attention, OpenVINO or ONNX Runtime."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from reranker.common.errors import UserError, first_line
from reranker.common.progress import first_process
from reranker.inference.graphs import (
    check_installed,
    onnx_graph,
    openvino_graph,
    quantise_onnx,
    quantise_openvino,
    without_telemetry,
)

if TYPE_CHECKING:
    from openvino import Model

TRACE_TEXTS = ["sort a list", "a text of more words than the first, so that one of them is padded"]
"""Texts with which a model is traced into a graph."""
CHECK_TEXTS = ["rows", "how to read rows of a file, one after the other", "columns and rows"]
"""Texts for which torch and the compiled model must agree. Their lengths and number differ from `TRACE_TEXTS`."""
CHECK_PAIRS = [
    ("how tall is the tower", "The tower is 330 metres tall, as high as a building of 81 storeys."),
    ("how tall is the tower", "Bake the apples for half an hour."),
    ("read a csv file", "To read the rows of a csv file, open it and pass it to a reader."),
    ("read a csv file", "The capital of France is Paris."),
    ("what is the capital of France", "The capital of France is Paris."),
    ("what is the capital of France", "A list is sorted in place."),
]
"""The same for a model that gives a pair one number: right and wrong passages, so that the numbers are far apart."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1, "int8": 5e-1}
"""Largest norm of the difference between the two outputs, as a share of the size of torch's output."""
Features = Mapping[str, Tensor]
"""The input tensors of a transformer by name, in the order of its arguments."""
Inputs = Mapping[str, NDArray[np.int64]]
"""A batch by the names of a graph's inputs; the shape of each array is (texts, tokens)."""
Forward = Callable[[Inputs], NDArray[np.float32]]
"""Computes one output of a graph."""
HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names for the precisions."""
FLASH = "flash_attention_2"


class CompiledTransformer(nn.Module):
    """A transformer that another library computes in place of torch; it can be neither trained nor saved.

    A process that receives a pickled one compiles it again.

    Args:
        body: the torch model on the CPU; its weights stay in the module because they identify the model.
        inputs: examples of the input tensors.
        output: name of the output tensor to compute.
        precision: float32 or bfloat16.
        backend: openvino, openvino-int8 or onnx-int8.
    """

    def __init__(
        self,
        body: PreTrainedModel,
        inputs: Features,
        output: str,
        precision: str,
        backend: str = "openvino",
    ) -> None:
        super().__init__()
        self.body = body
        self.config = body.config
        self._arguments = body, inputs, output, precision, backend
        self._inputs, self._output = list(inputs), output
        if backend != "openvino":  # the buffer is part of the model's identity, as the weights are
            self.register_buffer("backend", torch.frombuffer(bytearray(backend.encode()), dtype=torch.uint8))
        self._compute = _compute(*self._arguments)

    def __reduce__(self) -> tuple[type["CompiledTransformer"], tuple[object, ...]]:
        return CompiledTransformer, self._arguments

    def forward(self, **inputs: Any) -> Mapping[str, Tensor]:
        """The output tensor by its name."""
        return {self._output: torch.from_numpy(self._compute({name: inputs[name].numpy() for name in self._inputs}))}


def use_backend(model: SentenceTransformer | CrossEncoder, backend: str, precision: str) -> None:
    """Let a model compute its scores or vectors with a backend.

    Args:
        model: changed in place; a static embedding stays as it is.
        backend: torch, openvino, openvino-int8 or onnx-int8; auto takes openvino on a CPU, for a model that OpenVINO
            can read, and torch otherwise.
        precision: float32 or bfloat16, see `reranker.inference.compute.choose_precision`.

    Raises:
        UserError: the backend is neither auto nor torch, and the model is on a GPU, a package is missing, or the
            library cannot read the model.
    """
    transformer = model[0]
    if backend == "torch" or not isinstance(transformer, Transformer):
        return
    if model.device.type != "cpu":
        if backend != "auto":
            raise UserError(
                f"params.yaml: compute.backend: {backend} computes on the CPU, but the model is on a GPU; "
                "use auto or torch"
            )
        return
    check_installed(backend)
    try:
        _compile(transformer, precision, "openvino" if backend == "auto" else backend)
    except Exception as error:  # libraries raise all kinds of errors for a model that they cannot read
        library = "ONNX Runtime" if backend == "onnx-int8" else "OpenVINO"
        reason = f"{library} cannot read this model ({first_line(error)[:100]})"
        if backend != "auto":
            raise UserError(f"params.yaml: compute.backend: {reason}; use auto or torch") from None
        if first_process():
            print(f"{reason}: torch computes it")


def _compile(transformer: Transformer, precision: str, backend: str) -> None:
    output = transformer.modality_config["text"]["method_output_name"]
    if not isinstance(output, str):
        raise TypeError(f"it gives {output}")
    inputs, traced = _run(transformer, TRACE_TEXTS)
    examples: Sequence[str | tuple[str, str]] = CHECK_PAIRS if traced.shape[-1] == 1 else CHECK_TEXTS
    _, expected = _run(transformer, examples)
    body = transformer.model
    compiled = CompiledTransformer(body, inputs, output, precision, backend)
    transformer.model = compiled  # type: ignore[assignment]  # it is called like one
    _, actual = _run(transformer, examples)
    difference = float((actual - expected).norm() / _size(expected))
    if not difference < TOLERANCE["int8" if backend.endswith("int8") else precision]:
        transformer.model = body
        raise ValueError(f"its output is {difference:.1e} away from torch's")


def _size(output: Tensor) -> float:
    """The norm of an output, by which a difference is large or small.

    For one number a text it is the norm of the deviations from their mean. A score may be near 0 by chance, and
    ranking sees only how far the scores are apart. A tenth of the norm is the least, for a model that hardly tells the
    texts apart.
    """
    norm = float(output.norm())
    if output.shape[-1] == 1:
        norm = max(float((output - output.mean()).norm()), norm / 10)
    return max(norm, 1e-6)


def _run(transformer: Transformer, texts: Sequence[str | tuple[str, str]]) -> tuple[Features, Tensor]:
    """The input tensors of a transformer for some texts or pairs, and its output without the padding."""
    features = transformer.preprocess(list(texts))
    inputs = _tensors(features)
    with torch.inference_mode():
        output = transformer(features)[transformer.module_output_name].float()
    return inputs, output[inputs["attention_mask"].bool()] if output.ndim == 3 else output


def _tensors(features: Mapping[str, Any]) -> Features:
    return {name: value for name, value in features.items() if isinstance(value, Tensor)}


def _compute(body: PreTrainedModel, inputs: Features, output: str, precision: str, backend: str) -> Forward:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, *tensors: Tensor) -> Tensor:
            result: Tensor = self.body(**dict(zip(inputs, tensors, strict=True)), return_dict=True)[output]
            return result

    if backend == "onnx-int8":
        return onnx_runtime(quantise_onnx(onnx_graph(Positional(), inputs, [output])), output)
    graph = openvino_graph(Positional(), inputs, [output])
    if backend == "openvino-int8":
        graph = quantise_openvino(graph)
    return openvino_runtime(graph, output, precision)


def openvino_runtime(graph: "Model | Path", output: str, precision: str) -> Forward:
    """A function that computes a graph with OpenVINO.

    Args:
        graph: the graph in memory, or the path of its .xml file.
        output: name of the output to compute.
        precision: float32 or bfloat16, for everything that is not in int8.

    Raises:
        RuntimeError: the file is not a graph, or the graph has no such output.
    """
    with without_telemetry():
        from openvino import Core

    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = Core().compile_model(graph, "CPU", settings)
    port = compiled.output(output)

    def compute(inputs: Inputs) -> NDArray[np.float32]:
        # a copy, because OpenVINO's next call overwrites the result of this one
        return np.array(compiled(dict(inputs))[port], dtype=np.float32)

    return compute


def onnx_runtime(graph: bytes | Path, output: str) -> Forward:
    """A function that computes a graph with ONNX Runtime; the package onnxruntime must be installed.

    Args:
        graph: the content of an ONNX file, or its path.
        output: name of the output to compute.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors only
    source = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])

    def compute(inputs: Inputs) -> NDArray[np.float32]:
        outputs: list[NDArray[np.float32]] = session.run([output], dict(inputs))
        return outputs[0]

    return compute


def use_attention(model: SentenceTransformer | CrossEncoder, attention: str, precision: str) -> None:
    """Let a transformer compute its attention with an implementation.

    Flash attention (Dao, ICLR 2024) never holds the matrix of all pairs of tokens, and skips the padding. The inputs
    stay padded, so code that counts their tokens by the attention mask still works.

    Args:
        model: changed in place; a static embedding stays as it is.
        attention: sdpa, eager or flash_attention_2; auto takes flash_attention_2 on a GPU in bfloat16, where it is
            installed and the model supports it, and otherwise the default of transformers: sdpa where supported.
        precision: float32 or bfloat16, see `reranker.inference.compute.choose_precision`.

    Raises:
        UserError: the model does not support the implementation, or it is flash_attention_2 and there is no GPU, no
            package or no bfloat16.
    """
    transformer = model[0]
    if not isinstance(transformer, Transformer):
        return
    body = transformer.model
    available = is_flash_attn_2_available()
    if attention == "auto":
        if not (available and precision == "bfloat16" and body._supports_flash_attn):
            return
        attention = FLASH
    if attention == FLASH and not available:
        raise UserError(
            f"params.yaml: compute.attention: {FLASH} needs a GPU and the package flash-attn, 2.3.3 or newer: install "
            "it, or use auto or sdpa"
        )
    if attention == FLASH and precision != "bfloat16":
        raise UserError(f"params.yaml: compute.attention: {FLASH} does not compute in {precision}; use auto or sdpa")
    refusal = UserError(f"params.yaml: compute.attention: {type(body).__name__} has no {attention}; use auto")
    try:
        body.set_attn_implementation(attention)
    except ValueError:
        raise refusal from None
    if body.config._attn_implementation != attention:  # some models cannot change it, and only log that
        raise refusal
