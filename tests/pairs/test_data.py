"""Tests of reading, cleaning and splitting labelled pairs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from reranker.common.errors import UserError
from reranker.data.sources import files
from reranker.pairs import data
from reranker.pairs.data import Pair
from reranker.pairs.params import PairColumns, Task

COLUMNS = PairColumns(first="one", second="two", label="label")


def pair(first: str, second: str, label: float = 0.0, name: str = "", split: str = "unsplit", row: int = 1) -> Pair:
    return Pair(f"pairs.csv: row {row}", first, second, label, name, split)


def read(
    tmp_path: Path, labels: list[object], task: Task, highest: float = 1.0, skip: Sequence[str] = ()
) -> list[Pair]:
    columns = {"two": [f" b{n} " for n in range(len(labels))], "label": pd.Series(labels, dtype=object)}
    rows = pd.DataFrame({**columns, "one": "a  a", "more": 1})
    path = tmp_path / "pairs.csv"
    rows.to_csv(path, index=False)
    opened = files.read(path, COLUMNS.names())
    return list(data.read(opened, COLUMNS, task, lowest=0.0, highest=highest, skip=skip))


def test_scores_are_scaled_and_white_space_is_collapsed(tmp_path: Path):
    pairs = read(tmp_path, [0, 5, 2.5], "score", highest=5.0)
    assert [pair.label for pair in pairs] == [0.0, 1.0, 0.5]
    assert pairs[1][:3] == (f"{tmp_path}/pairs.csv: row 2", "a a", "b1")


def test_classes_are_texts_or_whole_numbers(tmp_path: Path):
    assert [pair.name for pair in read(tmp_path, ["neutral", 2], "class")] == ["neutral", "2"]


@pytest.mark.parametrize(("labels", "skip"), [([0.5, -1, 1], "-1"), ([0.5, "-", 1], "-"), ([0.5, None, 1], "")])
def test_row_with_a_label_to_skip_is_dropped_in_every_task(tmp_path: Path, labels: list[object], skip: str):
    pairs = read(tmp_path, labels, "score", skip=[skip])
    cleaned = data.clean(iter(pairs), "score")
    assert [pair.second for pair in cleaned.pairs] == ["b0", "b2"]
    assert cleaned.dropped["skipped_label"] == 1
    assert cleaned.examples.to_numpy().tolist() == [["skipped_label", f"{tmp_path}/pairs.csv: row 2", "a a", "b1"]]


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        ([0.5, 5.1], "score", "row 2: column 'label' holds '5.1'; it must be a number from 0 to 5"),
        (["high"], "score", "row 1: column 'label' holds 'high'; it must be a number from 0 to 5"),
        (["nan"], "score", "row 1: column 'label' holds 'nan'; it must be a number from 0 to 5"),
        ([1, 0.5], "duplicates", "row 2: column 'label' holds '0.5'; it must be a whole number from 0 to 1"),
        ([1, 2], "duplicates", "row 2: column 'label' holds '2'; it must be a whole number from 0 to 1"),
        (["a", None], "class", "row 2: column 'label' holds ''; it must be an id"),
    ],
)
def test_label_that_does_not_suit_the_task_is_named(tmp_path: Path, labels: list[object], task: Task, message: str):
    with pytest.raises(UserError) as caught:
        read(tmp_path, labels, task, highest=5.0)
    assert message in str(caught.value)


def test_missing_column_is_named_with_the_nearest(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("one,too,label\na,b,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'two'; the columns are one, too, label; did you mean 'too'"):
        list(data.read(files.read(path, COLUMNS.names()), COLUMNS, "score", lowest=0, highest=1))


def test_unusable_pairs_are_dropped_and_counted():
    rows = [pair("a", "b", 1), pair("", "b", row=2), pair("a", "", row=3), pair("\ud800", "b", row=4)]
    cleaned = data.clean(iter(rows), "score")
    assert cleaned.pairs == rows[:1]
    assert cleaned.dropped == {"skipped_label": 0, "empty": 2, "not_unicode": 1, "same_pair": 0, "label_differs": 0}
    assert cleaned.examples["origin"].tolist() == ["pairs.csv: row 2", "pairs.csv: row 3", "pairs.csv: row 4"]


def test_scores_of_the_same_pair_in_either_order_are_averaged():
    cleaned = data.clean(iter([pair("A", "b", 1.0), pair("b", "a", 0.5)]), "score")
    assert [(pair.first, pair.label) for pair in cleaned.pairs] == [("A", 0.75)]
    assert cleaned.dropped["same_pair"] == 1


def test_pair_with_different_labels_is_dropped():
    rows = [pair("a", "b", 1), pair("b", "a", 0), pair("a", "c", 1), pair("a", "c", 1)]
    cleaned = data.clean(iter(rows), "duplicates")
    assert [(pair.first, pair.second) for pair in cleaned.pairs] == [("a", "c")]
    assert (cleaned.dropped["label_differs"], cleaned.dropped["same_pair"]) == (2, 1)


def test_order_matters_where_the_task_is_class():
    rows = [pair("a", "b", name="entails"), pair("b", "a", name="neutral")]
    assert data.clean(iter(rows), "class").pairs == rows


def test_pair_of_an_earlier_split_is_a_leak():
    rows = [pair("a", "b", split="train"), pair("B", "a", split="test"), pair("a", "c", split="test")]
    assert data.find_leaks(rows, "score") == [rows[1]]
    assert data.find_leaks(rows, "class") == []


def alike() -> list[Pair]:
    topics = [f"about {chr(97 + n) * 3}" for n in range(20)]
    return [pair(f"{part} {topic}", topic, 1.0) for topic in topics for part in ("first", "second", "third")]


def test_pairs_that_share_a_text_are_on_one_side_whatever_the_order():
    built = data.split_pairs(alike(), 0.3, 0.3).pairs
    assert (built.groupby("second")["split"].nunique() == 1).all()
    assert set(built["split"]) == {"train", "dev", "test"}
    pd.testing.assert_frame_equal(built, data.split_pairs(alike()[::-1], 0.3, 0.3).pairs)
    more = data.split_pairs([*alike(), pair("a new one", "about something else", 1.0)], 0.3, 0.3).pairs
    assert more.merge(built, on=["pair_id", "split"]).shape[0] == 60


def test_pair_of_texts_in_different_splits_is_left_out():
    plain = data.split_pairs(alike(), 0.3, 0.3).pairs.drop_duplicates("second").set_index("second")["split"]
    by_split = {split: topics.tolist() for split, topics in plain.index.groupby(plain).items()}
    near = pair(by_split["train"][0], by_split["train"][1], 0.0)
    apart = pair(by_split["train"][0], by_split["test"][0], 0.0)
    built, across = data.split_pairs([*alike(), near, apart], 0.3, 0.3)
    assert across == [apart]
    assert built[built["first"] == near.first][["second", "split"]].to_numpy().tolist() == [[near.second, "train"]]


def test_premises_are_in_one_split_and_common_hypotheses_join_no_groups():
    common = ["A man is outside.", "A woman is asleep.", "Nobody is there."]
    rows = []
    for n in range(300):
        premise = f"Someone with {chr(97 + n // 26)}{chr(97 + n % 26)} stands on a street."
        own = f"There is {chr(97 + n // 26)}{chr(97 + n % 26)}."
        texts = [own, common[n % 3], common[(n + 1) % 3]]
        rows += [pair(premise, text, name=name) for text, name in zip(texts, ("yes", "maybe", "no"), strict=True)]
    built, across = data.split_pairs(rows, 0.2, 0.2)
    assert across == []
    assert len(built) == 900
    shares = built["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.6, "dev": 0.2, "test": 0.2}, abs=0.05)
    assert (built.groupby("first")["split"].nunique() == 1).all()
    pd.testing.assert_frame_equal(built, data.split_pairs(rows[::-1], 0.2, 0.2).pairs)


def test_splits_that_no_file_defines_are_drawn_from_train():
    rows = [row._replace(split="train") for row in alike()] + [pair("some", "other", 1.0, split="test")]
    built = data.split_pairs(rows, 0.3, 0.3).pairs
    assert built[built["split"] == "test"]["first"].tolist() == ["some"]
    assert set(built["split"]) == {"train", "dev", "test"}


def test_given_splits_stay_and_classes_get_their_places():
    rows = [
        pair("a", "b", name="no", split="dev"),
        pair("a", "c", name="yes", split="test"),
        pair("d", "e", name="no", split="train"),
    ]
    built, across = data.split_pairs(rows, 0.3, 0.3)
    assert across == []
    told = built.set_index("second")
    assert told["split"].to_dict() == {"b": "dev", "c": "test", "e": "train"}
    assert told["label"].to_dict() == {"b": 0, "c": 1, "e": 0}
    assert told["class"].to_dict() == {"b": "no", "c": "yes", "e": "no"}
