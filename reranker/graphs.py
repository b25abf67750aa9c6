"""A torch module as a graph that OpenVINO or ONNX Runtime computes."""

import io
import warnings
from collections.abc import Mapping, Sequence

import torch
from openvino import Model
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

OPSET = 17
"""Of ONNX: the newest that the exporter by tracing writes without converting."""


def openvino_graph(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Model:
    """The graph of a module for OpenVINO, for batches and texts of any length.

    Args:
        module: takes tensors by position and gives one, or a tuple.
        inputs: examples by the names that the graph's inputs get.
        outputs: names that its outputs get.
    """
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
