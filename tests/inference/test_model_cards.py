import ast

import pytest
import yaml

from reranker.inference.model_cards import dev_verdict, model_card

FIGURES = {"groups": 1234, "pairs": 7404, "final_loss": 0.123456, "computed_in": "float32", "steps": 175}
FIGURES |= {"dev_ndcg@10_before": 0.5, "dev_ndcg@10_best": 0.625}
PARAMS = {"loss": "group_softmax", "lr": 1e-4, "max_length": 112}


@pytest.fixture
def card() -> str:
    return model_card("bundled/ms-marco-MiniLM-L12-v2", PARAMS, FIGURES)


def snippets(card: str) -> list[str]:
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


def test_header_is_yaml_that_a_hub_reads(card):
    _, header, _ = card.split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["library_name"] == "sentence-transformers"
    assert values["pipeline_tag"] == "text-ranking"
    assert "cross-encoder" in values["tags"]


def test_sizes_and_base_model_are_named(card):
    assert "# Reranker on bundled/ms-marco-MiniLM-L12-v2" in card
    assert "1,234 queries (7,404 pairs)" in card


def test_every_figure_and_parameter_has_its_row(card):
    for row in ("| final_loss | 0.1235 |", "| steps | 175 |", "| computed_in | float32 |", "| groups | 1234 |"):
        assert row in card.splitlines()
    for row in ("| loss | group_softmax |", "| lr | 0.0001 |", "| max_length | 112 |"):
        assert row in card.splitlines()
    assert not [part for part in ("{figures}", "{params}", "{base}", "{verdict}") if part in card]


def test_what_fine_tuning_did_on_dev_is_said_whether_it_helped_or_not(card):
    better = dev_verdict(FIGURES)
    assert better.startswith("Fine-tuning raised NDCG@10 of the cross-encoder on the dev queries ")
    assert better.endswith(" from 0.500 to 0.625.")
    assert better in card.splitlines()
    for best, change in ((0.5, "from 0.500 to 0.500"), (0.4321, "from 0.500 to 0.432")):
        other = FIGURES | {"dev_ndcg@10_best": best}
        said = dev_verdict(other)
        assert said.startswith(
            f"Fine-tuning made the cross-encoder no better on dev (NDCG@10 {change}): the base model"
        )
        assert said in model_card("base", PARAMS, other).splitlines()


def test_both_ways_of_use_are_shown(card):
    alone, shipped = snippets(card)
    assert 'CrossEncoder("models/reranker").rank(' in alone
    assert 'Reranker("models/reranker").rank(' in shipped


def test_what_the_snippets_import_exists(card):
    for code in snippets(card):
        imports = [line for line in ast.parse(code).body if isinstance(line, ast.ImportFrom)]
        assert len(imports) == 1
        exec(ast.unparse(imports), {})  # noqa: S102 - our own text


def test_braces_in_a_value_stay_as_they_are():
    assert "| loss | {x} |" in model_card("{y}", {"loss": "{x}"}, FIGURES).splitlines()
