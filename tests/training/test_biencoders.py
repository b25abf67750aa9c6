import numpy as np
import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer

from reranker.inference.loading import load_static
from reranker.inference.scoring import embed
from reranker.training.biencoders import StaticSchedule, tune_static, weigh_by_rarity

SCHEDULE = StaticSchedule(lr=1e-2, epochs=8, batch_size=4, dropout=0.3, scale=20.0, max_tokens=64, seed=1)
ROWS = pd.DataFrame(
    {
        "query": ["sort a list", "find the path", "read a csv file", "red apples"] * 3,
        "passage": ["wombat order", "wombat route", "wombat table", "wombat fruit"] * 3,
        "group": [0, 1, 2, 3] * 3,
    }
)


def tuned(rows: pd.DataFrame = ROWS, **changes: object) -> SentenceTransformer:
    model = load_static("bundled/static-256")
    tune_static(model, rows, SCHEDULE._replace(**changes), label="static")
    return model


def vectors(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    return embed(model, texts, label="")


def margin(model: SentenceTransformer) -> float:
    """The difference between the cosines of relevant and of other passages."""
    cosines = vectors(model, ROWS["query"].tolist()[:4]) @ vectors(model, ROWS["passage"].tolist()[:4]).T
    return float(np.diag(cosines).mean() - cosines.mean())


def test_right_passages_move_nearer_and_the_model_is_the_same_when_loaded_again(tmp_path):
    model = tuned()
    assert margin(model) > margin(load_static("bundled/static-256")) + 0.03
    model.save_pretrained(str(tmp_path), create_model_card=False)
    loaded = load_static(str(tmp_path))
    np.testing.assert_array_equal(vectors(loaded, ["read a csv file"]), vectors(model, ["read a csv file"]))


def test_rows_of_one_group_teach_nothing():
    before = vectors(load_static("bundled/static-256"), ROWS["query"].tolist())
    np.testing.assert_allclose(vectors(tuned(ROWS.assign(group=5)), ROWS["query"].tolist()), before, atol=1e-6)


def test_same_seed_gives_the_same_vectors_and_another_one_others():
    first, again, other = (vectors(tuned(seed=seed), ["find the path"]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tokens_beyond_the_limit_are_not_seen_while_tuning():
    long = ROWS.assign(passage=ROWS["passage"] + " zebra" * 64)
    zebra = vectors(load_static("bundled/static-256"), ["zebra"])
    np.testing.assert_array_equal(vectors(tuned(long, max_tokens=4), ["zebra"]), zebra)
    assert not np.array_equal(vectors(tuned(long), ["zebra"]), zebra)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_fewer_rows_than_a_batch_are_fine(rows):
    assert np.isfinite(vectors(tuned(ROWS.head(rows), batch_size=64, dropout=0.9), ["sort a list"])).all()


def test_common_words_get_less_weight_than_rare_ones():
    corpus = ["the table", "the graph", "the list", "the file"]
    model = load_static("bundled/static-256")
    weigh_by_rarity(model, corpus)
    both = vectors(model, ["the graph", "graph", "the"])
    plain = vectors(load_static("bundled/static-256"), ["the graph", "graph", "the"])
    assert both[0] @ both[1] > plain[0] @ plain[1]
    assert both[0] @ both[2] < plain[0] @ plain[2]


def test_other_models_are_refused(biencoder):
    with pytest.raises(TypeError, match="static embedding"):
        weigh_by_rarity(SentenceTransformer(biencoder), ["text"])
