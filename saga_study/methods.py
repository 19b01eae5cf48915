"""Profiles (scales), methods (table rows) and how their settings combine into a run's configuration."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.ranges import RANGES, checked_settings, shown
from saga_lib.config import CHECKPOINT_PREFIX, OWN_IMAGES, YAML, RunConfig

# ---------------------------------------------------------------------------------------------------- profiles

MINIATURE = {
    "supervisor": "miniature",
    "image_size": 48,
    "max_new_tokens": 72,
    "attention_layer": 0,  # of 3; where attention points best at the attribute that is being described
    "balance_gradients": True,  # weights of language signals are in units of the metric loss's gradient, whatever the loss
    "lambda_lm": 1.0,
    "lambda_kl": 0.1,
    "contributing_pairs": 8,
    "hard_pairs": 0.5,  # where different classes are all far apart, agreeing on anything pays
    "replay_pairs": 8,
    "max_waves": 6,
    "steps": 150,
    "lr_tower": 1e-4,  # at 3e-4 most losses forget what the tower knew
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
        "supervisor": "Qwen/Qwen3-VL-8B-Instruct", "image_size": 224, "image_fit": "resize", "embedding_dim": 4096, "epochs": 3,
        "lr_tower": 2e-5, "lr_pooler": 1e-4, "lr_proxies": 1e-2, "pairs_per_wave": 8, "max_waves": 8, "max_micro_batches": 4,
        "replay_rows": 2, "tower_images": 16, "reading_images": 8, "checkpoint_every": 10,  # some nine minutes of SAGA
    },
}  # fmt: skip
# Commits of the hub's models, so that a study does not change with them. `--set revision=main` follows the default branch.
REVISIONS = {
    "Qwen/Qwen3-VL-8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Qwen/Qwen3-VL-4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Qwen/Qwen3-VL-2B-Instruct": "89644892e4d85e24eaac8bacfd4f463576704203",
    "OpenGVLab/InternVL3_5-8B-HF": "741a7d03020411e666c6109218ab71e08151ef86",
}
# They change no number but for rounding, so that they define no method: a user's choice goes before a method's own.
MEMORY_SETTINGS = ("tower_images", "replay_pairs", "replay_rows", "recompute_layers", "reading_images")
# Settings of each DML loss, the same for all methods built on it: the best trials of the search so far, on validation classes with its
# first seed (docs/study_log.md). results/tuning/search.csv is the first study's until the search is complete.
DML_SETTINGS: dict[str, dict[str, dict]] = {
    "miniature": {
        "pf": {"lr_tower": 3e-5, "dml_options": {"delta": 2.0, "alpha": 0.5, "proxies_per_class": 2}},
        "pa": {"lr_tower": 3e-5, "dml_options": {"margin": 1.0}},
        "ms": {"lr_tower": 3e-5, "dml_options": {"alpha": 0.1, "beta": 2.0}},
        "infonce": {"lr_tower": 3e-5, "dml_options": {"temperature": 1.0}},
    },
    # The paper's own, and weights such that, as it says, the gradients lie within an order of magnitude at the start: at weight 1 PF's mean
    # over proxies falls with their number (in miniature 3 to 5 times below GRPO's at 24 classes), its sum per image is a thousand times
    # above, PA's 40 times. Measured in miniature, as is that MS and InfoNCE need none.
    "paper": {"pf": {"lambda_dml": 1e-3, "dml_options": {"reduction": "batch"}}, "pa": {"lambda_dml": 0.05}},
}
# Settings of what is added to a DML loss, by loss, chosen likewise. "anchor": of the row "loss + anchor".
SIGNAL_SETTINGS: dict[str, dict[str, dict[str, dict]]] = {
    "miniature": {
        "anchor": {
            "pf": {"lr_tower": 3e-5, "lambda_anchor": 0.0015}, "pa": {"lr_tower": 3e-5, "lambda_anchor": 2.5},
            **dict.fromkeys(("ms", "infonce"), {"lr_tower": 3e-5, "lambda_anchor": 0.03}),
        },
        "grpo": {
            **dict.fromkeys(("pf", "ms"), {"lr_tower": 1e-4, "lambda_lm": 3.0}),
            "pa": {"lr_tower": 3e-5, "lambda_lm": 1.0, "lambda_kl": 0.01}, "infonce": {"lr_tower": 3e-5, "lambda_lm": 0.3},
        },
        "oracle": dict.fromkeys(("pf", "pa", "ms", "infonce"), {"lr_tower": 1e-4, "lambda_lm": 3.0}),  # searched on PF and InfoNCE
        "contrast": {
            "pf": {"lr_tower": 1e-4, "lambda_reading": 3.0},
            **dict.fromkeys(("pa", "ms", "infonce"), {"lr_tower": 3e-5, "lambda_reading": 3.0}),
        },
        "distilled": {"pf": {"lr_tower": 3e-5, "lambda_anchor": 0.004}},
    },
    "paper": {},
}
# Losses that retrieve better with the anchor: signals are added to the better of both, and compared with it.
ANCHORED: dict[str, tuple[str, ...]] = {"miniature": (), "paper": ()}
BEST_LOSS = {"miniature": "infonce", "paper": "pf"}  # of the metric losses, tuned, alone or with the anchor: what a signal has to beat
for _chosen in (DML_SETTINGS, SIGNAL_SETTINGS, ANCHORED, BEST_LOSS):
    _chosen["smoke"] = _chosen["miniature"]


def baseline_of(profile: str, dml_loss: str = "") -> str:
    """Return the method that signals on a DML loss (default: the best one) are added to and compared with: alone or with the anchor."""
    dml_loss = dml_loss or BEST_LOSS[profile]
    return f"{dml_loss}_anchor" if dml_loss in ANCHORED[profile] else dml_loss


def oracle_of(dml_loss: str) -> str:
    """Return the method that tells a DML loss the true attributes."""
    return "oracle" if dml_loss == "pf" else f"oracle_{dml_loss}"


@dataclass(frozen=True)
class Profile:
    """A scale of the study, by its name in `PROFILES`, with the settings that the user chose in place of its own.

    chosen: from --set on the command line or SETTINGS in a notebook. They also win over those of the metric loss, but not over what
    defines a method: the pre-trained row stays untrained. Raises `SagaError` for an unknown name or a setting out of its range.
    """

    name: str
    chosen: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in PROFILES:
            raise unknown_name("profile", self.name, PROFILES)
        checked_settings(_FIELDS, self.chosen)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, profile: Profile | str) -> Profile:
        """Return the profile of a name, with nothing chosen in place of its settings; a `Profile` is returned as it is."""
        return profile if isinstance(profile, Profile) else cls(profile)

    def settings(self, dml_loss: str, signal: str = "") -> dict[str, object]:
        """Return the settings of a run before those of its method; later ones win: profile, metric loss, anchor, signal, user.

        signal: of `Method`. Where the loss has an anchor, so has every signal on it.
        """
        settings, chosen = PROFILES[self.name] | DML_SETTINGS[self.name].get(dml_loss, {}), SIGNAL_SETTINGS[self.name]
        if signal and dml_loss in ANCHORED[self.name]:
            settings |= {"anchor": "embedding"} | chosen["anchor"].get(dml_loss, {})
        return settings | chosen.get(signal, {}).get(dml_loss, {}) | dict(self.chosen)


# ----------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """A row of the study's tables.

    minutes: of one run on one core by profile, start-up and evaluation included. Only the order of the queue and the estimates depend
    on them; those of profile paper come from `saga_study.planner`.
    """

    label: str
    settings: Mapping[str, object]  # that define it
    minutes: Mapping[str, float]
    steps_factor: Mapping[str, int] = field(default_factory=dict)  # by profile: how many times as long it is trained
    signal: str = ""  # what is added to the metric loss: a key of SIGNAL_SETTINGS
    taught: str = ""  # miniature supervisor taught more than the usual one; "prompts": saga_study.teaching.prompt_tuning
    audited: bool = False  # whether notebook 12 looks at its gradient
    at_paper_scale: bool = True  # False: needs attribute truth, or controls for what differs in the miniature world only
    rates_of: str = ""  # a key of SIGNAL_SETTINGS, whose learning rates it has, to be compared with rows that have that signal


def _bare(label: str, dml_loss: str, steps_factor: Mapping[str, int] | None = None, **settings: object) -> Method:
    """Metric learning alone. It keeps nothing for a Phase C, so its tower takes all images at once."""
    own = {"pooler": "mean", "language_signal": "none", "lambda_kl": 0.0, "tower_images": 0, "dml_loss": dml_loss}
    return Method(label, own | settings, {"smoke": 0.1, "miniature": 0.65}, steps_factor or {})


def _anchor(label: str, dml_loss: str, **settings: object) -> Method:
    """Metric learning that stays near the pre-trained embedding, or near what else the anchor is (`saga_lib.anchor`)."""
    return replace(_bare(label, dml_loss, **{"anchor": "embedding"} | settings), signal="anchor")


def _distilled(label: str, dml_loss: str, **settings: object) -> Method:
    """Metric learning whose similarities are drawn to those of readings or of the truth; needs attributes with values, as the head does."""
    return replace(_anchor(label, dml_loss, **settings), signal="distilled", at_paper_scale=False)


def _saga(label: str, taught: str = "", audited: bool = False, at_paper_scale: bool = True, **settings: object) -> Method:
    """Metric learning with GRPO, and L_KL unless its weight is set to 0."""
    own = {"dml_loss": "pf", "language_signal": "grpo"}
    return Method(label, own | settings, {"smoke": 0.1, "miniature": 3.4}, {}, "grpo", taught, audited, at_paper_scale)


def _oracle(label: str, **settings: object) -> Method:
    """Metric learning with attribute truth in place of rollouts: what a perfect reward would give."""
    own = {"dml_loss": "pf", "pooler": "mean", "language_signal": "oracle", "lambda_kl": 0.0, "contributing_pairs": 32}
    return Method(label, own | settings, {"smoke": 0.1, "miniature": 1.4}, signal="oracle", at_paper_scale=False)


def _reading(label: str, at_paper_scale: bool = True, **settings: object) -> Method:
    """Metric learning with a loss on what the frozen model reads from each image (`saga_lib.reading`), weighed by its gradient."""
    own = {
        "dml_loss": "pf", "pooler": "mean", "language_signal": "none", "lambda_kl": 0.0, "balance_gradients": True,
        "reading_signal": "contrast",
    }  # fmt: skip
    return Method(label, own | settings, {"smoke": 0.1, "miniature": 1.2}, signal="contrast", at_paper_scale=at_paper_scale)


# How many times PF's epochs last as long as SAGA's: measured on the miniature, at the paper's scale by the planner (a step of 49 to
# 60 s that uses up three batches, against 0.42 s for each, on an H200: 39 to 48 times over the four datasets).
WALL_CLOCK = {"smoke": 7, "miniature": 7, "paper": 44}
METHODS: dict[str, Method] = {
    "pre-trained": Method(
        "pre-trained", {"pooler": "mean", "embedding_dim": 0, "steps": 0, "epochs": 0, "lambda_kl": 0.0, "tower_images": 0},
        {"smoke": 0.1, "miniature": 0.2},
    ),
    "pa": _bare("PA", "pa"),
    "ms": _bare("MS", "ms"),
    "infonce": _bare("InfoNCE", "infonce"),
    "pf": _bare("PF", "pf"),
    "pf_long": _bare("PF, SAGA's wall-clock", "pf", WALL_CLOCK),
    # Metric losses alone are best at a lower rate than with SAGA. What SAGA's parts are compared with has SAGA's.
    "pf_saga_rate": replace(_bare("PF, SAGA's rate", "pf"), rates_of="grpo", at_paper_scale=False),
    "pf_attention": replace(_bare("PF + attention pooler", "pf", pooler="attention"), rates_of="grpo"),
    "pf_kl": _saga("PF + KL", lambda_lm=0.0),
    "pf_grpo": _saga("PF + GRPO", lambda_kl=0.0),
    "pf_grpo_taught": _saga("PF + GRPO, supervisor taught prompts", taught="prompts", at_paper_scale=False, lambda_kl=0.0),
    # The generic prompt names no attributes, hence has no L_KL.
    "pf_grpo_generic": _saga("PF + GRPO (generic prompt)", taught="prompts", lambda_kl=0.0, prompt="generic"),
    # L_GRPO reaches neither pooler nor projection, so there are none to be left at their random start.
    "grpo_alone": _saga(  # without a metric loss's gradient to weigh it by; AdamW's steps do not depend on its scale
        "GRPO alone, no metric loss", lambda_dml=0.0, lambda_lm=1.0, lambda_kl=0.0, balance_gradients=False, pooler="mean", embedding_dim=0,
    ),
    "saga_pf": _saga("SAGA (PF)", audited=True),
    "saga_pa": _saga("SAGA (PA)", dml_loss="pa"),
    "saga_ms": _saga("SAGA (MS)", dml_loss="ms"),
    "saga_infonce": _saga("SAGA (InfoNCE)", dml_loss="infonce"),
    "saga_shuffled": _saga("SAGA, shuffled advantages", signal_control="shuffled"),
    "saga_shuffled_in_group": _saga("SAGA, advantages shuffled in groups", signal_control="shuffled_in_group"),
    "oracle": _oracle("PF + oracle"),
    "oracle_wrong": _oracle("PF + oracle, wrong attributes", signal_control="wrong"),
    "oracle_pa": _oracle("PA + oracle", dml_loss="pa"),
    "oracle_ms": _oracle("MS + oracle", dml_loss="ms"),
    "oracle_infonce": _oracle("InfoNCE + oracle", dml_loss="infonce"),
    # Not in the paper: a control without a language model, and signals without rollouts, each with its controls.
    "pa_anchor": _anchor("PA + anchor", "pa"),
    "ms_anchor": _anchor("MS + anchor", "ms"),
    "infonce_anchor": _anchor("InfoNCE + anchor", "infonce"),
    "pf_anchor": _anchor("PF + anchor", "pf"),
    "contrast_pa": _reading("reading contrast (PA)", dml_loss="pa"),
    "contrast_ms": _reading("reading contrast (MS)", dml_loss="ms"),
    "contrast_infonce": _reading("reading contrast (InfoNCE)", dml_loss="infonce"),
    "contrast_pf": _reading("reading contrast (PF)"),
    "contrast_permuted": _reading("reading contrast, permuted model", reading_control="permuted"),
    "contrast_labels": _reading("reading contrast, shuffled labels", reading_control="labels"),
    "contrast_head": _reading("reading contrast, trained head", at_paper_scale=False, reading_control="head"),  # needs values
    "contrast_own": _reading("reading contrast, own descriptions", reading_answer="own"),
    "contrast_grpo": _saga("SAGA + reading contrast", at_paper_scale=False, reading_signal="contrast", lambda_reading=3.0),
    "reading_verdict": _reading("expected verdict", reading_signal="verdict"),
    "reading_agreement": _reading("agreement in a class", reading_signal="agreement"),
    "reading_consensus": _reading("consensus of a class", reading_signal="consensus"),
    "reading_views": _reading("agreement of two views", reading_signal="views"),
    "distilled_readings": _distilled("PF + readings distilled", "pf", anchor="reading"),
    "distilled_truth": _distilled("PF + truth distilled", "pf", anchor="truth"),
    "grpo_without_sigma": _saga("SAGA, no division by σ", advantage="dr_grpo"),
    "grpo_rloo": _saga("SAGA, leave-one-out advantages", advantage="rloo"),
    "grpo_answer_mean": _saga("SAGA, mean over answers", token_mean="answer"),
    "grpo_right": _saga("SAGA, right answers only", advantage="right"),
    "grpo_wrong": _saga("SAGA, wrong answers only", advantage="wrong"),
}  # fmt: skip
METHOD_LABELS = {name: method.label for name, method in METHODS.items()}
# Miniature supervisors whose language model was taught for so many steps only (saga_study.teaching.half_taught). Pairs of images are
# compared from step 875 on.
HALF_TAUGHT_STEPS = (880, 900, 925, 1000, 1500, 2500)
HALF_TAUGHT_MINUTES = 16.0  # of one core, to make all of them where they are missing


# -------------------------------------------------------------------------------------------- configurations


def make_config(
    profile: Profile | str, dataset: str, method: str, seed: int, taught: str | None = None, **overrides: object
) -> RunConfig:
    """Return the configuration of a run; later settings win: profile, metric loss, user's choice (`Profile`), method, overrides.

    profile: a name stands for the profile with nothing chosen in place of its own settings. taught: in place of the method's; both apply
    to miniature supervisors only, as real models need not be taught. The pre-trained row does not depend on the seed: it always has
    seed 0, so that it is computed once. Raises `SagaError` for unknown names and for values that are not allowed.
    """
    profile = Profile.of(profile)
    if not isinstance(method, str) or method not in METHODS:
        raise unknown_name("method", method, METHODS)
    row, overrides = METHODS[method], checked_settings(_FIELDS, overrides)
    dataset = checked_settings(_FIELDS, {"dataset": dataset})["dataset"]
    dml_loss = (row.settings | overrides).get("dml_loss", "pf")
    settings = profile.settings(dml_loss, row.signal) | row.settings
    if row.rates_of:
        settings |= {name: value for name, value in profile.settings(dml_loss, row.rates_of).items() if name.startswith("lr_")}
    settings |= {name: value for name, value in profile.chosen.items() if name in MEMORY_SETTINGS}
    factor = row.steps_factor.get(profile.name, 1)
    settings |= {name: factor * settings[name] for name in ("steps", "epochs") if name in settings}
    is_generic = (settings | overrides).get("prompt") == "generic"
    if not row.audited or is_generic or dataset == OWN_IMAGES:
        settings["audit_every"] = 0  # the profile's is for rollouts about attributes whose truth is known
    settings |= overrides
    taught = row.taught if taught is None else taught
    if taught and settings["supervisor"] == "miniature":
        from saga_study.miniature.world import benchmark_spec

        settings["supervisor"] = f"{CHECKPOINT_PREFIX}{benchmark_spec(dataset).domain}_{taught}"
    if not settings.get("revision") and settings["supervisor"] in REVISIONS:
        settings["revision"] = REVISIONS[settings["supervisor"]]
    for name in ("data_dir", "vocabulary"):  # as absolute paths: worker processes start elsewhere
        value = str(settings.get(name, ""))
        if value and (name == "data_dir" or value.endswith(YAML)):
            settings[name] = os.path.abspath(os.path.expanduser(value))
    names = {"profile": profile.name, "dataset": dataset, "method": method, "seed": 0 if method == "pre-trained" else seed}
    return RunConfig.from_dict(names | settings)


def describe(config: RunConfig) -> str:
    """Return a run's name for people: dataset (of your own images: their folder), method, seed, and settings unlike its profile's."""
    name = config.name
    if config.dataset == OWN_IMAGES or config.method not in METHODS:
        return name
    usual = make_config(config.profile, config.dataset, config.method, config.seed).to_dict()
    changed = {key: value for key, value in config.to_dict().items() if key != "audit_every" and value != usual.get(key)}
    if config.revision == REVISIONS.get(config.supervisor):
        changed.pop("revision", None)  # goes with the supervisor
    return ", ".join([name, *(f"{key} {value}" for key, value in changed.items())])


# ------------------------------------------------------------------------------- settings that the user chooses

_FIELDS = {field.name: field.type for field in fields(RunConfig)}
_NOT_SETTABLE = {"profile": "the command's first word", "dataset": "--datasets", "method": "--methods", "seed": "--seeds"}
_TYPES = {"str": str, "int": int, "float": float, "bool": lambda text: {"true": True, "false": False}[text.lower()]}


def parse_settings(texts: Iterable[str], given_by: str = "--set") -> dict[str, object]:
    """Read texts `name=value` as settings of a run; raises `SagaError` for unknown names and for values of another type or out of range.

    `given_by` is what the user calls them, for the messages.
    """
    types = {name: kind for name, kind in _FIELDS.items() if kind in _TYPES}
    read: dict[str, object] = {}
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise SagaError(f'{given_by} takes a list of texts such as ["steps=200"], not {shown(texts)}')
    for text in texts:
        name, equals, value = text.partition("=")
        if name in _NOT_SETTABLE:
            raise SagaError(f"{given_by} {name} is not for this: use {_NOT_SETTABLE[name]}")
        if name not in types:
            raise unknown_name("run setting", name, [known for known in types if known not in _NOT_SETTABLE])
        try:
            if not equals:
                raise ValueError
            read[name] = _TYPES[types[name]](value)
        except (ValueError, KeyError):
            raise SagaError(f"{given_by} takes name=value, for {name} of type {types[name]}, got {text!r}") from None
    try:
        read = checked_settings(types, read)
    except SagaError as error:
        raise SagaError(f"{given_by} {error}") from None
    if "supervisor" in read and os.path.isdir(folder := os.path.expanduser(str(read["supervisor"]))):
        read["supervisor"] = os.path.abspath(folder)  # worker processes start elsewhere
    return read


def field_help() -> dict[str, dict[str, tuple[str, object, str]]]:
    """Return {phase: {field: (type, default, comment)}} of `RunConfig`, as its source has them; the default is MISSING where there is none.

    >>> field_help()["replay: Phase C"]["replay_pairs"]
    ('int', 1, 'pairs per replay micro-batch: memory against speed')
    """
    declared, phases, phase = {field.name: field for field in fields(RunConfig)}, {}, {}
    for line in inspect.getsource(RunConfig).splitlines():
        if heading := re.fullmatch(r" {4}# (.+)", line):
            phase = phases.setdefault(heading[1], {})
        elif entry := re.fullmatch(r" {4}(\w+): .+?  # (.+)", line):
            phase[entry[1]] = (declared[entry[1]].type, declared[entry[1]].default, entry[2])
    return phases


def settings_help(profile: Profile | str) -> str:
    """Return every setting that --set takes, by phase of training: its type, the profile's value, what it means and its range."""
    profile = Profile.of(profile)
    own = PROFILES[profile.name] | dict(profile.chosen)
    lines = [f"settings of a run as profile {profile} has them, NAME=VALUE (type); a metric loss or a method may have its own"]
    for phase, entries in field_help().items():
        settable = {name: entry for name, entry in entries.items() if name not in _NOT_SETTABLE and entry[0] in _TYPES}
        lines += ["", phase] if settable else []
        for name, (kind, default, text) in settable.items():
            value = own.get(name, "" if default is MISSING else default)
            start = f"  {name}={str(value).lower() if kind == 'bool' else value} ({kind})"
            limits = str(RANGES[name]) if name in RANGES and kind != "str" else ""  # the text itself names what to choose from
            text = f"{text} [{limits}]" if limits else text
            lines += textwrap.wrap(text, 110, initial_indent=f"{start:<37} ", subsequent_indent=" " * 38)
    return "\n".join(lines)
