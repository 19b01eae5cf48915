"""What each setting of a run may be, in one table: a new setting gets one line in `RANGES`.

`RunConfig` checks all of its settings by it, notebooks their parameters, and `--set help` prints it.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.images import FITS

INFINITY = float("inf")
KINDS = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "text"}


@dataclass(frozen=True)
class Range:
    """The values of a setting: some names, any text but the empty one, or numbers from one bound to another."""

    type: str  # str | int | float
    low: float = -INFINITY
    high: float = INFINITY
    above: bool = False  # the lower bound itself is left out
    below: bool = False  # the upper bound itself is left out
    names: tuple[str, ...] = ()

    def __contains__(self, value: object) -> bool:
        """Return whether a value of the right type, if a number then finite, is allowed."""
        if self.type == "str":
            return value in self.names if self.names else bool(value)
        return (self.low < value if self.above else self.low <= value) and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """Return the range in words, such as "at least 1" or "above 0, at most 1"; "" if any number is allowed."""
        if self.type == "str":
            return " | ".join(self.names) or "not empty"
        low = [f"{'above' if self.above else 'at least'} {self.low:.10g}"] if self.low > -INFINITY else []
        high = [f"{'below' if self.below else 'at most'} {self.high:.10g}"] if self.high < INFINITY else []
        return ", ".join(low + high)


def whole(low: int, high: float = INFINITY) -> Range:
    """Whole numbers from `low` to `high`, both included."""
    return Range("int", low, high)


def number(low: float = -INFINITY, high: float = INFINITY) -> Range:
    """Finite numbers from `low` to `high`, both included."""
    return Range("float", low, high)


def above(low: float, high: float = INFINITY, below: bool = False) -> Range:
    """Finite numbers above `low` and up to `high`, or with `below` below it."""
    return Range("float", low, high, above=True, below=below)


def choice(*names: str) -> Range:
    """One of some names."""
    return Range("str", names=names)


SEED = whole(0, 2**32 - 1)  # what numpy's generators take
TEXT = Range("str")  # any but the empty one
# The settings of each metric loss; their defaults are saga_lib.losses.DML_HYPERPARAMETERS.
DML_OPTIONS: dict[str, dict[str, Range]] = {
    "pf": {"proxies_per_class": whole(1), "alpha": number(0), "delta": above(0), "reduction": choice("sum", "mean", "batch")},
    "pa": {"margin": number(), "alpha": above(0)},
    "ms": {"alpha": above(0), "beta": above(0), "base": number(), "epsilon": number(0)},
    "infonce": {"temperature": above(0)},
}
# Of `RunConfig`. What is absent, here or there, is checked for its type alone.
RANGES: dict[str, Range] = {
    # the run
    "profile": TEXT, "dataset": TEXT, "method": TEXT, "seed": SEED,
    # models
    "supervisor": TEXT, "image_size": whole(1), "image_fit": choice(*FITS), "pooler": choice("attention", "mean"),
    "embedding_dim": whole(0), "lora_rank": whole(0), "lora_alpha": above(0),
    # losses
    "dml_loss": choice(*DML_OPTIONS), "language_signal": choice("none", "grpo", "oracle"),
    "signal_control": choice("none", "shuffled", "shuffled_in_group", "wrong"),
    "lambda_dml": number(0), "lambda_lm": number(0), "lambda_kl": number(0),
    "advantage": choice("grpo", "dr_grpo", "rloo", "right", "wrong"), "token_mean": choice("buffer", "answer"),
    "anchor": choice("none", "embedding", "reading", "truth"), "lambda_anchor": number(0), "anchor_temperature": above(0),
    # readings
    "reading_signal": choice("none", "contrast", "verdict", "agreement", "consensus", "views"),
    "reading_control": choice("none", "permuted", "labels", "head"), "lambda_reading": number(0), "reading_temperature": above(0),
    "reading_answer": choice("forced", "own"), "reading_images": whole(0),
    # rollouts
    "prompt": choice("structured", "generic"), "group_size": whole(1), "pairs_per_wave": whole(1), "max_waves": whole(1),
    "contributing_pairs": whole(1), "max_micro_batches": whole(1), "hard_pairs": number(0, 1), "temperature": number(0),
    "top_p": above(0, 1), "max_new_tokens": whole(1),
    # replay
    "attention_layer": whole(0), "replay_pairs": whole(1), "replay_rows": whole(0), "tower_images": whole(0),
    # data
    "test_fraction": above(0, 1, below=True), "split_seed": SEED, "evaluate_on": choice("test", "validation"), "images_per_class": whole(0),
    # optimisation
    "steps": whole(0), "epochs": whole(0), "batch_size": whole(1), "batch_images_per_class": whole(1),
    "lr_tower": number(0), "lr_pooler": number(0), "lr_proxies": number(0), "weight_decay": number(0),
    "warmup_fraction": number(0, 1), "max_grad_norm": above(0),
    # bookkeeping
    "checkpoint_every": whole(1), "audit_every": whole(0),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------
# Checks


def checked(name: str, value: object, kind: str, allowed: Range | None = None) -> object:
    """Return the value of a setting as a plain str, int, float or bool; `kind` names which of them.

    Numpy's numbers become Python's, whole numbers floats where `kind` is "float", and paths text. Raises `SagaError` for a value of
    another type, which is never guessed at, for one that is not finite, and for one outside `allowed`.
    """
    plain = _plain(value, kind)
    if kind == "str" and plain is not None and allowed is not None and allowed.names and plain not in allowed:
        raise unknown_name(name, plain, allowed.names)
    if plain is None or (allowed is not None and plain not in allowed):
        limits = f" ({allowed})" if allowed is not None and str(allowed) else ""
        raise SagaError(f"{name} must be {KINDS[kind]}{limits}, not {shown(value)}{_advice(value, kind)}")
    return plain


def _plain(value: object, kind: str) -> str | int | float | bool | None:
    """Return a value as a plain one of its kind, or None if it is of another kind or not finite."""
    if kind == "bool":
        return bool(value) if isinstance(value, bool | np.bool_) else None
    if kind == "str":
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        return str(text) if isinstance(text, str) and "\0" not in text else None  # no file can be named with a zero byte
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral if kind == "int" else numbers.Real):
        return None
    if kind == "int":
        return int(value)
    try:
        return plain if math.isfinite(plain := float(value)) else None
    except OverflowError:  # a whole number beyond what floats hold
        return None


def _advice(value: object, kind: str) -> str:
    """Return what to write in place of a value that is of the wrong type only, after a semicolon."""
    if kind == "int" and isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        return f"; write {int(value)}"
    if kind == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return f'; write it in quotes, "{value}"'
    if isinstance(value, str) and kind != "str":
        return "; write it without quotes"
    return ""


def shown(value: object) -> str:
    """Return a value as it would be written in Python, in one line of at most 80 characters, for messages."""
    text = " ".join(repr(value.item() if isinstance(value, np.generic) else value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def checked_settings(types: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings of a run as plain values, checked by `RANGES`; those of a type that is not plain are returned as they are.

    types: {field of `RunConfig`: its type}. Raises `SagaError`, which names the setting, its value and what is allowed.
    """
    return {
        name: checked(name, value, types[name], RANGES.get(name)) if types.get(name) in KINDS else value for name, value in settings.items()
    }


def checked_dml_options(dml_loss: str, options: object) -> tuple[tuple[str, object], ...]:
    """Return the settings of a metric loss, a dict or pairs, as pairs sorted by name; raises `SagaError` as `checked_settings` does."""
    known = DML_OPTIONS[dml_loss]
    try:
        pairs = dict(options.items() if isinstance(options, Mapping) else options)
    except (TypeError, ValueError):
        raise SagaError(f"dml_options must be a dict such as {{{next(iter(known))!r}: …}}, not {shown(options)}") from None
    for name in pairs:
        if name not in known:
            raise unknown_name(f"setting of dml_loss {dml_loss}, in dml_options,", name, known)
    return tuple((name, checked(f"dml_options {name} of {dml_loss}", pairs[name], known[name].type, known[name])) for name in sorted(pairs))


def check_names(content: object, known: Iterable[str], required: Iterable[str]) -> None:
    """Raise `SagaError` unless the settings of a run are a dict of known names with all that are required."""
    if not isinstance(content, Mapping):
        raise SagaError(f"the settings of a run are a dict of names and values, not {shown(content)}")
    known = list(known)
    for name in content:
        if name not in known:
            raise unknown_name("run setting", name, known)
    if absent := [name for name in required if name not in content]:
        raise SagaError(f"the settings of a run lack {', '.join(absent)}; add what is missing")
