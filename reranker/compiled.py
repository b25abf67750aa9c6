"""A transformer's forward pass by OpenVINO or ONNX Runtime: on a CPU, faster than torch."""

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from reranker.errors import UserError, first_line
from reranker.graphs import onnx_graph, openvino_graph
from reranker.progress import first_process
from reranker.quantised import check_installed, quantise_onnx, quantise_openvino
from reranker.runtimes import Compute, onnx_runtime, openvino_runtime

TRACED = ["sort a list", "a text of more words than the first, so that one of them is padded"]
CHECKED = ["rows", "how to read rows of a file, one after the other", "columns and rows"]
"""Texts of which torch and the compiled model must think alike: other lengths, and another number, than `TRACED`."""
APART = {"float32": 1e-3, "bfloat16": 1e-1, "int8": 5e-1}
"""Norm of the difference that is allowed, as a share of the norm."""

Features = Mapping[str, Tensor]
"""What a transformer is given, in its order."""


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
        precision: float32 or bfloat16, see `reranker.scoring.choose_precision`.

    Raises:
        UserError: openvino or int8 is asked for, and the model is on a GPU, a package is missing, or the library cannot
            read the model.
    """
    transformer = model[0]
    if wish == "torch" or not isinstance(transformer, Transformer):
        return
    if model.device.type != "cpu":
        if wish != "auto":
            raise UserError(f"params.yaml: backend: {wish} computes on the CPU, and here is a GPU; use auto or torch")
        return
    check_installed(wish)
    try:
        _compile(transformer, precision, "openvino" if wish == "auto" else wish)
    except Exception as error:  # whatever a library raises for a model that it does not know
        library = "ONNX Runtime" if wish == "onnx-int8" else "OpenVINO"
        reason = f"{library} cannot read this model ({first_line(error)[:100]})"
        if wish != "auto":
            raise UserError(f"params.yaml: backend: {reason}; use auto or torch") from None
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


def _compute(body: PreTrainedModel, inputs: Features, output: str, precision: str, backend: str) -> Compute:
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
