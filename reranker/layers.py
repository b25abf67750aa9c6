"""The layers of a transformer and its head, changed before or after training: cut off, frozen, two outputs into one."""

import itertools

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense
from torch import nn
from transformers import PreTrainedModel

from reranker.errors import UserError


def keep_first(body: PreTrainedModel, number: int, key: str = "num_layers") -> None:
    """Cut off all layers but the first so many: a student that starts from its teacher's weights.

    Sajjad et al. (2023) find that of the ways to drop layers, this one loses the least.

    Args:
        body: changed in place.
        number: of layers, from 1.
        key: of params.yaml that says the number.

    Raises:
        UserError: it has fewer, or no list of layers.
    """
    layers = _layers(body, key, "null")
    if number > len(layers):
        raise UserError(f"params.yaml: {key}: {number}: the model has {len(layers)} layers")
    kept = getattr(body.config, "layer_types", None)
    if kept is not None:  # a list of the kind of each, which must be as long as they are many
        body.config.layer_types = kept[:number]
    del layers[number:]
    body.config.num_hidden_layers = number


def freeze(body: PreTrainedModel, number: int) -> None:
    """Let the first so many layers, and the embeddings before them, keep their weights.

    Raises:
        UserError: no layer would be left, or it has no list of layers.
    """
    layers = _layers(body, "frozen_layers", "0")
    if number >= len(layers):
        raise UserError(f"params.yaml: frozen_layers: {number}: of the model's {len(layers)} layers one must be left")
    trained = set(layers[number:].parameters())
    # weights come in the order in which they are passed through
    for weights in itertools.takewhile(lambda weights: weights not in trained, body.parameters()):
        weights.requires_grad_(False)


def _layers(body: PreTrainedModel, key: str, neutral: str) -> nn.ModuleList:
    wanted = body.config.num_hidden_layers
    stacks = (part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == wanted)
    layers = next(stacks, None)
    if layers is None:
        raise UserError(
            f"params.yaml: {key}: this model has no list of layers, each with its own weights; set {neutral}"
        )
    return layers


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off.

    A run of minutes does not overfit enough to need it, and on a CPU it costs a third of the time.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def one_output(model: CrossEncoder) -> CrossEncoder:
    """The same model with one output, the second of its two less the first: the log-odds of the second class.

    The order of passages is that of the chance of the second class, and its sigmoid is that chance.

    Args:
        model: ends in a linear layer of two outputs; the new one shares the modules before it.
    """
    *before, head = model
    if not isinstance(head, Dense):
        raise TypeError(f"the model ends in {type(head).__name__}, not in a linear layer")
    linear = head.linear
    name = head.module_output_name
    new = Dense(linear.in_features, 1, activation_function=nn.Identity(), module_output_name=name)
    new.to(linear.weight.device)
    with torch.no_grad():
        new.linear.weight.copy_(linear.weight[1:] - linear.weight[:1])
        new.linear.bias.copy_(linear.bias[1:] - linear.bias[:1])
    single: CrossEncoder = CrossEncoder(modules=[*before, new], activation_fn=nn.Identity())
    return single
