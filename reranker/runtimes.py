"""What computes a graph on this CPU: OpenVINO or ONNX Runtime, with as many threads as torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from openvino import Core, Model

Inputs = Mapping[str, NDArray[np.int64]]
"""A batch by the names of a graph's inputs; each shape (texts, tokens)."""
Compute = Callable[[Inputs], NDArray[np.float32]]
"""Gives one of the graph's outputs."""

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of the precisions."""


def openvino_runtime(graph: Model | Path, output: str, precision: str) -> Compute:
    """A graph that OpenVINO computes.

    Args:
        graph: in memory, or the path of its .xml.
        output: the name of the one that is wanted.
        precision: float32 or bfloat16, of what is not in int8.

    Raises:
        RuntimeError: the file is not a graph, or has no such output.
    """
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = Core().compile_model(graph, "CPU", settings)
    wanted = compiled.output(output)

    def compute(inputs: Inputs) -> NDArray[np.float32]:
        # a copy: the next call writes over what OpenVINO gives
        return np.array(compiled(dict(inputs))[wanted], dtype=np.float32)

    return compute


def onnx_runtime(graph: bytes | Path, output: str) -> Compute:
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
