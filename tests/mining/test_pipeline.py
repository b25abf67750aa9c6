"""Tests of the parts of mining as the stage builds them from params.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from reranker.common.artifacts import Tables
from reranker.common.errors import UserError
from reranker.inference.compute import PLAIN
from reranker.inference.scoring import embed
from reranker.mining import pipeline
from reranker.mining.embedding_cache import Cache
from reranker.mining.pipeline import VectorIndex
from reranker.retrieval import index
from reranker.retrieval.retrievers import Dense

TABLES = Tables(
    pd.DataFrame({"passage_id": ["p1", "p2"], "text": ["sort a list", "read a file"]}),
    pd.DataFrame({"query_id": ["q"], "text": ["sort"]}),
    pd.DataFrame(columns=["query_id", "passage_id", "relevance"]),
)


def directions(number: int, seed: int) -> np.ndarray:
    """Vectors without clusters, many of which an index with inverted lists misses."""
    drawn = np.random.default_rng(seed).normal(size=(number, 32))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_recall_of_an_index_is_measured_against_brute_force_and_reported_where_it_is_too_low(capsys):
    passages, queries = directions(3000, 1), directions(60, 2)
    some = np.arange(10, 50)
    poor, exact = (
        VectorIndex(index.build(name, passages, queries=60), passages, queries) for name in ("ivf_flat", "flat")
    )
    exact_top = np.argsort(-(queries[some] @ passages.T), axis=1)[:, :20]
    top = poor.lookup.search(queries[some], 20).positions
    expected = np.mean([len({*a} & {*b}) / 20 for a, b in zip(top.tolist(), exact_top.tolist(), strict=True)])
    assert 0.1 < expected < 0.95

    figures = pipeline.index_figures([exact, poor], some, depth=20, min_recall=0.95)
    assert figures == {
        "index_chosen": "flat, ivf_flat nlist=110 nprobe=27",
        "index_recall@20": pytest.approx(expected, abs=1e-9),
    }
    assert capsys.readouterr().out == (
        f"mine: the index ivf_flat finds {expected:.3f} of the exact top 20, which is below index.min_recall 0.95: "
        "choose another index.kind, or flat\n"
    )
    again = pipeline.index_figures([poor], some, depth=20, min_recall=0.1)
    assert again == figures | {"index_chosen": "ivf_flat nlist=110 nprobe=27"}
    assert pipeline.index_figures([exact], some, depth=20, min_recall=1.0) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("parameters", "prompts"),
    [((None, None), ("the ", "")), (("find ", None), ("find ", "")), (("", "read "), ("", "read "))],
)
def test_prompts_are_put_before_queries_and_passages_each(
    parameters: tuple[str | None, str | None], prompts: tuple[str, str], biencoder: str, tmp_path: Path
):
    model = SentenceTransformer(biencoder)
    model.prompts = {"query": "the ", "document": ""}
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    stage, indexes, weights = pipeline.retriever(
        [str(tmp_path / "model")],
        TABLES,
        Cache(tmp_path / "vectors"),
        asked=np.arange(len(TABLES.queries)),
        query_prompt=parameters[0],
        passage_prompt=parameters[1],
        index_name="auto",
        compute=PLAIN,
    )
    texts = [
        [f"{prompt}{text}" for text in table["text"]] for prompt, table in zip(prompts, TABLES[1::-1], strict=True)
    ]
    queries, passages = (embed(model, each, label="") for each in texts)
    np.testing.assert_allclose(stage.scores(np.zeros(2, np.int64), np.arange(2)), (queries @ passages.T)[0], atol=1e-5)
    assert [lookup.name for lookup, *_ in indexes] == ["flat"]
    assert weights == {str(tmp_path / "model"): 1.0}


GOOD, NOISE = "models/good", "models/noise"


def asked(dev: dict[int, int], test: dict[int, int]) -> Tables:
    """Twelve passages, and a query of dev and one of test for each; the passage that is right for each of them."""
    ids = [f"p{number:02}" for number in range(12)]
    queries = pd.DataFrame({"query_id": [f"{split}{number:02}" for split in ("dev", "test") for number in range(12)]})
    queries["split"] = queries["query_id"].str.rstrip("0123456789")
    right = [(f"dev{number:02}", ids[passage], 1) for number, passage in dev.items()]
    right += [(f"test{number:02}", ids[passage], 1) for number, passage in test.items()]
    things = ["list", "path", "table", "graph", "file", "numbers", "apples", "order", "csv", "red", "green", "sort"]
    return Tables(
        pd.DataFrame({"passage_id": ids, "text": [f"the {thing} of the {thing}" for thing in things]}),
        queries.assign(text=[f"find {thing}" for thing in things] * 2),
        pd.DataFrame(right, columns=["query_id", "passage_id", "relevance"]),
    )


SAME = {number: number for number in range(12)}
NEXT = {number: (number + 1) % 12 for number in range(12)}


def pointing(targets: dict[int, int], noise: float) -> Dense:
    """Vectors of queries, of dev and of test alike, that mostly point to these passages."""
    passages = np.eye(12, dtype=np.float32)
    queries = passages[list(targets.values())] + noise * np.abs(np.random.default_rng(5).normal(size=(12, 12)))
    queries = np.tile(queries, (2, 1)).astype(np.float32)
    return Dense(passages, queries, index.build("flat", passages, queries=24))


def test_weights_of_retrievers_are_fitted_on_dev_and_not_on_test():
    parts = {GOOD: pointing(SAME, 0.3), NOISE: pointing(NEXT, 0.3)}
    weights = pipeline.fitted_weights(parts, asked(SAME, SAME))
    assert list(weights) == [GOOD, NOISE]
    assert weights[GOOD] > 10 * weights[NOISE]
    assert pipeline.fitted_weights(parts, asked(SAME, NEXT)) == weights
    assert pipeline.fitted_weights(parts, asked(SAME, {})) == weights
    other = pipeline.fitted_weights(parts, asked(NEXT, SAME))
    assert other[NOISE] > 10 * other[GOOD]
    assert pipeline.weight_figures(weights) == {
        "retriever_weight_good": weights[GOOD],
        "retriever_weight_noise": weights[NOISE],
    }


def built(names: list[str], tables: Tables, folder: Path) -> pipeline.Retriever:
    return pipeline.retriever(
        names,
        tables,
        Cache(folder),
        asked=np.arange(len(tables.queries)),
        query_prompt=None,
        passage_prompt=None,
        index_name="auto",
        compute=PLAIN,
    )


def test_several_retrievers_are_added_up_with_the_fitted_weights(biencoder: str, tmp_path: Path):
    tables = asked(SAME, NEXT)
    both = built(["bm25", biencoder, "bm25"], tables, tmp_path)
    assert list(both.weights) == ["bm25", biencoder]
    assert len(both.indexes) == 1
    of, at = np.repeat(np.arange(24), 12), np.tile(np.arange(12), 24)
    parts = {name: built([name], tables, tmp_path).stage.scores(of, at) for name in both.weights}
    expected = sum(both.weights[name] * scores for name, scores in parts.items())
    np.testing.assert_allclose(both.stage.scores(of, at), expected, rtol=1e-5)
    assert (expected.reshape(24, 12).argmax(axis=1)[:12] == np.arange(12)).all()
    assert built(["bm25", biencoder], asked(SAME, SAME), tmp_path).weights == both.weights
    assert built(["bm25", biencoder], asked(NEXT, NEXT), tmp_path).weights != both.weights


def test_weights_without_a_relevant_passage_of_dev_are_an_error_of_one_line():
    parts = {GOOD: pointing(SAME, 0.3), NOISE: pointing(NEXT, 0.3)}
    tables = asked({}, SAME)
    irrelevant = tables._replace(judgments=asked(SAME, SAME).judgments.assign(relevance=[0] * 12 + [1] * 12))
    message = "params.yaml: retriever: on dev no query has a relevant candidate; raise prepare.dev_share"
    for each in (tables, irrelevant, tables._replace(queries=tables.queries[12:])):
        with pytest.raises(UserError) as caught:
            pipeline.fitted_weights(parts, each)
        assert str(caught.value) == message


def test_bm25s_own_run_is_its_ranking_of_the_corpus_for_test_alone():
    tables = asked(SAME, SAME)
    run = pipeline.bm25_run(tables, 5)
    assert run.columns.tolist() == ["query_id", "passage_id", "rank", "score"]
    assert run["query_id"].tolist() == [f"test{number:02}" for number in range(12)]  # one passage has the word
    assert run["passage_id"].tolist() == [f"p{number:02}" for number in range(12)]
    assert (run["rank"] == 1).all()
    everywhere = tables._replace(passages=tables.passages.assign(text=tables.passages["text"] + " find"))
    assert pipeline.bm25_run(everywhere, 5)["rank"].tolist() == [1, 2, 3, 4, 5] * 12


def test_dev_without_a_relevant_passage_is_an_error_of_one_line():
    judgments = pd.DataFrame({"query_id": ["q"], "passage_id": ["p1"], "relevance": [0]})
    ranking = pd.DataFrame({"query_id": ["q"], "passage_id": ["p1"], "rank": [1], "score": [0.5]})
    for each in (judgments, judgments[:0]):
        with pytest.raises(
            UserError, match=r"^data/prepared/judgments.parquet: no query of dev has a relevant passage; "
        ):
            pipeline.retriever_figures(each, ranking)


def rescorer(name: str) -> np.ndarray:
    score = pipeline.cross_encoder(name, TABLES, PLAIN)
    return score(np.zeros(2, np.int64), np.arange(2))


def test_rescorer_with_several_outputs_is_refused(encoder: str, tmp_path: Path):
    CrossEncoder(encoder, num_labels=3).save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(UserError, match=r"^params.yaml: negatives.rescorer: '.*' has 3 outputs; it must have one$"):
        rescorer(str(tmp_path))


def test_rescorer_whose_scores_are_no_numbers_is_an_error_of_one_line(cross_encoder: str, tmp_path: Path):
    model = CrossEncoder(cross_encoder)
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[:] = torch.nan
    model.save_pretrained(str(tmp_path), create_model_card=False)
    with pytest.raises(UserError, match=r"^mine: rescoring: the model gives a score that is not finite for 'sort'"):
        rescorer(str(tmp_path))
