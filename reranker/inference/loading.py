"""From a name in params.yaml to a model: retrievers, bi-encoders, cross-encoders, and the first layers of one."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from reranker.common.errors import UserError
from reranker.common.model_files import (
    BUNDLED,
    bundled_weights,
    check_words,
    is_static,
    loading,
    resolve,
    tokenizer_file,
)
from reranker.inference.compute import PLAIN, Compute


def load_retriever(name: str, compute: Compute = PLAIN) -> SentenceTransformer:
    """The first-stage model by its name in params.yaml.

    Args:
        name: of a bundled model, a Hub id, or a local folder: of Sentence Transformers, transformers or model2vec.
        compute: how it computes.

    Raises:
        UserError: there is no usable model of that name.
    """
    if name in BUNDLED and is_static(file := bundled_weights(name)):
        (weights,) = load_file(file).values()
        tokenizer = Tokenizer.from_file(str(tokenizer_file(name)))
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights.float())])
    path = resolve(name)
    with loading(name):
        model = _load_model2vec(Path(path)) or SentenceTransformer(path)
        check_words(model)
    compute.apply(model)
    return model


def _load_model2vec(folder: Path) -> SentenceTransformer | None:
    """The static embedding of a model2vec folder, in float32 whatever it was saved in; None if it is none.

    Sentence Transformers wants a modules.json and floats, and gives NaN for a text of no known token in float16.
    """
    weights, modules = folder / "model.safetensors", folder / "modules.json"
    if not weights.is_file():
        return None
    if modules.exists():
        names = {module["type"].rpartition(".")[2] for module in json.loads(modules.read_text(encoding="utf-8"))}
        if not names <= {"StaticEmbedding", "Normalize"}:
            return None
    with safe_open(weights, "pt") as file:
        keys = set(file.keys())
    if "embeddings" not in keys:
        return None
    tensors = load_file(weights)
    matrix = tensors["embeddings"].float()
    if "mapping" in tensors:  # tokens that share a row of a smaller matrix
        matrix = matrix[tensors["mapping"].long()]
    if "weights" in tensors:
        matrix = matrix * tensors["weights"].float()[:, None]
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.json: {error}") from None
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=matrix)])


def load_static(name: str) -> SentenceTransformer:
    """A static embedding by its name in params.yaml.

    Raises:
        UserError: the model is there but is not static.
    """
    model = load_retriever(name)
    if not isinstance(model[0], StaticEmbedding):
        raise UserError(f"params.yaml: static.model: '{name}' is not a static embedding; use bundled/static-256")
    return model


def load_biencoder(name: str, max_length: int, compute: Compute = PLAIN) -> SentenceTransformer:
    """A bi-encoder, whose weights are in float32.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per text.
        compute: how it computes.

    Raises:
        UserError: there is no usable model of that name.
    """
    with loading(name):
        model = SentenceTransformer(name, model_kwargs={"dtype": torch.float32})
        check_words(model)
    model.max_seq_length = max_length
    compute.apply(model)
    return model


def load_cross_encoder(name: str, what: str = "model", compute: Compute = PLAIN) -> Any:
    """A cross-encoder that ranks: of one output.

    Args:
        name: bundled, a local folder or a Hub id.
        what: put before the name in an error.
        compute: how it computes.

    Returns:
        A `CrossEncoder`, untyped as its constructor leaves it: parts that are optional to the library, such as
        `max_seq_length`, every transformer has.

    Raises:
        UserError: there is no usable model of that name, or it has several outputs.
    """
    path = resolve(name)
    with loading(name):
        model = CrossEncoder(path)
        check_words(model)
    if model.num_labels != 1:
        raise UserError(f"{what} '{name}' has {model.num_labels} outputs; it must have one")
    compute.apply(model)
    return model


def choose_prompt(given: str | None, model: SentenceTransformer, *names: str) -> str:
    """What is put before a text: what was asked for, or the first of these prompts that the model brings, if any."""
    if given is not None:
        return given
    return next((str(model.prompts[name]) for name in names if model.prompts.get(name)), "")


def check_lengths(transformer: nn.Module, **lengths: int) -> None:
    """Check that a model has a position for every token.

    Args:
        transformer: the first module of the model; one that is no transformer reads any length.
        lengths: tokens by their key in params.yaml.

    Raises:
        UserError: it has fewer.
    """
    if not isinstance(transformer, Transformer):
        return
    for key, length in lengths.items():
        limit = getattr(transformer.model.config, "max_position_embeddings", length)
        if length > limit:
            raise UserError(f"params.yaml: {key}: {length} is more than the {limit} tokens that the model can read")


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
    layers = layers_of(body, key, "null")
    if number > len(layers):
        raise UserError(f"params.yaml: {key}: {number}: the model has {len(layers)} layers")
    kept = getattr(body.config, "layer_types", None)
    if kept is not None:  # a list of the kind of each, which must be as long as they are many
        body.config.layer_types = kept[:number]
    del layers[number:]
    body.config.num_hidden_layers = number


def layers_of(body: PreTrainedModel, key: str, neutral: str) -> nn.ModuleList:
    """The list of a transformer's layers.

    Args:
        body: of the model.
        key: of params.yaml that is about the layers.
        neutral: the value of the key that needs no such list.

    Raises:
        UserError: it has none.
    """
    wanted = body.config.num_hidden_layers
    stacks = (part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == wanted)
    layers = next(stacks, None)
    if layers is None:
        raise UserError(
            f"params.yaml: {key}: this model has no list of layers, each with its own weights; set {neutral}"
        )
    return layers


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
