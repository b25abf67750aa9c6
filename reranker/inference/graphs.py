"""Convert a torch module to a graph for OpenVINO or ONNX Runtime, in float or with weights quantised to int8.

Weights are quantised to 256 steps when a trained model is loaded or exported. Activations are quantised dynamically:
each group of `GROUP` values of a token gets its own step, so no example texts are needed.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reranker.common.errors import UserError

if TYPE_CHECKING:
    from openvino import Model

OPSET = 17
"""The newest version of ONNX operators that the tracing exporter writes without a conversion."""
PACKAGES = {"openvino-int8": ("nncf",), "onnx-int8": ("onnx", "onnx_ir", "onnxruntime")}
"""Packages that a backend needs beside those of the project."""
GROUP = 32
"""Values that share a step; with 128 the error of a score is a third larger, and OpenVINO saves no time."""
INT8_ACTIVATIONS = 4
"""ONNX Runtime's accuracy level at which activations are in int8, too."""


@contextmanager
def without_telemetry() -> Iterator[None]:
    """A context in which OpenVINO and nncf are imported without their telemetry, which sends a message on import."""
    name = "openvino_telemetry"
    earlier = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail, which the two packages tolerate
    try:
        yield
    finally:
        del sys.modules[name]
        if earlier:
            sys.modules[name] = earlier


def openvino_graph(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Model:
    """The OpenVINO graph of a module, for batches and texts of any length.

    Args:
        module: takes tensors by position and returns a tensor or a tuple of tensors.
        inputs: example tensors by the names of the graph's inputs.
        outputs: names of the graph's outputs.
    """
    with without_telemetry():
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # openvino.convert_model is not used because it sends telemetry
    front_end = FrontEndManager().load_by_framework("pytorch")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that shapes become constants, which callers check
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=tuple(inputs.values()))
        graph = front_end.convert(front_end.load(decoder))
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return graph


def onnx_graph(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """The content of an ONNX file for a module, see `openvino_graph`; the package onnx must be installed."""
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns as above, and that there is another exporter
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,  # type: ignore[arg-type]  # the tracing exporter also writes into a buffer
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs one more package, and takes minutes where this one takes seconds
        )
    return file.getvalue()


def check_installed(backend: str) -> None:
    """Check that the packages of a backend are installed.

    Raises:
        UserError: a package is missing.
    """
    missing = [name for name in PACKAGES.get(backend, ()) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"backend {backend}: not installed: {', '.join(missing)}; run `.venv/bin/pip install {' '.join(missing)}`"
        )


def quantise_openvino(graph: Model) -> Model:
    """An OpenVINO graph whose products with weights are in int8; the argument is changed."""
    with without_telemetry():
        import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # hides nncf's progress bar
        quantised = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    quantised.set_rt_info(str(GROUP), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return quantised


def quantise_onnx(graph: bytes) -> bytes:
    """An ONNX file whose products with weights are in int8."""
    import onnx

    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # the import lets all loggers print, and its own logger would print a line for each operation of the graph
    root.setLevel(level)
    root.handlers[:] = handlers

    quantiser = MatMulNBitsQuantizer(
        onnx.load_model_from_string(graph), bits=8, block_size=GROUP, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS
    )
    quantiser.process()
    content: bytes = quantiser.model.model.SerializeToString()
    return content
