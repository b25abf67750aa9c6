import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from reranker.data import text_statistics
from reranker.data.text_statistics import histogram, percentiles, token_lengths


def test_token_lengths_are_counted_to_the_end_and_percentiles_are_lengths_that_occur(monkeypatch):
    monkeypatch.setattr(text_statistics, "TOGETHER", 3)
    tokenizer = Tokenizer(WordLevel({"a": 0}))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(2)
    found = token_lengths(tokenizer, [" ".join("a" * count) for count in range(1, 11)])
    assert found.tolist() == list(range(1, 11))
    assert percentiles(found, "words") == {"words_p50": 6, "words_p90": 10, "words_p99": 10, "words_max": 10}


def test_histogram_has_every_text_once_in_bars_without_gaps():
    values = np.array([1, 2, 3, 3, 8, 11, 500])
    table = histogram({"query": values, "passage": np.array([7])})
    query = table[table["text"] == "query"]
    assert query["share"].sum() == 1
    assert query["from"].tolist()[1:] == query["to"].tolist()[:-1]
    counts = [((values >= bar["from"]) & (values < bar["to"])).mean() for bar in query.to_dict("records")]
    assert query["share"].tolist() == counts
    assert table[table["text"] == "passage"].to_numpy().tolist() == [["passage", 6, 8, 1.0]]


def test_histogram_of_nothing_has_its_columns():
    assert histogram({}).columns.tolist() == ["text", "from", "to", "share"]
