"""Graphs that multiply in int8: weights and activations are rounded to 256 steps once a model is trained.

The steps of the activations are chosen on example texts; SmoothQuant (Xiao et al., ICML 2023) first moves outliers from
the activations into the weights.
"""

import logging
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from openvino import Model

from reranker.errors import UserError
from reranker.runtimes import Inputs

PACKAGES = {"openvino-int8": ("nncf",), "onnx-int8": ("onnx", "onnxruntime")}
"""What a backend needs beside the packages of the project."""


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


def quantise_openvino(graph: Model, examples: Sequence[Inputs]) -> Model:
    """A graph of OpenVINO whose matrix products are in int8.

    Args:
        graph: in float32; it is changed.
        examples: what it may be given, one text or pair each, without padding.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        graph,
        nncf.Dataset([dict(one) for one in examples]),
        subset_size=len(examples),
        model_type=nncf.ModelType.TRANSFORMER,
    )


def quantise_onnx(graph: bytes) -> bytes:
    """An ONNX file whose products with weights are in int8; the steps of the activations are chosen batch by batch."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            onnx.load_model_from_string(graph),
            whole := Path(folder) / "model.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return whole.read_bytes()
