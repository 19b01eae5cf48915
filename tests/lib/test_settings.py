"""The settings of a run: what `RunConfig` takes, and one line for what it does not."""

import json
import math
from dataclasses import MISSING, fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from saga_lib.common import ranges
from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_lib.common.ranges import DML_OPTIONS, RANGES, checked, shown
from saga_lib.config import SIGNAL_CONTROLS, RunConfig

FIELDS = {field.name: field for field in fields(RunConfig)}
NAMES = {"profile": "smoke", "dataset": "miniature_birds", "method": "mine", "seed": 0, "supervisor": "miniature", "image_size": 48}
NUMBERS = [name for name, allowed in RANGES.items() if allowed.type in ("int", "float")]
CHOICES = [name for name, allowed in RANGES.items() if allowed.names]
FLAGS = [name for name, field in FIELDS.items() if field.type == "bool"]
NAN, INFINITY = float("nan"), float("inf")
GOES_WITH = {  # what else a setting needs
    "audit_every": {"language_signal": "grpo"},
    **{("signal_control", control): {"language_signal": signal} for signal, controls in SIGNAL_CONTROLS.items() for control in controls},
    **{("reading_control", control): {"reading_signal": "contrast"} for control in RANGES["reading_control"].names},
}


def make(**changes):
    return RunConfig.from_dict(NAMES | changes)


def refusal(**changes):
    with pytest.raises(SagaError) as error:
        make(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_and_the_fields_agree():
    assert set(RANGES) <= set(FIELDS)
    assert {name for name, field in FIELDS.items() if field.type in ("int", "float")} == set(NUMBERS)
    for name, allowed in RANGES.items():
        assert allowed.type == FIELDS[name].type, name
        if FIELDS[name].default is not MISSING:
            assert checked(name, FIELDS[name].default, allowed.type, allowed) == FIELDS[name].default
    from saga_study.methods import field_help

    comments = {name: text for entries in field_help().values() for name, (_, _, text) in entries.items()}
    for name in CHOICES:
        assert all(choice in comments[name] for choice in RANGES[name].names), name
        assert FIELDS[name].default in RANGES[name].names


def test_the_choices_are_what_the_library_has():
    from saga_lib.encoder import POOLERS
    from saga_lib.losses import DML_HYPERPARAMETERS, PF_REDUCTIONS

    assert set(RANGES["pooler"].names) == set(POOLERS)
    assert set(RANGES["signal_control"].names) == {"none", *(name for names in SIGNAL_CONTROLS.values() for name in names)}
    assert set(RANGES["language_signal"].names) == {"none", *SIGNAL_CONTROLS}
    assert set(DML_OPTIONS["pf"]["reduction"].names) == set(PF_REDUCTIONS)
    assert {name: list(options) for name, options in DML_OPTIONS.items()} == {k: list(v) for k, v in DML_HYPERPARAMETERS.items()}
    for loss, defaults in DML_HYPERPARAMETERS.items():
        for name, default in defaults.items():
            allowed = DML_OPTIONS[loss][name]
            assert checked(name, default, allowed.type, allowed) == default and type(default).__name__ == allowed.type


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_of_numbers(name):
    allowed, change = RANGES[name], {"batch_size": 4, "batch_images_per_class": 2, **GOES_WITH.get(name, {})}
    step = 1 if allowed.type == "int" else 1e-9
    for bound, is_open, outwards in ((allowed.low, allowed.above, -1), (allowed.high, allowed.below, 1)):
        if math.isinf(bound):
            continue
        beyond = (int if allowed.type == "int" else float)(bound + (0 if is_open else outwards * step))
        message = refusal(**change | {name: beyond})
        assert name in message and repr(beyond) in message and str(allowed) in message and f"{bound:.10g}" in message
        within = (int if allowed.type == "int" else float)(bound - outwards * step if is_open else bound)
        if (name, within) not in (("embedding_dim", 0), ("batch_images_per_class", 1), ("batch_size", 1)):
            assert getattr(make(**change | {name: within}), name) == within
    kind = "whole number" if allowed.type == "int" else "number"
    for wrong in ("3", "nan", None, True, np.True_, NAN, INFINITY, -INFINITY, [1], (), {}, b"1", 1j, np.array([1, 2]), "x" * 999):
        message = refusal(**{name: wrong})
        assert message.startswith(f"{name} must be a {kind}") and shown(wrong) in message and len(message) < 250
    if allowed.type == "int":
        assert refusal(**{name: 3.0}).endswith("not 3.0; write 3") and f"{name} must be" in refusal(**{name: 3.5})
        assert make(**change | {name: np.int64(4)}).to_dict()[name] == 4
        assert type(getattr(make(**change | {name: np.uint8(4)}), name)) is int
    else:
        inner = next(value for value in (1, 0.5) if value in allowed)
        for same in (inner, np.float64(inner), np.float32(inner), Fraction(inner)):
            assert type(getattr(make(**{name: same}), name)) is float and getattr(make(**{name: same}), name) == inner
        assert name in refusal(**{name: 10**400})


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    for choice in RANGES[name].names:
        assert getattr(make(**GOES_WITH.get((name, choice), {}) | {name: choice}), name) == choice
        assert f"unknown {name} '{choice}x': did you mean {choice!r}?" in refusal(**{name: f"{choice}x"})
        assert f"did you mean {choice!r}?" in refusal(**{name: choice.upper()})
    assert f"unknown {name} ''" in refusal(**{name: ""})
    for wrong in (None, 0, True, 1.5, NAN, [], b"none"):
        message = refusal(**{name: wrong})
        assert message.startswith(f"{name} must be text ({' | '.join(RANGES[name].names)}), not {wrong!r}")


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_not_guessed(name):
    assert getattr(make(**{name: np.True_}), name) is True and getattr(make(**{name: False}), name) is False
    for wrong in ("true", "True", "false", "", 0, 1, 1.0, None, [True]):
        assert refusal(**{name: wrong}).startswith(f"{name} must be True or False, not {wrong!r}")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.type == "str"])
def test_texts(name):
    for wrong in (None, 2024, 2.5, True, b"x", ["x"], "a\0b"):
        assert refusal(**{name: wrong}).startswith(f"{name} must be text")
    assert 'write it in quotes, "2024"' in refusal(**{name: 2024})
    if RANGES.get(name) is ranges.TEXT:
        assert refusal(**{name: ""}) == f"{name} must be text (not empty), not ''"


def test_paths_are_texts():
    own = {"dataset": "image_folder", "vocabulary": "birds"}
    assert make(**own, data_dir=Path("photos")) == make(**own, data_dir="photos") == make(**own, data_dir="photos/")
    assert make(**own, data_dir=Path("photos")).to_dict()["data_dir"] == "photos"
    assert make(supervisor=Path("/models/mine")).supervisor == "/models/mine"
    twice = make(**own, data_dir=f"{REPOSITORY}//photos")
    assert RunConfig.from_dict(twice.to_dict()) == twice == make(**own, data_dir="photos")


@pytest.mark.parametrize("loss", DML_OPTIONS)
def test_settings_of_the_metric_loss(loss):
    for name, allowed in DML_OPTIONS[loss].items():
        assert f"did you mean {name!r}" in refusal(dml_loss=loss, dml_options={f"{name}s": 1})
        beyond = [] if allowed.names else [-INFINITY, *([0] if allowed.above else [allowed.low - 1] if allowed.low > -INFINITY else [])]
        for wrong in (None, NAN, "three", True, [1], *beyond):
            message = refusal(dml_loss=loss, dml_options={name: wrong})
            assert name in message and loss in message or f"unknown dml_options {name} of {loss}" in message
    for wrong in (None, 3, "alpha", [1], [("alpha", 1, 2)], {1: 2}, [[{}, 1]]):
        assert "dml_options" in refusal(dml_loss=loss, dml_options=wrong)


def test_settings_of_the_metric_loss_have_one_form():
    one, other = make(dml_options={"delta": 2, "alpha": 1}), make(dml_options=(("alpha", 1.0), ("delta", 2.0)))
    assert one == other and hash(one) == hash(other) and one.dml_options == (("alpha", 1.0), ("delta", 2.0))
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"batch_size": 63}, "batch_size 63 must be a multiple of batch_images_per_class 4"),
        ({"batch_images_per_class": 1, "language_signal": "grpo"}, "leaves no two images of a class"),
        ({"batch_images_per_class": 1, "dml_loss": "ms"}, "leaves no two images of a class"),
        ({"group_size": 1, "language_signal": "grpo"}, "needs at least 2"),
        ({"lambda_dml": 0, "language_signal": "grpo", "balance_gradients": True}, "set balance_gradients false, or set lambda_dml"),
        ({"lambda_dml": 0, "reading_signal": "contrast", "balance_gradients": True}, "set balance_gradients false"),
        ({"lambda_dml": 0, "steps": 3}, "nothing to train"),
        ({"lambda_dml": 0, "lambda_lm": 0, "lambda_kl": 0, "language_signal": "grpo", "epochs": 3}, "nothing to train"),
        ({"lambda_dml": 0, "anchor": "embedding", "lambda_anchor": 0, "steps": 3}, "nothing to train"),
        ({"lambda_dml": 0, "reading_signal": "contrast", "lambda_reading": 0, "steps": 3}, "nothing to train"),
        ({"embedding_dim": 0}, "embedding_dim 0, no projection, goes with pooler mean"),
        ({"signal_control": "wrong", "language_signal": "grpo"}, "does not go with language_signal grpo"),
        ({"signal_control": "shuffled"}, "does not go with language_signal none"),
        ({"audit_every": 5}, "needs language_signal grpo"),
        ({"prompt": "generic", "language_signal": "oracle"}, "neither an oracle nor an audit"),
        ({"supervisor": "timm:vit", "language_signal": "grpo"}, "is a tower without a language model"),
        ({"revision": "abc"}, "goes with a supervisor from the hub"),
        ({"data_dir": "photos"}, "data_dir is for dataset image_folder"),
        ({"dataset": "image_folder", "vocabulary": "birds"}, "needs data_dir"),
        ({"dataset": "image_folder", "data_dir": "p"}, "needs vocabulary"),
        ({"stps": 3}, "unknown run setting 'stps': did you mean 'steps'"),
        ({3: 3}, "unknown run setting 3"),
    ],
)
def test_settings_that_do_not_go_together(changes, said):
    with pytest.raises(SagaError) as error:
        RunConfig.from_dict(NAMES | changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_record_lacks_nothing():
    for wrong in (None, [], "profile", 3, [("profile", "smoke")]):
        with pytest.raises(SagaError, match="are a dict"):
            RunConfig.from_dict(wrong)
    for name in NAMES:
        with pytest.raises(SagaError, match=f"lack {name};"):
            RunConfig.from_dict({key: value for key, value in NAMES.items() if key != name})
    with pytest.raises(SagaError, match="lack profile, dataset"):
        RunConfig.from_dict({})


def test_a_changed_copy_is_checked_too():
    with pytest.raises(SagaError, match="steps must be"):
        replace(make(), steps=-1)
    assert replace(make(), seed=np.int64(3)).to_dict()["seed"] == 3
    with pytest.raises(SagaError, match="seed must be"):
        replace(make(), seed=-1)


def test_committed_runs_are_valid_and_keep_their_records():
    paths = [*(REPOSITORY / "results").glob("*/runs/*/config.json"), *(REPOSITORY / "benchmarks" / "results").rglob("*.json")]
    contents = [content for path in paths if isinstance(content := json.loads(path.read_text(encoding="utf-8")), dict)]
    records = [content["config"] for content in contents if "profile" in content.get("config", ())]
    assert len(records) > 500
    for record in records:
        assert {name: json.dumps(value) for name, value in RunConfig.from_dict(record).to_dict().items()} == {
            name: json.dumps(value) for name, value in record.items()
        }
