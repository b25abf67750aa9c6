from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.inference.loading import one_output
from reranker.training.cross_encoder import build_cross_encoder
from reranker.training.evaluator import DevRanking, EvaluatorSequence, check_evaluators, nano_beir, with_all_positives
from reranker.training.trainer import seed_everything

PAIRS = [("sort a list", "order numbers"), ("sort a list", "red apples"), ("find the path", "green apples")]
CANDIDATES = pd.DataFrame(PAIRS, columns=["query_id", "passage_id"], index=[5, 2, 9])
JUDGMENTS = pd.DataFrame(
    [("sort a list", "order numbers", 1), ("sort a list", "read", 0), ("find the path", "shortest path", 2)],
    columns=["query_id", "passage_id", "relevance"],
)


def ranking(candidates: pd.DataFrame) -> DevRanking:
    table = candidates.assign(query=candidates["query_id"], text=candidates["passage_id"])
    return DevRanking(table, JUDGMENTS)


def test_relevant_passages_that_the_retriever_missed_stand_behind_the_candidates():
    actual = with_all_positives(CANDIDATES, JUDGMENTS)
    assert actual.to_numpy().tolist() == [*map(list, PAIRS), ["find the path", "shortest path"]]


def test_first_evaluator_gives_the_figure_that_counts_and_each_has_a_column(encoder: str):
    seed_everything(1)
    model = build_cross_encoder(encoder, 32)
    retrieved, everything = ranking(CANDIDATES), ranking(with_all_positives(CANDIDATES, JUDGMENTS))
    both = EvaluatorSequence({"retrieved": retrieved, "all_positives": everything})
    assert both.others == ["ndcg@10_all_positives"]
    figures = both(model)
    assert figures == {"ndcg@10": retrieved.ndcg(model), "ndcg@10_all_positives": everything.ndcg(model)}
    assert figures["ndcg@10_all_positives"] > figures["ndcg@10"]
    turned = EvaluatorSequence({"all_positives": everything, "retrieved": retrieved})(model)
    assert turned == {"ndcg@10": everything.ndcg(model), "ndcg@10_retrieved": retrieved.ndcg(model)}


def test_model_of_two_outputs_is_measured_as_the_one_that_it_becomes(encoder: str):
    seed_everything(1)
    model = build_cross_encoder(encoder, 32, outputs=2)
    everything = ranking(with_all_positives(CANDIDATES, JUDGMENTS))
    assert EvaluatorSequence({"all_positives": everything})(model) == {"ndcg@10": everything.ndcg(one_output(model))}
    assert np.ndim(model.predict(PAIRS, show_progress_bar=False)) == 2


@pytest.mark.parametrize("names", [["retrieved"], ["all_positives", "retrieved"]])
def test_evaluators_on_dev_need_no_hub(names):
    check_evaluators(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["retrieved", "retrieved"], "'retrieved' is there twice; name it once"),
        (["retreived"], "there is no 'retreived'; use retrieved, all_positives or one of NanoClimateFEVER, "),
        (["NanoMSMARCO"], "'NanoMSMARCO' is a data set of the Hub, which is switched off; set HF_HUB_OFFLINE=0 to"),
        (["retrieved", "nfcorpus"], "'nfcorpus' is a data set of the Hub, which is switched off; set HF_HUB_OFFLINE=0"),
    ],
)
def test_evaluator_that_cannot_be_had_is_named(names, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        check_evaluators(names)
    assert str(caught.value).startswith(f"params.yaml: dev.evaluators: {message}")


def test_data_set_of_the_hub_is_allowed_where_the_hub_is(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    check_evaluators(["retrieved", "NanoMSMARCO", "nq"])


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that load_dataset finds in the place of NanoBEIR on the Hub, with a data set of two queries."""
    folder = tmp_path / "sentence-transformers" / "NanoBEIR-en"
    tables = {
        "corpus": {"_id": ["p1", "p2", "p3"], "text": ["order numbers", "red apples", "shortest path"]},
        "queries": {"_id": ["q1", "q2"], "text": ["sort a list", "find the path"]},
        "qrels": {"query-id": ["q1", "q2"], "corpus-id": ["p1", "p3"]},
        "bm25": {"query-id": ["q1", "q2"], "corpus-ids": [["p2", "p1", "p3"], ["p1", "p2"]]},
    }
    configs = []
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True)
        pd.DataFrame(columns).to_parquet(folder / name / "rows.parquet")
        files = f"  - split: NanoNQ\n    path: {name}/rows.parquet\n"
        configs.append(f"- config_name: {name}\n  data_files:\n{files}")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("nano")
def test_data_set_of_nano_beir_is_ranked_with_all_its_relevant_passages(encoder: str):
    seed_everything(1)
    model = build_cross_encoder(encoder, 32)
    figures = EvaluatorSequence({"retrieved": ranking(CANDIDATES), "NanoNQ": nano_beir("NanoNQ")})(model)
    places = []
    for query, right, others in (
        ("sort a list", "order numbers", ["red apples", "shortest path"]),
        ("find the path", "shortest path", ["order numbers", "red apples"]),
    ):
        own, *wrong = model.predict([(query, text) for text in (right, *others)], show_progress_bar=False)
        places.append(1 + sum(score > own for score in wrong))
    assert figures["ndcg@10_NanoNQ"] == pytest.approx(np.mean(1 / np.log2(1 + np.array(places))))


@pytest.mark.usefixtures("nano")
def test_data_set_that_cannot_be_loaded_is_named():
    with pytest.raises(UserError, match=r"evaluators: 'NanoMSMARCO' could not be loaded \(Could not load subset"):
        nano_beir("NanoMSMARCO")
