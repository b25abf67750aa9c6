"""Graphs that multiply in int8, whose weights are rounded to 256 steps when a trained model is loaded or exported.

Activations are rounded as they come, with a step for each run of a token's values, which needs no example texts.
"""

import io
import logging
from contextlib import redirect_stdout
from importlib.util import find_spec

from openvino import Model

from reranker.errors import UserError

PACKAGES = {"openvino-int8": ("nncf",), "onnx-int8": ("onnx", "onnx_ir", "onnxruntime")}
"""What a backend needs beside the packages of the project."""
RUN = 32
"""Values that share a step; with 128 the error of a score is a third larger, and OpenVINO saves no time."""
IN_INT8 = 4
"""ONNX Runtime's accuracy level for activations in int8, too."""


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
