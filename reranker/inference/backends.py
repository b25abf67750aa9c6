"""What computes a transformer's forward pass: torch with a choice of attention, OpenVINO or ONNX Runtime."""

from collections.abc import Callable, Mapping
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

TRACED = ["sort a list", "a text of more words than the first, so that one of them is padded"]
CHECKED = ["rows", "how to read rows of a file, one after the other", "columns and rows"]
"""Texts of which torch and the compiled model must think alike: other lengths, and another number, than `TRACED`."""
APART = {"float32": 1e-3, "bfloat16": 1e-1, "int8": 5e-1}
"""Norm of the difference that is allowed, as a share of the norm."""
Features = Mapping[str, Tensor]
"""What a transformer is given, in its order."""
Inputs = Mapping[str, NDArray[np.int64]]
"""A batch by the names of a graph's inputs; each shape (texts, tokens)."""
Forward = Callable[[Inputs], NDArray[np.float32]]
"""Gives one of the graph's outputs."""
HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of the precisions."""
FLASH = "flash_attention_2"


class CompiledTransformer(nn.Module):
    """A transformer that another library computes in place of torch; it cannot be trained, and not be saved.

    Another process that is sent it compiles it anew.

    Args:
        body: on the CPU; its weights are kept, for they tell models apart.
        inputs: tensors as it is given them.
        output: the tensor that is wanted of it.
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
        self._made_of = body, inputs, output, precision, backend
        self._inputs, self._output = list(inputs), output
        if backend != "openvino":  # tells models apart, as the weights do
            self.register_buffer("backend", torch.frombuffer(bytearray(backend.encode()), dtype=torch.uint8))
        self._compute = _compute(*self._made_of)

    def __reduce__(self) -> tuple[type["CompiledTransformer"], tuple[object, ...]]:
        return CompiledTransformer, self._made_of

    def forward(self, **inputs: Any) -> Mapping[str, Tensor]:
        """The wanted tensor by its name."""
        return {self._output: torch.from_numpy(self._compute({name: inputs[name].numpy() for name in self._inputs}))}


def use_backend(model: SentenceTransformer | CrossEncoder, wish: str, precision: str) -> None:
    """Let a model compute its scores or vectors with what was asked for.

    Args:
        model: changed in place; a static embedding stays as it is.
        wish: torch; openvino, openvino-int8 or onnx-int8; or auto: openvino on a CPU, for a model that OpenVINO can
            read.
        precision: float32 or bfloat16, see `reranker.inference.compute.choose_precision`.

    Raises:
        UserError: openvino or int8 is asked for, and the model is on a GPU, a package is missing, or the library cannot
            read the model.
    """
    transformer = model[0]
    if wish == "torch" or not isinstance(transformer, Transformer):
        return
    if model.device.type != "cpu":
        if wish != "auto":
            raise UserError(
                f"params.yaml: compute.backend: {wish} computes on the CPU, and here is a GPU; use auto or torch"
            )
        return
    check_installed(wish)
    try:
        _compile(transformer, precision, "openvino" if wish == "auto" else wish)
    except Exception as error:  # whatever a library raises for a model that it does not know
        library = "ONNX Runtime" if wish == "onnx-int8" else "OpenVINO"
        reason = f"{library} cannot read this model ({first_line(error)[:100]})"
        if wish != "auto":
            raise UserError(f"params.yaml: compute.backend: {reason}; use auto or torch") from None
        if first_process():
            print(f"{reason}: torch computes")


def _compile(transformer: Transformer, precision: str, backend: str) -> None:
    output = transformer.modality_config["text"]["method_output_name"]
    if not isinstance(output, str):
        raise TypeError(f"it gives {output}")
    inputs, _ = _called(transformer, TRACED)
    _, expected = _called(transformer, CHECKED)
    body = transformer.model
    compiled = CompiledTransformer(body, inputs, output, precision, backend)
    transformer.model = compiled  # type: ignore[assignment]  # it is called like one
    _, found = _called(transformer, CHECKED)
    apart = float((found - expected).norm() / expected.norm())
    if not apart < APART["int8" if backend.endswith("int8") else precision]:
        transformer.model = body
        raise ValueError(f"its output is {apart:.1e} away from torch's")


def _called(transformer: Transformer, texts: list[str]) -> tuple[Features, Tensor]:
    """The tensors that a transformer is given for some texts, and what comes out, without the padding."""
    features = transformer.preprocess(texts)
    inputs = _tensors(features)
    with torch.inference_mode():
        found = transformer(features)[transformer.module_output_name].float()
    return inputs, found[inputs["attention_mask"].bool()] if found.ndim == 3 else found


def _tensors(features: Mapping[str, Any]) -> Features:
    return {name: value for name, value in features.items() if isinstance(value, Tensor)}


def _compute(body: PreTrainedModel, inputs: Features, output: str, precision: str, backend: str) -> Forward:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, *tensors: Tensor) -> Tensor:
            found: Tensor = self.body(**dict(zip(inputs, tensors, strict=True)), return_dict=True)[output]
            return found

    if backend == "onnx-int8":
        return onnx_runtime(quantise_onnx(onnx_graph(Positional(), inputs, [output])), output)
    graph = openvino_graph(Positional(), inputs, [output])
    if backend == "openvino-int8":
        graph = quantise_openvino(graph)
    return openvino_runtime(graph, output, precision)


def openvino_runtime(graph: "Model | Path", output: str, precision: str) -> Forward:
    """A graph that OpenVINO computes.

    Args:
        graph: in memory, or the path of its .xml.
        output: the name of the one that is wanted.
        precision: float32 or bfloat16, of what is not in int8.

    Raises:
        RuntimeError: the file is not a graph, or has no such output.
    """
    with without_telemetry():
        from openvino import Core

    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = Core().compile_model(graph, "CPU", settings)
    wanted = compiled.output(output)

    def compute(inputs: Inputs) -> NDArray[np.float32]:
        # a copy: the next call writes over what OpenVINO gives
        return np.array(compiled(dict(inputs))[wanted], dtype=np.float32)

    return compute


def onnx_runtime(graph: bytes | Path, output: str) -> Forward:
    """A graph that ONNX Runtime computes; the package onnxruntime must be installed.

    Args:
        graph: the content of an ONNX file, or its path.
        output: the name of the one that is wanted.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors
    given = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(given, settings, providers=["CPUExecutionProvider"])

    def compute(inputs: Inputs) -> NDArray[np.float32]:
        found: list[NDArray[np.float32]] = session.run([output], dict(inputs))
        return found[0]

    return compute


def use_attention(model: SentenceTransformer | CrossEncoder, wish: str, precision: str) -> None:
    """Let a transformer compute its attention with what was asked for.

    Flash attention (Dao, ICLR 2024) never holds the matrix of all pairs of tokens, and skips the padding. The inputs
    stay padded, so what counts their tokens by the mask goes on to work.

    Args:
        model: changed in place; a static embedding stays as it is.
        wish: sdpa, eager or flash_attention_2; or auto: flash_attention_2 for a model that has it, where it is
            installed, on a GPU in bfloat16; else what transformers takes, sdpa for a model that has it.
        precision: float32 or bfloat16, see `reranker.inference.compute.choose_precision`.

    Raises:
        UserError: flash_attention_2 is asked for, and there is no GPU, no package or no bfloat16; or the model does not
            have what is asked for.
    """
    transformer = model[0]
    if not isinstance(transformer, Transformer):
        return
    body = transformer.model
    available = is_flash_attn_2_available()
    if wish == "auto":
        if not (available and precision == "bfloat16" and body._supports_flash_attn):
            return
        wish = FLASH
    if wish == FLASH and not available:
        raise UserError(
            f"params.yaml: compute.attention: {FLASH} needs a GPU and the package flash-attn, 2.3.3 or newer: install "
            "it, or use auto or sdpa"
        )
    if wish == FLASH and precision != "bfloat16":
        raise UserError(f"params.yaml: compute.attention: {FLASH} does not compute in {precision}; use auto or sdpa")
    refused = UserError(f"params.yaml: compute.attention: {type(body).__name__} has no {wish}; use auto")
    try:
        body.set_attn_implementation(wish)
    except ValueError:
        raise refused from None
    if body.config._attn_implementation != wish:  # some models cannot change it, and only log that
        raise refused
