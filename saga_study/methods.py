"""Profiles (scales), methods (table rows) and how their settings combine into a run's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.config import OWN_IMAGES, SHIPPED, YAML, RunConfig

MINIATURE = {
    "supervisor": "miniature",
    "image_size": 48,
    "max_new_tokens": 72,
    "attention_layer": 0,  # of 3; where attention points best at the attribute that is being described
    "lambda_lm": 0.1,
    "lambda_kl": 0.1,
    "contributing_pairs": 16,
    "hard_pairs": 0.5,  # where different classes are all far apart, agreeing on anything pays
    "replay_pairs": 8,
    "max_waves": 2,
    "steps": 150,
    "lr_tower": 3e-4,
    "lr_pooler": 1e-4,  # at 1e-3 the new projection cost PF four points on noisier benchmarks
    "lr_proxies": 3e-2,
    "audit_every": 30,
}
PROFILES: dict[str, dict] = {
    "smoke": MINIATURE
    | {
        "images_per_class": 4, "steps": 3, "batch_size": 16, "pairs_per_wave": 8, "max_waves": 1,
        "contributing_pairs": 2, "group_size": 4, "checkpoint_every": 2, "audit_every": 2,
    },
    "miniature": MINIATURE,
    "paper": {
        "supervisor": "Qwen/Qwen3-VL-8B-Instruct", "image_size": 224, "embedding_dim": 4096, "epochs": 3,
        "lr_tower": 2e-5, "lr_pooler": 1e-4, "lr_proxies": 1e-2, "max_micro_batches": 4,
        "replay_rows": 2, "tower_images": 16, "checkpoint_every": 10,  # some six minutes of SAGA
    },
}  # fmt: skip
# Commits of the hub's models, so that a study does not change with them. `--set revision=main` follows the default branch.
REVISIONS = {
    "Qwen/Qwen3-VL-8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Qwen/Qwen3-VL-4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Qwen/Qwen3-VL-2B-Instruct": "89644892e4d85e24eaac8bacfd4f463576704203",
    "OpenGVLab/InternVL3_5-8B-HF": "741a7d03020411e666c6109218ab71e08151ef86",
}
# Settings of each DML loss, the same for all methods built on it. Chosen on validation classes: results/tuning/search.csv.
DML_SETTINGS: dict[str, dict[str, dict]] = {
    "miniature": {
        "pf": {"lr_tower": 3e-4, "dml_options": {"delta": 1.0, "proxies_per_class": 2}},
        "pa": {"lr_tower": 3e-4, "lr_pooler": 1e-3},
        "ms": {"lr_tower": 1e-4, "lr_pooler": 1e-3},
        "infonce": {"lr_tower": 3e-4},
    },
    "paper": {},  # the paper's own
}
DML_SETTINGS["smoke"] = DML_SETTINGS["miniature"]
# How many times PF's steps last as long as SAGA's: measured on the miniature, at the paper's scale by the planner (a step of 29 to
# 38 s against 0.37 s, on an H200: 80 to 104 times over the four datasets).
WALL_CLOCK = {"smoke": 7, "miniature": 7, "paper": 90}
_BASELINE = {"pooler": "mean", "language_signal": "none", "lambda_kl": 0.0, "tower_images": 0}  # which hold nothing between phases
_SAGA = {"dml_loss": "pf", "language_signal": "grpo"}
_ORACLE = {"dml_loss": "pf", "language_signal": "oracle", "lambda_kl": 0.0, "contributing_pairs": 32}
METHODS: dict[str, dict] = {
    "pre-trained": {"pooler": "mean", "embedding_dim": 0, "steps": 0, "epochs": 0, "lambda_kl": 0.0, "tower_images": 0},
    "pa": _BASELINE | {"dml_loss": "pa"},
    "ms": _BASELINE | {"dml_loss": "ms"},
    "infonce": _BASELINE | {"dml_loss": "infonce"},
    "pf": _BASELINE | {"dml_loss": "pf"},
    "pf_long": _BASELINE | {"dml_loss": "pf", "steps_factor": WALL_CLOCK},
    "pf_attention": _BASELINE | {"dml_loss": "pf", "pooler": "attention"},
    "pf_kl": _SAGA | {"lambda_lm": 0.0},
    "pf_grpo": _SAGA | {"lambda_kl": 0.0},
    "pf_grpo_taught": _SAGA | {"lambda_kl": 0.0, "taught": "prompts"},
    "pf_grpo_generic": _SAGA | {"lambda_kl": 0.0, "taught": "prompts", "prompt": "generic"},  # names no attributes, hence no L_KL
    # L_GRPO reaches neither pooler nor projection, so there are none to be left at their random start.
    "grpo_alone": _SAGA | {"lambda_dml": 0.0, "lambda_kl": 0.0, "pooler": "mean", "embedding_dim": 0},
    "saga_pf": _SAGA,
    "saga_pa": _SAGA | {"dml_loss": "pa"},
    "saga_ms": _SAGA | {"dml_loss": "ms"},
    "saga_infonce": _SAGA | {"dml_loss": "infonce"},
    "saga_shuffled": _SAGA | {"signal_control": "shuffled"},
    "oracle": _ORACLE,
    "oracle_wrong": _ORACLE | {"signal_control": "wrong"},
}
AUDITED = ("saga_pf",)  # methods whose gradient notebook 12 looks at
METHOD_LABELS = {
    "pre-trained": "pre-trained", "pa": "PA", "ms": "MS", "infonce": "InfoNCE", "pf": "PF", "pf_long": "PF, SAGA's wall-clock",
    "pf_attention": "PF + attention pooler", "pf_kl": "PF + KL", "pf_grpo": "PF + GRPO",
    "pf_grpo_taught": "PF + GRPO, supervisor taught prompts", "pf_grpo_generic": "PF + GRPO (generic prompt)",
    "grpo_alone": "GRPO alone, no metric loss", "saga_pf": "SAGA (PF)",
    "saga_pa": "SAGA (PA)", "saga_ms": "SAGA (MS)", "saga_infonce": "SAGA (InfoNCE)",
    "saga_shuffled": "SAGA, shuffled advantages", "oracle": "PF + oracle", "oracle_wrong": "PF + oracle, wrong attributes",
}  # fmt: skip
_chosen: dict[str, dict[str, object]] = {}  # by profile: what --set put in place of the profile's own, in this process
_NOT_SETTABLE = {"profile": "the command's first word", "dataset": "--datasets", "method": "--methods", "seed": "--seeds"}


def parse_settings(texts: Iterable[str], given_by: str = "--set") -> dict[str, object]:
    """Read texts `name=value` as settings of a run; raises `SagaError` for unknown names and values of another type.

    `given_by` is what the user calls them, for the messages.
    """
    kinds = {field.name: field.type for field in fields(RunConfig) if field.type in ("str", "int", "float", "bool")}
    read: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name in _NOT_SETTABLE:
            raise SagaError(f"{given_by} {name} is not for this: use {_NOT_SETTABLE[name]}")
        if name not in kinds:
            raise unknown_name("run setting", name, [known for known in kinds if known not in _NOT_SETTABLE])
        kind = kinds[name]
        try:
            if not equals:
                raise ValueError
            truths = {"true": True, "false": False}
            read[name] = truths[value.lower()] if kind == "bool" else {"int": int, "float": float, "str": str}[kind](value)
        except (ValueError, KeyError):
            raise SagaError(f"{given_by} takes name=value, for {name} of type {kind}, got {text!r}") from None
    if "supervisor" in read and os.path.isdir(folder := os.path.expanduser(str(read["supervisor"]))):
        read["supervisor"] = os.path.abspath(folder)  # worker processes start elsewhere
    return read


def use_settings(profile: str, settings: Mapping[str, object]) -> None:
    """Let settings take the place of a profile's own in every `make_config` of this process.

    They beat those of the DML loss too, but not what defines a method: the pre-trained row stays untrained.
    """
    _chosen[profile] = dict(settings)


def is_set(profile: str, name: str) -> bool:
    """Return whether `use_settings` put something in place of a profile's own setting."""
    return name in _chosen.get(profile, {})


def make_config(profile: str, dataset: str, method: str, seed: int, **overrides: object) -> RunConfig:
    """Return the configuration of a run; later settings win: profile, DML loss, `use_settings`, method, overrides.

    Two settings of a method are resolved here: `steps_factor` (by profile) multiplies its length; `taught` names a miniature supervisor
    that was taught more than the usual one ("prompts": saga_study.teaching.prompt_tuning), where the profile has a miniature one.

    A method that does not depend on the seed (pre-trained) is always given seed 0, so that it is computed once.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    chosen = METHODS[method] | overrides
    settings = PROFILES[profile] | DML_SETTINGS[profile].get(chosen.get("dml_loss", "pf"), {})
    settings = settings | _chosen.get(profile, {}) | METHODS[method]
    factor, taught = settings.pop("steps_factor", {}).get(profile, 1), settings.pop("taught", "")
    taught = overrides.pop("taught", taught)
    settings |= {name: factor * settings[name] for name in ("steps", "epochs") if name in settings}
    chosen = settings | overrides
    if method not in AUDITED or chosen.get("prompt") == "generic" or dataset == OWN_IMAGES:
        settings["audit_every"] = 0  # the profile's is for rollouts about attributes whose truth is known
    settings |= overrides
    if taught and settings["supervisor"] == "miniature":  # real models need not be taught
        from saga_lib.miniature.world import benchmark_spec

        settings["supervisor"] = f"{SHIPPED}{benchmark_spec(dataset).domain}_{taught}"
    if not settings.get("revision") and settings["supervisor"] in REVISIONS:
        settings["revision"] = REVISIONS[settings["supervisor"]]
    for name in ("data_dir", "vocabulary"):  # as absolute paths: worker processes start elsewhere
        value = str(settings.get(name, ""))
        if value and (name == "data_dir" or value.endswith(YAML)):
            settings[name] = os.path.abspath(os.path.expanduser(value))
    if method == "pre-trained":
        seed = 0
    content = {"profile": profile, "dataset": dataset, "method": method, "seed": seed} | settings
    return RunConfig.from_dict(content)


def describe(config: RunConfig) -> str:
    """Return the short name of a run that people read: dataset (of your own images: their folder), method, seed, and unusual settings."""
    name = config.name
    if config.dataset == OWN_IMAGES or config.method not in METHODS:
        return name
    usual = make_config(config.profile, config.dataset, config.method, config.seed).to_dict()
    changed = {key: value for key, value in config.to_dict().items() if key != "audit_every" and value != usual.get(key)}
    if config.revision == REVISIONS.get(config.supervisor):
        changed.pop("revision", None)  # goes with the supervisor
    return ", ".join([name, *(f"{key} {value}" for key, value in changed.items())])

# Sensitivity: SAGA with one setting changed at a time, the others as the profile has them. Any field of `RunConfig` may stand here;
# supervisors share the profile's tower, so that the reward alone differs. Trials of the search that coincide are the same runs.
HALF_TAUGHT_STEPS = (880, 900, 925, 1000, 1500, 2500)  # saga_study.teaching.half_taught; pairs are compared from step 875 on


HALF_TAUGHT_MINUTES = 16.0  # of one core, to make all of them where they lack

