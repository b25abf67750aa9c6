"""Models of 30,000 weights with the shape of the real ones: they load in milliseconds and need no network."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
os.environ.setdefault("DVC_NO_ANALYTICS", "1")  # else each command of DVC leaves a report in the temporary folder
# The tests leave the user's cache alone. All their processes share this one, and each run finds what it needs there.
os.environ["RERANKER_LAB_CACHE"] = str(Path(tempfile.gettempdir(), f"reranker-lab-tests-{os.getuid()}"))

WORDS = (
    "a the of in from to sort order list numbers read write csv file table find shortest path graph red green apples"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of data: reading docstrings forks, which can hang once other tests have started threads."""
    items.sort(key=lambda item: "data" not in item.path.parts)


@pytest.fixture(scope="session")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[str]], str]:
    """Makes a BERT of random weights that knows these words, and gives its folder."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    def make(words: Iterable[str]) -> str:
        path = tmp_path_factory.mktemp("encoder")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        places = {word: place for place, word in enumerate(vocabulary)}
        BertTokenizerFast(vocab=places, model_max_length=64).save_pretrained(path)
        shape = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.3,  # with the usual 0.02 all texts have nearly the same vector
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertModel(shape).save_pretrained(path)
        return str(path)

    return make


@pytest.fixture(scope="session")
def encoder(encoder_of: Callable[[Iterable[str]], str]) -> str:
    """The folder of such a BERT, which knows the words of WORDS."""
    return encoder_of(WORDS.split())


@pytest.fixture(scope="session")
def biencoder(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a bi-encoder on these weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    path = str(tmp_path_factory.mktemp("biencoder"))
    transformer = Transformer(encoder, max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())])
    model.save_pretrained(path, create_model_card=False)
    return path


@pytest.fixture(scope="session")
def cross_encoder(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a cross-encoder on these weights."""
    from reranker.training.cross_encoder import build_cross_encoder
    from reranker.training.trainer import seed_everything

    path = str(tmp_path_factory.mktemp("cross_encoder"))
    seed_everything(0)
    build_cross_encoder(encoder, 32).save_pretrained(path, create_model_card=False)
    return path
