import dataclasses
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoderTrainingArguments
from transformers import PrinterCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from reranker.common.errors import UserError
from reranker.training.arguments import OWNED, check_trainer, further, training_arguments


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_steps": 5, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "optim": "adafactor"},
        {"warmup_steps": 3, "bf16": True, "max_grad_norm": 1, "torch_compile": False},
        {"warmup_steps": 0.2, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"batch_sampler": "no_duplicates", "multi_dataset_batch_sampler": "round_robin", "report_to": "none"},
    ],
)
def test_fields_of_the_trainer_go_through(given, tmp_path: Path):
    check_trainer(given)
    arguments = training_arguments({"output_dir": str(tmp_path), "use_cpu": True, "optim": "adamw_torch"}, given)
    assert arguments.optim == given.get("optim", "adamw_torch")
    assert arguments.warmup_steps == given.get("warmup_steps", 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_step": 5}, "unknown key 'max_step'; did you mean 'max_steps'?"),
        ({"zzzzz": 5}, "unknown key 'zzzzz'; see CrossEncoderTrainingArguments"),
        ({"max_steps": "5"}, "max_steps: '5' is not allowed: it should be a valid integer"),
        ({"max_steps": 5.5}, "max_steps: 5.5 is not allowed: it should be a valid integer"),
        ({"bf16": 1}, "bf16: 1 is not allowed: it should be a valid boolean"),
        ({"max_grad_norm": None}, "max_grad_norm: None is not allowed: it should be a valid number"),
        (
            {"gradient_accumulation_steps": 0},
            "gradient_accumulation_steps: 0 is not allowed: it should be greater than or equal to 1",
        ),
        ({"optim": "adamw_foo"}, "adamw_foo is not a valid OptimizerNames, please select one of ['adamw_torch', "),
        ({"lr_scheduler_type": "x"}, "x is not a valid SchedulerType, please select one of ['linear', 'cosine'"),
        ({"batch_sampler": "x"}, "x is not a valid BatchSamplers"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16 can be True"),
        ({"warmup_steps": -1}, "Got warmup_steps = -1"),
        ({"learning_rate": 1e-5}, "learning_rate: is not given here; use lr"),
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size: is not given here; use batch_size"),
        ({"num_train_epochs": 2}, "num_train_epochs: is not given here; use epochs"),
        ({"seed": 2}, "seed: is not given here; use seed at the top level"),
        ({"output_dir": "x"}, "output_dir: is not given here; the model goes to models/reranker"),
        ({"eval_steps": 5}, "eval_steps: is not given here; use evaluations"),
        ({"save_strategy": "no"}, "save_strategy: is not given here; use evaluations, each of which is a checkpoint"),
        ({"report_to": ["paper"]}, "paper is not supported, only azure_ml, "),
    ],
)
def test_field_that_is_not_allowed_is_named_with_what_is(given, message):
    with pytest.raises(UserError) as caught:
        check_trainer(given)
    assert str(caught.value).startswith(f"params.yaml: trainer: {message}")
    assert "\n" not in str(caught.value)


def test_every_field_of_the_trainer_is_taken_or_has_another_place():
    fields = dataclasses.fields(CrossEncoderTrainingArguments)
    assert OWNED.keys() <= {field.name for field in fields}
    for field in fields:
        plain = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in OWNED:
            with pytest.raises(UserError, match=f"trainer: {field.name}: is not given here; "):
                check_trainer({field.name: plain})
        else:
            check_trainer({field.name: plain})


@pytest.mark.parametrize(
    ("name", "package"), [("azure_ml", "azureml-sdk"), ("clearml", "clearml"), ("flyte", "flytekit")]
)
def test_report_to_a_package_that_is_not_there_says_what_to_install(name, package):
    with pytest.raises(UserError, match=rf"^params\.yaml: trainer: \w+ requires .* Run `pip install {package}`\.$"):
        check_trainer({"report_to": [name]})


def test_reports_are_callbacks_and_the_rest_are_arguments():
    found = further({"report_to": "none", "max_steps": 3}, "train")
    assert (dict(found.arguments), list(found.callbacks)) == ({"max_steps": 3}, [])


def test_first_process_alone_reports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "mlflow", PrinterCallback)  # whose package may be missing
    found = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        found.append([type(callback) for callback in further({"report_to": "mlflow"}, "train").callbacks])
    assert found == [[PrinterCallback], []]
