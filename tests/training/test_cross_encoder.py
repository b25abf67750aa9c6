import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    TrainerCallback,
)

from reranker.common.errors import UserError
from reranker.common.params import LoraSection
from reranker.inference.loading import load_biencoder, one_output
from reranker.inference.scoring import embed, score_pairs
from reranker.training import cross_encoder
from reranker.training.arguments import LOGGED, Further, check_trainer
from reranker.training.biencoders import similar_batches, tune_biencoder
from reranker.training.checkpoints import Checkpoints
from reranker.training.cross_encoder import Curve, build_cross_encoder, tune_cross_encoder
from reranker.training.evaluator import DevRanking, EvaluatorSequence
from reranker.training.examples import group_rows
from reranker.training.losses import LOSSES, make_loss
from reranker.training.trainer import Schedule, seed_everything

SCHEDULE = Schedule(lr=1e-3, epochs=1, batch_size=4, warmup=0.0, weight_decay=0.0, precision="float32", seed=5)

ABOUT = {
    "sort a list": "order numbers in a list",
    "find the path": "the shortest path in a graph",
    "read a csv file": "read the table from a file",
    "red apples": "green apples",
}
GROUPS = pd.DataFrame(
    [(query, [right, *(other for other in ABOUT.values() if other != right)]) for query, right in ABOUT.items()] * 6,
    columns=["query", "passages"],
).assign(teacher=[[2.0, 0.5, -0.5, -1.0]] * 24, relevance=[[1, 0, 0, 0]] * 24)


@pytest.fixture
def dev() -> DevRanking:
    pairs = [(query, passage) for query in ABOUT for passage in ABOUT.values()]
    candidates = pd.DataFrame(pairs, columns=["query_id", "passage_id"])
    candidates = candidates.assign(query=candidates["query_id"], text=candidates["passage_id"])
    judgments = pd.DataFrame(ABOUT.items(), columns=["query_id", "passage_id"]).assign(relevance=1)
    return DevRanking(candidates, judgments)


PAIRS = [(query, passage) for query in ABOUT for passage in ABOUT.values()]


@pytest.fixture(scope="module")
def rerankers(encoder: str, cross_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny rerankers by the kind of their head."""
    top = tmp_path_factory.mktemp("rerankers")
    shape = {"num_labels": 1, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, of in (("classifier", BertForSequenceClassification), ("layers", RobertaForSequenceClassification)):
            config = of.config_class(**{**BertConfig.from_pretrained(encoder).to_dict(), **shape})
            of(config).save_pretrained(top / name)
            AutoTokenizer.from_pretrained(encoder).save_pretrained(top / name)
    model = CrossEncoder(cross_encoder)
    model.activation_fn = torch.nn.Sigmoid()
    model.save_pretrained(str(top / "modules"), create_model_card=False)
    CrossEncoder(str(top / "classifier")).save_pretrained(str(top / "saved"), create_model_card=False)
    return {path.name: str(path) for path in top.iterdir()}


KINDS = ["classifier", "layers", "modules", "saved"]
HEADS = {"classifier": "0.model.classifier.", "layers": "0.model.classifier.", "modules": "2.linear."}


class Trained:
    """A tiny cross-encoder after its training."""

    def __init__(self, encoder: str, dev: DevRanking, loss: str = "group_softmax", **options: object) -> None:
        schedule = SCHEDULE._replace(**{key: options.pop(key) for key in SCHEDULE._fields if key in options})
        seed_everything(schedule.seed)
        frozen = options.pop("frozen_layers", 0)
        outputs = LOSSES[loss].outputs
        self.model = build_cross_encoder(encoder, 32, frozen, outputs, options.pop("num_layers", None))
        if adapters := options.pop("adapters", None):
            cross_encoder.attach_lora(self.model, adapters, frozen)
        self.before = weights(self.model)
        self.curve: Curve = tune_cross_encoder(
            self.model,
            group_rows(GROUPS, loss, "teacher"),
            make_loss(loss, self.model, {}, distillation=0.5, group_size=4),
            schedule,
            **{"evaluator": dev, "evaluations": 2, "patience": 9, "head_lr": 1e-2, "label": "train"} | options,
        )

    @property
    def scores(self) -> np.ndarray:
        return scores(self.model)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def scores(model: CrossEncoder) -> np.ndarray:
    queries = [query for query in ABOUT for _ in ABOUT]
    return score_pairs(model, queries, list(ABOUT.values()) * 4, label="")


def largest_change(trained: Trained) -> dict[str, float]:
    """The largest changes of the weights of the body and of the head."""
    change = {name: float((value - trained.before[name]).abs().max()) for name, value in weights(trained.model).items()}
    head = [name for name in change if name.startswith("2.")]
    assert len(head) == 2
    return {"head": max(change[name] for name in head), "body": max(change[n] for n in change if n not in head)}


def clouds(number: int, size: int) -> np.ndarray:
    """Rows around a few directions, mixed."""
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(number, 8))
    rows = centres.repeat(size, axis=0) + generator.normal(scale=0.1, size=(number * size, 8))
    return generator.permutation(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


@pytest.mark.parametrize(("rows", "size"), [(64, 8), (61, 8), (5, 8), (8, 8), (1, 2), (9, 2)])
def test_order_of_batches_has_every_row_once(rows, size):
    order = similar_batches(clouds(8, 8)[:rows], size, seed=1)
    assert sorted(order) == list(range(rows))


def similarity_inside(vectors: np.ndarray, order: np.ndarray, size: int) -> float:
    batches = vectors[order].reshape(-1, size, vectors.shape[1])
    return float((batches @ batches.transpose(0, 2, 1)).mean())


def test_rows_of_a_batch_are_more_similar_than_those_of_a_random_one():
    vectors = clouds(8, 16)
    order = similar_batches(vectors, 16, seed=1)
    assert similarity_inside(vectors, order, 16) > similarity_inside(vectors, np.arange(128), 16) + 0.5


def test_batches_stay_similar_where_the_last_one_is_short():
    vectors = clouds(32, 16)[:505]
    orders = [similar_batches(vectors, 16, seed=seed) for seed in range(8)]
    # it is 0.53 if the incomplete batch may come before full ones
    assert np.mean([similarity_inside(vectors, order[:496], 16) for order in orders]) > 0.62


def test_order_of_batches_repeats_with_its_seed_and_changes_with_it():
    vectors = clouds(8, 16)
    first, again, other = (similar_batches(vectors, 16, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_new_cross_encoder_has_no_dropout_and_scores_differ_by_pair_and_seed(encoder: str):
    models = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        models.append(build_cross_encoder(encoder, 32))
    first, again, other = map(scores, models)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert len(set(first.round(4))) > 8
    assert {part.p for part in models[0].modules() if isinstance(part, torch.nn.Dropout)} == {0.0}


def plain(name: str) -> np.ndarray:
    """The logits of a model as the library loads it."""
    return CrossEncoder(name).predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)


@pytest.mark.parametrize("kind", KINDS)
def test_reranker_keeps_its_head_and_says_nothing(rerankers, kind: str, capsys: pytest.CaptureFixture[str]):
    model = build_cross_encoder(rerankers[kind], 32)
    expected = plain(rerankers[kind])
    np.testing.assert_allclose(model.predict(PAIRS, show_progress_bar=False), expected, atol=1e-5)
    np.testing.assert_allclose(scores(model), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert model.max_seq_length == 32
    assert {value.dtype for value in weights(model).values()} == {torch.float32}
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} <= {0.0}
    assert capsys.readouterr().out == ""


def test_encoder_and_biencoder_get_a_new_head_and_one_line_says_so(
    encoder: str, biencoder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in (encoder, biencoder):
        build_cross_encoder(name, 32)
        line = f"train: '{name}' has no trained ranking head, so it gets a new one with random weights\n"
        assert capsys.readouterr().out == line
    monkeypatch.setenv("RANK", "1")
    build_cross_encoder(encoder, 32)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", KINDS)
def test_kept_head_of_one_output_becomes_two_and_one_again(rerankers, kind: str, tmp_path: Path):
    model = build_cross_encoder(rerankers[kind], 32, outputs=2)
    expected = plain(rerankers[kind])
    logits = model.predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1], expected, atol=1e-5)
    for turned, number in ((model, 2), (one_output(model), 1)):
        assert turned.num_labels == number
        turned.save_pretrained(str(tmp_path / str(number)), create_model_card=False)
        again = CrossEncoder(str(tmp_path / str(number)))
        assert again.num_labels == number
        again = one_output(again) if number > 1 else again
        np.testing.assert_allclose(again.predict(PAIRS, show_progress_bar=False), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_head_of_one_output_is_replaced_for_three_classes(rerankers, kind: str, capsys: pytest.CaptureFixture[str]):
    assert build_cross_encoder(rerankers[kind], 32, outputs=3).num_labels == 3
    assert "gets a new one with random weights" in capsys.readouterr().out


def test_head_of_several_classes_is_kept_for_them_and_refused_for_a_score(encoder: str, tmp_path: Path):
    CrossEncoder(encoder, num_labels=3).save_pretrained(str(tmp_path), create_model_card=False)
    model = build_cross_encoder(str(tmp_path), 32, outputs=3)
    np.testing.assert_allclose(model.predict(PAIRS, show_progress_bar=False), plain(str(tmp_path)), atol=1e-5)
    with pytest.raises(UserError, match=r"base_model '.*' has 3 outputs; it must have one$"):
        build_cross_encoder(str(tmp_path), 32)


def moved(trained: "Trained") -> set[str]:
    return {name for name, value in weights(trained.model).items() if not torch.equal(value, trained.before[name])}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_kept_head_learns_with_the_late_layers_and_is_the_same_when_loaded_again(
    rerankers, kind: str, dev, tmp_path: Path
):
    trained = Trained(rerankers[kind], dev, frozen_layers=1, evaluations=1)
    names = moved(trained)
    assert any(name.startswith(HEADS[kind]) for name in names)
    assert any(".layer.1." in name for name in names)
    assert not any(".embeddings." in name or ".layer.0." in name for name in names)
    assert not np.allclose(trained.scores, plain(rerankers[kind]), atol=1e-3)
    trained.model.save_pretrained(str(tmp_path), create_model_card=False)
    np.testing.assert_allclose(plain(str(tmp_path)), trained.scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_kept_head_learns_as_the_body_does(rerankers, kind: str, dev):
    # the first step of Adam moves each weight by the learning rate, unless its gradient is almost 0
    trained = Trained(rerankers[kind], dev, lr=3e-4, head_lr=7e-3, batch_size=24, evaluations=1)
    learned = weights(trained.model)
    changes = {name: float((value - trained.before[name]).abs().max()) for name, value in learned.items()}
    of_head = [change for name, change in changes.items() if name.startswith(HEADS[kind])]
    assert [max(changes.values()), max(of_head)] == pytest.approx([3e-4, 3e-4], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["group_softmax", "cross_entropy"])
@pytest.mark.parametrize("kind", HEADS)
def test_adapters_learn_beside_a_kept_head_and_are_merged(rerankers, kind: str, loss: str, dev, tmp_path: Path):
    evaluator = EvaluatorSequence({"retrieved": dev})
    options = {"evaluator": evaluator, "adapters": ADAPTERS, "frozen_layers": 1, "num_layers": 2, "lr": 1e-2}
    trained = Trained(rerankers[kind], dev, loss, **options)
    names = moved(trained)
    assert {name for name in names if "lora_" not in name} == {n for n in trained.before if n.startswith(HEADS[kind])}
    assert {name.split(".layer.")[1][0] for name in names if "lora_" in name} == {"1"}
    # the best checkpoint was loaded, with adapters and head
    assert evaluator(trained.model)["ndcg@10"] == pytest.approx(trained.curve.dev["ndcg@10"].max())
    cross_encoder.merge_lora(trained.model)
    model = one_output(trained.model) if loss == "cross_entropy" else trained.model
    assert weights(model).keys() == weights(build_cross_encoder(rerankers[kind], 32)).keys()
    assert evaluator(model)["ndcg@10"] == pytest.approx(trained.curve.dev["ndcg@10"].max())
    model.save_pretrained(str(tmp_path), create_model_card=False)
    np.testing.assert_allclose(plain(str(tmp_path)), scores(model), atol=1e-5)


def test_layers_of_a_kept_head_get_no_adapters(rerankers):
    model = build_cross_encoder(rerankers["layers"], 32)
    cross_encoder.attach_lora(model, ADAPTERS.model_copy(update={"target_modules": ["dense"]}), 0)
    assert all("lora_" not in name for name in weights(model) if "classifier" in name)
    with pytest.raises(UserError, match=r"params\.yaml: lora: "):
        cross_encoder.attach_lora(
            build_cross_encoder(rerankers["classifier"], 32),
            ADAPTERS.model_copy(update={"target_modules": ["classifier"]}),
            0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [None, LoraSection(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["query"])])
def test_training_of_a_kept_head_goes_on_from_a_checkpoint(rerankers, dev, adapters, tmp_path: Path):
    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 4:
                raise InterruptedError

    def trained(folder: str, *callbacks: TrainerCallback) -> Trained:
        options = {"further": Further({}, callbacks), "checkpoints": Checkpoints(tmp_path / folder, None, ())}
        return Trained(rerankers["classifier"], dev, adapters=adapters, evaluations=[2, 4, 6], **options)

    with pytest.raises(InterruptedError):
        trained("stopped", Stop())
    resumed, whole = trained("stopped"), trained("whole")
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    pd.testing.assert_frame_equal(resumed.curve.loss, whole.curve.loss)


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_and_another_one_others(encoder: str, dev):
    first, again, other = (Trained(encoder, dev, seed=seed, epochs=1) for seed in (5, 5, 6))
    for name, value in weights(first.model).items():
        assert torch.equal(value, weights(again.model)[name]), name
    pd.testing.assert_frame_equal(first.curve.loss, again.curve.loss)
    assert not np.allclose(first.scores, other.scores)


@pytest.mark.slow
def test_optimiser_gets_the_learning_rates_of_body_and_head(encoder: str, dev):
    # the first step of Adam moves each weight by the learning rate, unless its gradient is almost 0
    trained = Trained(encoder, dev, lr=3e-4, head_lr=7e-3, batch_size=24, evaluations=1)
    assert largest_change(trained) == pytest.approx({"body": 3e-4, "head": 7e-3}, rel=0.01)
    assert trained.curve.peak_lr == 3e-4


@pytest.mark.slow
def test_frozen_layers_keep_their_weights_and_the_others_learn(encoder: str, dev):
    trained = Trained(encoder, dev, frozen_layers=1, evaluations=1)
    moved = {name for name, value in weights(trained.model).items() if not torch.equal(value, trained.before[name])}
    unchanged = trained.before.keys() - moved  # the pooler of BERT has no part in the mean of the tokens
    assert unchanged == {
        name for name in trained.before if ".embeddings." in name or ".layer.0." in name or ".pooler." in name
    }


@pytest.mark.slow
def test_student_has_the_first_layers_of_its_teacher_learns_and_is_the_same_when_loaded_again(
    encoder: str, dev, tmp_path: Path
):
    trained = Trained(encoder, dev, num_layers=1, epochs=2)
    seed_everything(SCHEDULE.seed)
    whole = weights(build_cross_encoder(encoder, 32))
    assert {name for name in whole if name not in trained.before} == {name for name in whole if ".layer.1." in name}
    assert all(torch.equal(whole[name], value) for name, value in trained.before.items())
    assert not torch.equal(
        *(values["0.model.encoder.layer.0.attention.self.query.weight"] for values in (whole, weights(trained.model)))
    )
    trained.model.save_pretrained(str(tmp_path), create_model_card=False)
    again = CrossEncoder(str(tmp_path))
    assert again.transformers_model.config.num_hidden_layers == 1
    np.testing.assert_allclose(scores(again), trained.scores, atol=1e-6)


def test_student_of_more_layers_than_there_are_is_refused(encoder: str):
    assert build_cross_encoder(encoder, 32, num_layers=2).transformers_model.config.num_hidden_layers == 2
    with pytest.raises(UserError, match="num_layers: 3: the model has 2 layers"):
        build_cross_encoder(encoder, 32, num_layers=3)
    with pytest.raises(UserError, match="frozen_layers: 1: of the model's 1 layers one must be left"):
        build_cross_encoder(encoder, 32, 1, num_layers=1)


def test_kinds_of_layers_are_cut_off_with_them(tmp_path: Path, encoder: str):
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    shape = ModernBertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        layer_types=kinds, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    ModernBertModel(shape).save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "whole")
    model = build_cross_encoder(str(tmp_path / "whole"), 32, num_layers=3)
    model.save_pretrained(str(tmp_path / "cut"), create_model_card=False)
    np.testing.assert_allclose(scores(CrossEncoder(str(tmp_path / "cut"))), scores(model), atol=1e-6)


ADAPTERS = LoraSection(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"])


@pytest.mark.slow
def test_adapters_alone_learn_and_are_merged_into_a_plain_model(encoder: str, dev, tmp_path: Path):
    trained = Trained(encoder, dev, adapters=ADAPTERS, epochs=4, lr=1e-2, frozen_layers=1)
    learned = weights(trained.model)
    still = {name for name, value in learned.items() if name.startswith("0.") and "lora_" not in name}
    assert all(torch.equal(learned[name], trained.before[name]) for name in still)
    moved = {name for name in learned if not torch.equal(learned[name], trained.before[name])}
    assert {name.split(".layer.")[1][0] for name in moved if "lora_" in name} == {"1"}
    assert trained.curve.loss["loss"].iloc[-1] < trained.curve.loss["loss"].iloc[0]
    # the best checkpoint was loaded, adapters and all
    assert dev.ndcg(trained.model) == pytest.approx(trained.curve.dev["ndcg@10"].max())
    before = trained.scores
    cross_encoder.merge_lora(trained.model)
    np.testing.assert_allclose(trained.scores, before, atol=1e-5)
    assert weights(trained.model).keys() == weights(build_cross_encoder(encoder, 32)).keys()
    trained.model.save_pretrained(str(tmp_path), create_model_card=False)
    assert not list(tmp_path.rglob("adapter*"))
    np.testing.assert_allclose(scores(CrossEncoder(str(tmp_path))), before, atol=1e-5)


@pytest.mark.slow
def test_best_checkpoint_of_adapters_is_kept(encoder: str, dev):
    # a learning rate that soon destroys the model
    trained = Trained(encoder, dev, adapters=ADAPTERS, lr=0.5, head_lr=0.5, epochs=10, evaluations=60, patience=3)
    curve = trained.curve.dev["ndcg@10"]
    assert curve.iloc[-1] < curve.max()
    assert dev.ndcg(trained.model) == pytest.approx(curve.max())


def test_adapters_for_layers_that_the_model_does_not_have_are_refused(encoder: str):
    unknown = ADAPTERS.model_copy(update={"target_modules": ["nowhere"]})
    with pytest.raises(UserError, match=r"params\.yaml: lora: .*nowhere"):
        cross_encoder.attach_lora(build_cross_encoder(encoder, 32), unknown, 0)


def test_adapters_without_peft_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"lora: peft is not installed; run `\.venv/bin/pip install peft`"):
        cross_encoder.check_lora_installed()


@pytest.mark.parametrize("number", [2, 3])
def test_model_with_all_layers_frozen_is_refused(encoder: str, number):
    with pytest.raises(UserError, match=f"frozen_layers: {number}: of the model's 2 layers one must be left"):
        build_cross_encoder(encoder, 32, number)


def test_length_for_which_the_model_has_no_positions_is_refused(encoder: str):
    with pytest.raises(UserError, match="max_length: 65 is more than the 64 tokens"):
        build_cross_encoder(encoder, 65)
    assert build_cross_encoder(encoder, 64).max_seq_length == 64


def test_model_whose_layers_share_their_weights_cannot_be_frozen(tmp_path: Path, encoder: str):
    from transformers import AlbertConfig, AlbertModel, AutoTokenizer

    shape = AlbertConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
    )
    AlbertModel(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    assert build_cross_encoder(str(tmp_path), 32)
    with pytest.raises(UserError, match=r"frozen_layers: .*set 0"):
        build_cross_encoder(str(tmp_path), 32, 1)


@pytest.mark.slow
def test_learning_rate_rises_during_the_warmup(encoder: str, dev):
    # two steps, both of them warm-up: the first one's rate is 0, the second one's a half
    trained = Trained(encoder, dev, lr=4e-4, head_lr=8e-3, batch_size=12, warmup=0.99, evaluations=1)
    assert largest_change(trained) == pytest.approx({"body": 2e-4, "head": 4e-3}, rel=0.01)


@pytest.mark.slow
def test_evaluations_are_spread_over_the_steps(encoder: str, dev):
    trained = Trained(encoder, dev, epochs=2, evaluations=3)
    assert trained.curve.dev["step"].tolist() == [4, 8, 12]
    assert trained.curve.loss["step"].tolist() == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "evaluated"), [([1, 4], [1, 4, 6]), ([2, 3, 6], [2, 3, 6])])
def test_evaluations_are_at_the_steps_of_a_list_and_at_the_last_one(encoder: str, dev, steps, evaluated):
    trained = Trained(encoder, dev, evaluations=steps)
    assert trained.curve.dev["step"].tolist() == evaluated
    assert dev.ndcg(trained.model) == pytest.approx(trained.curve.dev["ndcg@10"].max())


def test_evaluation_after_the_last_step_is_refused_with_the_number_of_steps(encoder: str, dev):
    with pytest.raises(UserError, match=r"^evaluations: 7: the training has 6 steps; name none beyond the last one$"):
        Trained(encoder, dev, evaluations=[3, 7])


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [4, 5])
def test_last_evaluation_is_at_the_end_and_there_are_as_many_as_asked_for(encoder: str, dev, evaluations):
    steps = Trained(encoder, dev, evaluations=evaluations).curve.dev["step"].tolist()
    assert steps[-1] == 6
    assert len(steps) == evaluations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_steps": 5}, [2, 5]),
        ({"gradient_accumulation_steps": 4}, [1, 2]),  # 6 batches: of the last step only 2 are left
        ({"gradient_accumulation_steps": 3, "max_steps": 9}, [4, 9]),
    ],
)
def test_evaluations_and_warmup_follow_the_steps_that_the_trainer_makes(encoder: str, dev, arguments, steps):
    trained = Trained(encoder, dev, further=Further(arguments))
    assert trained.curve.dev["step"].tolist() == steps
    assert trained.curve.steps == steps[-1]
    assert trained.curve.loss["step"].tolist() == list(range(1, steps[-1] + 1))


@pytest.mark.slow
def test_argument_of_the_trainer_takes_the_place_of_what_the_schedule_says(encoder: str, dev):
    # one step of plain gradient descent moves each weight by rate times gradient: not all by the rate, as Adam does
    trained = Trained(encoder, dev, batch_size=24, evaluations=1, further=Further({"optim": "sgd"}))
    assert largest_change(trained)["head"] != pytest.approx(1e-2, rel=0.01)


def test_batches_of_another_kind_are_refused_where_several_processes_split_them(encoder: str, dev, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^params\.yaml: trainer: batch_sampler: several processes split the batches "):
        Trained(encoder, dev, further=Further({"batch_sampler": "no_duplicates"}))


@pytest.mark.slow
def test_rate_may_follow_the_figures_of_dev(encoder: str, dev):
    arguments = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "max"}}
    check_trainer(arguments)
    trained = Trained(encoder, dev, further=Further(arguments))
    assert trained.curve.peak_lr == SCHEDULE.lr
    assert largest_change(trained)["body"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim": "nowhere"}, "nowhere is not a valid OptimizerNames"),
        ({"fsdp": "full_shard"}, "Using fsdp only works in distributed training"),
        ({"optim": "galore_adamw"}, "You need to install `galore_torch`"),
    ],
    ids=["value", "surroundings", "package"],
)
def test_argument_that_the_trainer_refuses_is_named(encoder: str, dev, arguments, message):
    with pytest.raises(UserError, match=rf"params\.yaml: trainer: {message}"):
        Trained(encoder, dev, further=Further(arguments))


@pytest.mark.slow
def test_best_evaluation_is_kept_and_training_stops_without_a_gain(encoder: str, dev):
    # a learning rate that soon destroys the model
    trained = Trained(encoder, dev, lr=0.05, head_lr=0.5, epochs=10, evaluations=60, patience=3)
    dev_curve = trained.curve.dev.set_index("step")["ndcg@10"]
    assert dev.ndcg(trained.model) == pytest.approx(dev_curve.max())
    assert dev_curve.iloc[-1] < dev_curve.max()
    assert dev_curve.index[-1] == dev_curve.idxmax() + 3 < 60
    assert trained.curve.steps == dev_curve.index[-1]


@pytest.mark.slow
def test_loss_curve_has_about_as_many_points_as_wanted_however_many_steps_there_are(encoder: str, dev):
    trained = Trained(encoder, dev, epochs=16, evaluations=1)  # 96 steps
    assert LOGGED <= len(trained.curve.loss) <= 2 * LOGGED


@pytest.mark.slow
def test_training_in_bfloat16_learns_too_and_leaves_weights_in_float32(encoder: str, dev):
    trained = Trained(encoder, dev, precision="bfloat16", epochs=4, lr=2e-3)
    assert trained.curve.loss["loss"].iloc[-1] < trained.curve.loss["loss"].iloc[0]
    assert {value.dtype for value in weights(trained.model).values()} == {torch.float32}


@pytest.mark.slow
def test_training_leaves_nothing_in_the_working_directory(encoder: str, dev, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trained(encoder, dev, evaluations=1)
    assert list(tmp_path.iterdir()) == []


ROWS = pd.DataFrame(ABOUT.items(), columns=["query", "passage"]).assign(group=range(4))


def tuned(biencoder: str, rows: pd.DataFrame, **changes: object) -> SentenceTransformer:
    seed_everything(1)
    model = load_biencoder(biencoder, 32)
    tune_biencoder(model, rows, SCHEDULE._replace(**changes), scale=20.0, label="warm")
    return model


def margin(model: SentenceTransformer) -> float:
    """The difference between the cosines of relevant and of other passages."""
    cosines = embed(model, list(ABOUT), label="") @ embed(model, list(ABOUT.values()), label="").T
    return float(np.diag(cosines).mean() - cosines.mean())


@pytest.mark.slow
def test_tuned_biencoder_moves_right_passages_nearer_and_is_the_same_when_loaded_again(biencoder: str, tmp_path: Path):
    model = tuned(biencoder, pd.concat([ROWS] * 10))
    assert margin(model) > margin(load_biencoder(biencoder, 32)) + 0.1
    model.save_pretrained(str(tmp_path), create_model_card=False)
    loaded = load_biencoder(str(tmp_path), 32)
    np.testing.assert_allclose(embed(loaded, list(ABOUT), label=""), embed(model, list(ABOUT), label=""), atol=1e-6)


@pytest.mark.slow
def test_biencoder_is_tuned_in_the_order_of_the_rows(biencoder: str):
    # batches of one group have no negatives and leave the weights as they are; mixed batches change them
    grouped = pd.concat([ROWS.head(2).assign(group=7), ROWS.tail(2).assign(group=8)])
    still = weights(load_biencoder(biencoder, 32))
    for name, value in weights(tuned(biencoder, grouped, batch_size=2)).items():
        assert torch.equal(value, still[name]), name
    moved = weights(tuned(biencoder, grouped.iloc[[0, 2, 1, 3]], batch_size=2))
    assert not all(torch.equal(value, still[name]) for name, value in moved.items())


@pytest.mark.slow
def test_same_rows_give_the_same_biencoder(biencoder: str):
    first, again = (tuned(biencoder, pd.concat([ROWS] * 3)) for _ in range(2))
    np.testing.assert_array_equal(*(embed(model, list(ABOUT), label="") for model in (first, again)))
