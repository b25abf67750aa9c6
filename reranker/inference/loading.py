"""Load the models that params.yaml names: retrievers, bi-encoders, cross-encoders; and adapt their layers."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import load_file_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from reranker.common.bundled.models import BUNDLED, bundled_weights, is_static
from reranker.common.errors import UserError
from reranker.common.model_files import check_words, loading, resolve, tokenizer_file
from reranker.inference.compute import PLAIN, Compute

UNTOUCHED = "bundled/ms-marco-MiniLM-L12-v2"
"""The reranker that stands in for a base model without a trained head."""


def load_retriever(name: str, compute: Compute = PLAIN) -> SentenceTransformer:
    """The first-stage model by its name in params.yaml.

    Args:
        name: a bundled model, a Hub id, or a local folder of Sentence Transformers, transformers or model2vec.
        compute: how the model computes.

    Raises:
        UserError: there is no usable model with this name.
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
    """The static embedding of a model2vec folder in float32, whatever its format; None for other folders.

    Sentence Transformers needs a modules.json and floats, and in float16 it gives NaN for a text without known tokens.
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
    if "mapping" in tensors:  # several tokens share a row of a smaller matrix
        matrix = matrix[tensors["mapping"].long()]
    if "weights" in tensors:
        matrix = matrix * tensors["weights"].float()[:, None]
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"tokenizer.json: {error}") from None
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=matrix)])


def load_static(name: str) -> SentenceTransformer:
    """A static embedding by its name in params.yaml.

    Raises:
        UserError: the model is not static, or there is no usable model with this name.
    """
    model = load_retriever(name)
    if not isinstance(model[0], StaticEmbedding):
        raise UserError(f"params.yaml: static.model: '{name}' is not a static embedding; use bundled/static-256")
    return model


def load_biencoder(name: str, max_length: int, compute: Compute = PLAIN) -> SentenceTransformer:
    """A bi-encoder with weights in float32.

    Args:
        name: a local folder or a Hub id.
        max_length: tokens per text.
        compute: how the model computes.

    Raises:
        UserError: there is no usable model with this name.
    """
    with loading(name):
        model = SentenceTransformer(name, model_kwargs={"dtype": torch.float32})
        check_words(model)
    model.max_seq_length = max_length
    compute.apply(model)
    return model


def load_cross_encoder(name: str, what: str = "model", compute: Compute = PLAIN) -> Any:
    """A cross-encoder with one output, as ranking needs it.

    Args:
        name: a bundled model, a local folder or a Hub id.
        what: text before the name in an error.
        compute: how the model computes.

    Returns:
        A `CrossEncoder`. Its type is Any because the library declares attributes as optional that every transformer
        has, such as `max_seq_length`.

    Raises:
        UserError: there is no usable model with this name, it has no trained head, or it has several outputs.
    """
    path = resolve(name)
    with loading(name):
        if not has_trained_head(path):
            raise UserError(
                f"{what} '{name}' has no trained ranking head (it is an encoder or a bi-encoder), so its scores would "
                "be random; name a reranker, or fine-tune it as base_model"
            )
        model = CrossEncoder(path)
        check_words(model)
    if model.num_labels != 1:
        raise UserError(f"{what} '{name}' has {model.num_labels} outputs; it must have one")
    compute.apply(model)
    return model


def has_trained_head(path: str) -> bool:
    """Whether a model brings what turns a pair into a score, so that `CrossEncoder` adds no layer of random weights.

    Such are the models that a CrossEncoder saved, classifiers of sequences whose files have all weights, and causal
    language models, whose scores are the logits of yes and no.

    Args:
        path: a local folder or a Hub id.

    Raises:
        OSError: there is no model.
        ValueError: the model is of an unknown kind.
    """
    saved = load_file_path(path, "modules.json") is not None
    about = load_file_path(path, "config_sentence_transformers.json") if saved else None
    if about and json.loads(Path(about).read_text(encoding="utf-8")).get("model_type") == "CrossEncoder":
        return True
    # of another model with modules, CrossEncoder takes the transformer alone
    architecture = (AutoConfig.from_pretrained(path).architectures or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        return architecture.endswith("ForCausalLM") and not saved
    # transformers fills what a file lacks with random numbers; on this device it reads the names of the weights alone
    _, found = AutoModelForSequenceClassification.from_pretrained(path, device_map="meta", output_loading_info=True)
    return not found["missing_keys"]


def untouched_reranker(base_model: str) -> str:
    """The published reranker that a fine-tuned one is compared with, by its name in params.yaml.

    It is the base model as it is. A base model without a trained head cannot score, so a bundled reranker stands in.

    Args:
        base_model: a bundled model, a local folder or a Hub id.

    Raises:
        UserError: there is no usable model with this name.
    """
    path = resolve(base_model)
    with loading(path):
        return base_model if has_trained_head(path) else UNTOUCHED


def choose_prompt(prompt: str | None, model: SentenceTransformer, *names: str) -> str:
    """The prompt before a text: `prompt` if it is not None, else the first of `names` that the model has, else none."""
    if prompt is not None:
        return prompt
    return next((str(model.prompts[name]) for name in names if model.prompts.get(name)), "")


def check_lengths(transformer: nn.Module, **lengths: int) -> None:
    """Check that a model has a position for every token.

    Args:
        transformer: the first module of the model; if it is not a transformer, it reads any length.
        lengths: number of tokens by the key in params.yaml.

    Raises:
        UserError: the model has fewer positions.
    """
    if not isinstance(transformer, Transformer):
        return
    for key, length in lengths.items():
        limit = getattr(transformer.model.config, "max_position_embeddings", length)
        if length > limit:
            raise UserError(f"params.yaml: {key}: {length} is more than the {limit} tokens that the model can read")


def keep_first_layers(body: PreTrainedModel, number: int, key: str = "num_layers") -> None:
    """Remove all layers but the first ones, for a student that starts from its teacher's weights.

    Sajjad et al. (2023) find that of the ways to drop layers, this one loses the least.

    Args:
        body: the transformer; changed in place.
        number: number of layers to keep, from 1.
        key: the key of params.yaml that gives the number.

    Raises:
        UserError: the model has fewer layers, or no list of layers.
    """
    layers = layers_of(body, key, "null")
    if number > len(layers):
        raise UserError(f"params.yaml: {key}: {number}: the model has {len(layers)} layers")
    types = getattr(body.config, "layer_types", None)
    if types is not None:  # one type for each layer, so the list must have as many entries as there are layers
        body.config.layer_types = types[:number]
    del layers[number:]
    body.config.num_hidden_layers = number


def freeze(body: PreTrainedModel, number: int) -> None:
    """Freeze the first layers of a transformer, and the embeddings before them.

    Args:
        body: the transformer; changed in place.
        number: number of layers to freeze.

    Raises:
        UserError: no layer would be left to train, or the model has no list of layers.
    """
    layers = layers_of(body, "frozen_layers", "0")
    if number >= len(layers):
        raise UserError(f"params.yaml: frozen_layers: {number}: of the model's {len(layers)} layers one must be left")
    trained = set(layers[number:].parameters())
    # `parameters` yields the weights in the order of the forward pass
    for weights in itertools.takewhile(lambda weights: weights not in trained, body.parameters()):
        weights.requires_grad_(False)


def layers_of(body: PreTrainedModel, key: str, neutral: str) -> nn.ModuleList:
    """The list of a transformer's layers.

    Args:
        body: the transformer.
        key: the key of params.yaml that needs the list, for the error.
        neutral: the value of the key that needs no list, for the error.

    Raises:
        UserError: the model has no list of layers.
    """
    number = body.config.num_hidden_layers
    stacks = (part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == number)
    layers = next(stacks, None)
    if layers is None:
        raise UserError(
            f"params.yaml: {key}: this model has no list of layers, each with its own weights; set {neutral}"
        )
    return layers


def one_output(model: CrossEncoder) -> CrossEncoder:
    """The same model with one output: the second of its two outputs minus the first, the log-odds of the second class.

    The order of passages is that of the probability of the second class, and the sigmoid is that probability.

    Args:
        model: its last linear layer has two outputs; the new model shares everything but this layer.
    """
    return _with_rows(model, lambda rows: rows[1:] - rows[:1])


def two_outputs(model: CrossEncoder) -> CrossEncoder:
    """The same model with two outputs, of which the first is 0: `one_output` turns it back.

    Args:
        model: its last linear layer has one output; the new model shares everything but this layer.
    """
    return _with_rows(model, lambda rows: torch.cat([torch.zeros_like(rows), rows]))


def _with_rows(model: CrossEncoder, change: Callable[[Tensor], Tensor]) -> CrossEncoder:
    *before, last = model
    name, linear = [(name, part) for name, part in last.named_modules() if isinstance(part, nn.Linear)][-1]
    new = copy.copy(linear)
    with torch.no_grad():
        new._parameters = {
            key: None if rows is None else nn.Parameter(change(rows)) for key, rows in linear._parameters.items()
        }
    new.out_features = len(new.weight)
    last = _with_part(last, name, new)
    if isinstance(last, Dense):
        last.out_features = new.out_features
    elif isinstance(last, Transformer):
        body = last.model
        body.config = copy.deepcopy(body.config)
        body.config.num_labels = body.num_labels = new.out_features
    prompts = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
    changed: CrossEncoder = CrossEncoder(modules=[*before, last], activation_fn=nn.Identity(), **prompts)
    return changed


def _with_part(module: nn.Module, name: str, part: nn.Module) -> Any:
    """A copy of a module with another part under a dotted name; it shares all other parts."""
    if not name:
        return part
    first, _, rest = name.partition(".")
    new = copy.copy(module)
    new._modules = {**module._modules, first: _with_part(getattr(module, first), rest, part)}
    return new
