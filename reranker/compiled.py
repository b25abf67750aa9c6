"""A transformer's forward pass by OpenVINO: on a CPU, scores and vectors in about half the time that torch takes."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from openvino import Core, Model
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from reranker.errors import UserError, first_line

TRACED = ["sort a list", "a text of more words than the first, so that one of them is padded"]
CHECKED = ["rows", "how to read rows of a file, one after the other", "columns and rows"]
"""Texts of which torch and the compiled model must think alike: other lengths, and another number, than `TRACED`."""
APART = {"float32": 1e-3, "bfloat16": 1e-1}
"""Norm of the difference that is allowed, as a share of the norm."""


class CompiledTransformer(nn.Module):
    """A transformer that computes with OpenVINO in place of torch; it cannot be trained, and not be saved.

    Another process that is sent it compiles it anew.

    Args:
        body: on the CPU; its weights are kept, for they tell models apart.
        inputs: tensors as it is given them, by their names and in their order.
        output: the tensor that is wanted of it.
        precision: float32 or bfloat16.
    """

    def __init__(self, body: PreTrainedModel, inputs: Mapping[str, Tensor], output: str, precision: str) -> None:
        super().__init__()
        self.body = body
        self.config = body.config
        self._inputs, self._output, self._precision = inputs, output, precision
        hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._compiled = Core().compile_model(_traced(body, inputs, output), "CPU", settings)

    def __reduce__(self) -> tuple[type["CompiledTransformer"], tuple[object, ...]]:
        return CompiledTransformer, (self.body, self._inputs, self._output, self._precision)

    def forward(self, **inputs: Any) -> Mapping[str, Tensor]:
        """The wanted tensor by its name."""
        given = [inputs[name].numpy() for name in self._inputs]
        # a copy: the next call writes over what OpenVINO gives
        return {self._output: torch.from_numpy(np.array(self._compiled(given)[0], dtype=np.float32))}


def use_backend(model: SentenceTransformer | CrossEncoder, wish: str, precision: str) -> None:
    """Let a model compute its scores or vectors with what was asked for.

    Args:
        model: changed in place; a static embedding stays as it is.
        wish: torch; openvino; or auto: openvino on a CPU, for a model that OpenVINO can read.
        precision: float32 or bfloat16, see `reranker.scoring.choose_precision`.

    Raises:
        UserError: openvino is asked for, and the model is on a GPU or OpenVINO cannot read it.
    """
    transformer = model[0]
    if wish == "torch" or not isinstance(transformer, Transformer):
        return
    if model.device.type != "cpu":
        if wish == "openvino":
            raise UserError("params.yaml: backend: openvino computes on the CPU, and here is a GPU; use auto or torch")
        return
    try:
        _compile(transformer, precision)
    except Exception as error:  # whatever a library raises for a model that it does not know
        reason = f"OpenVINO cannot read this model ({first_line(error)[:100]})"
        if wish == "openvino":
            raise UserError(f"params.yaml: backend: {reason}; use auto or torch") from None
        print(f"{reason}: torch computes")


def _compile(transformer: Transformer, precision: str) -> None:
    output = transformer.modality_config["text"]["method_output_name"]
    if not isinstance(output, str):
        raise TypeError(f"it gives {output}")
    inputs, _ = _called(transformer, TRACED)
    _, expected = _called(transformer, CHECKED)
    body = transformer.model
    compiled = CompiledTransformer(body, inputs, output, precision)
    transformer.model = compiled  # type: ignore[assignment]  # it is called like one
    _, found = _called(transformer, CHECKED)
    apart = float((found - expected).norm() / expected.norm())
    if not apart < APART[precision]:
        transformer.model = body
        raise ValueError(f"its output is {apart:.1e} away from torch's")


def _called(transformer: Transformer, texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors that a transformer is given for some texts, and what comes out, without the padding."""
    features = transformer.preprocess(texts)
    inputs = {name: value for name, value in features.items() if isinstance(value, Tensor)}
    with torch.inference_mode():
        found = transformer(features)[transformer.module_output_name].float()
    return inputs, found[inputs["attention_mask"].bool()] if found.ndim == 3 else found


def _traced(body: PreTrainedModel, inputs: Mapping[str, Tensor], output: str) -> Model:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, *tensors: Tensor) -> Tensor:
            found: Tensor = self.body(**dict(zip(inputs, tensors, strict=True)), return_dict=True)[output]
            return found

    # not openvino.convert_model, which reports to its maker that it was called
    front_end = FrontEndManager().load_by_framework("pytorch")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: that shapes become constants, which the check below would find
        decoder = TorchScriptPythonDecoder(Positional().eval(), example_input=tuple(inputs.values()))
        return front_end.convert(front_end.load(decoder))
