"""A torch module as a graph that OpenVINO or ONNX Runtime computes, in float or with weights rounded to int8.

Weights are rounded to 256 steps when a trained model is loaded or exported. Activations are rounded as they come, with
a step for each run of a token's values, which needs no example texts.
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
"""Of ONNX: the newest that the exporter by tracing writes without converting."""
PACKAGES = {"openvino-int8": ("nncf",), "onnx-int8": ("onnx", "onnx_ir", "onnxruntime")}
"""What a backend needs beside the packages of the project."""
RUN = 32
"""Values that share a step; with 128 the error of a score is a third larger, and OpenVINO saves no time."""
IN_INT8 = 4
"""ONNX Runtime's accuracy level for activations in int8, too."""


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import OpenVINO or nncf inside: without their telemetry, which sends a message to their maker on import."""
    name = "openvino_telemetry"
    earlier = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]  # it cannot be imported, and they do without it
    try:
        yield
    finally:
        del sys.modules[name]
        if earlier:
            sys.modules[name] = earlier


def openvino_graph(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Model:
    """The graph of a module for OpenVINO, for batches and texts of any length.

    Args:
        module: takes tensors by position and gives one, or a tuple.
        inputs: examples by the names that the graph's inputs get.
        outputs: names that its outputs get.
    """
    with without_telemetry():
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # not openvino.convert_model, which reports to its maker that it was called
    front_end = FrontEndManager().load_by_framework("pytorch")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: that shapes become constants, which callers check
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=tuple(inputs.values()))
        graph = front_end.convert(front_end.load(decoder))
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return graph


def onnx_graph(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """The same as an ONNX file; the package onnx must be installed."""
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, as above, and that there is another exporter
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,  # type: ignore[arg-type]  # the exporter by tracing writes into a buffer too
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs one more package, and takes minutes where this takes seconds
        )
    return file.getvalue()


def check_installed(backend: str) -> None:
    """Check that the packages of a backend are there.

    Raises:
        UserError: one is not.
    """
    gone = [name for name in PACKAGES.get(backend, ()) if find_spec(name) is None]
    if gone:
        raise UserError(
            f"backend {backend}: not installed: {', '.join(gone)}; run `.venv/bin/pip install {' '.join(gone)}`"
        )


def quantise_openvino(graph: Model) -> Model:
    """A graph of OpenVINO whose products with weights are in int8; the one given is changed."""
    with without_telemetry():
        import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its bar
        rounded = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    rounded.set_rt_info(str(RUN), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return rounded


def quantise_onnx(graph: bytes) -> bytes:
    """An ONNX file whose products with weights are in int8."""
    import onnx

    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # its import lets all loggers print, its own a line for each operation of the graph
    root.setLevel(level)
    root.handlers[:] = handlers

    rounding = MatMulNBitsQuantizer(
        onnx.load_model_from_string(graph), bits=8, block_size=RUN, is_symmetric=True, accuracy_level=IN_INT8
    )
    rounding.process()
    content: bytes = rounding.model.model.SerializeToString()
    return content
