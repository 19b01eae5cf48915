"""One run = dataset × method × seed × configuration: the unit of compute of the whole study."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from saga_lib.errors import SagaError, unknown_name
from saga_lib.paths import REPOSITORY

TIMM = "timm:"  # prefix of towers that come from timm, without a language model
OWN_IMAGES = "image_folder"  # the dataset that data_dir and vocabulary describe
SHIPPED = "saga_lib/miniature/checkpoints/"  # supervisors below it are recorded relative to the repository
YAML = (".yaml", ".yml")  # ends of a vocabulary that is a file, not a name
SIGNAL_CONTROLS = {"grpo": "shuffled", "oracle": "wrong"}  # what replaces a language signal to see whether it matters


# Settings that came after runs of a study were recorded: at these values, which are how those ran, they stay out of the record.
_LATER = {"recompute_layers": False, "tower_images": 0}


@dataclass(frozen=True)
class RunConfig:
    """What determines a run's numbers. Paper values are noted where the profile departs from them."""

    profile: str  # smoke | miniature | paper
    dataset: str
    method: str  # a key of METHODS
    seed: int

    # models
    supervisor: str  # local folder, hub id, "miniature" for the shipped checkpoint, or "timm:<model>" for a tower alone
    image_size: int  # pixels; paper 224
    pooler: str = "attention"  # c_φ: attention | mean
    embedding_dim: int = 128  # D_e; paper 4096; 0 = no projection (pre-trained row)
    train_mergers: bool = True  # θ includes the mergers after the vision blocks
    revision: str = ""  # branch, tag or commit of a hub supervisor; "" = REVISIONS, else its default branch, wherever that points today
    lora_rank: int = 0  # of low-rank adapters on the tower's blocks, which are then frozen; 0 = full fine-tuning, as in the paper
    lora_alpha: float = 16.0  # adapters count lora_alpha / lora_rank times

    # losses (Eq. 8)
    dml_loss: str = "pf"  # pf | pa | ms | infonce
    dml_options: tuple[tuple[str, float | int | str], ...] = ()
    language_signal: str = "none"  # none | grpo | oracle (attribute truth through ψ in place of GRPO)
    signal_control: str = "none"  # shuffled (advantages permuted over the step's rollouts) | wrong (oracle told another class's truth)
    deepstack_gradient: bool = True  # whether the language signal also reaches the tower through DeepStack
    balance_gradients: bool = False  # scale the language gradient at the tower to λ_lm times the DML gradient's norm, each step
    lambda_dml: float = 1.0
    lambda_lm: float = 1.0
    lambda_kl: float = 1.0

    # rollouts (Sec. 3, App. C)
    group_size: int = 8  # G
    contributing_pairs: int = 8  # K
    pairs_per_wave: int = 16
    hard_pairs: float = 0.0  # fraction of different-class pairs taken nearest first by the current embedding; paper 0
    max_waves: int = 4  # bound of dynamic sampling
    max_micro_batches: int = 1  # images for Phase B beyond the first micro-batch (Alg. 1); 1 keeps images seen equal
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 1024
    prompt: str = "structured"  # structured (App. E) | generic (no role, no attributes, hence no L_KL)
    attention_layer: int = 26  # ℓ, 0-based
    replay_pairs: int = 1  # pairs per replay micro-batch: memory against speed
    replay_rows: int = 0  # rollouts of a pair whose activations are alive at once in replay, 0 = all G: memory against speed

    recompute_layers: bool = False  # of ψ in replay: only their inputs are kept, backward computes them again; no number changes
    tower_images: int = 0  # images at a time whose activations the tower keeps, computed again for its backward; 0: all, from A to C

    # data and optimisation
    data_dir: str = ""  # folder or CSV of your own images, for dataset image_folder
    vocabulary: str = ""  # name or YAML file in place of the dataset's own; image_folder has none of its own
    test_fraction: float = 0.5  # of the classes of an image_folder, drawn by split_seed; a CSV's split column goes first
    split_seed: int = 0
    evaluate_on: str = "test"  # test | validation (train on half of the train classes, evaluate on the other half)
    images_per_class: int = 0  # of the benchmark, 0 = all
    steps: int = 0  # optimizer steps; 0 with epochs = 0 means no training
    epochs: int = 0  # used when steps is 0; paper 3
    batch_size: int = 64
    batch_images_per_class: int = 4  # m of the class-balanced batches; not stated in the paper
    lr_tower: float = 2e-5
    lr_pooler: float = 1e-4
    lr_proxies: float = 1e-2
    weight_decay: float = 1e-4  # not stated in the paper
    warmup_fraction: float = 0.05
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50  # steps
    audit_every: int = 0  # steps between gradient audits (saga_lib.audit), 0 = never; needs attribute truth; changes no number

    def __post_init__(self) -> None:
        if self.supervisor.startswith(SHIPPED):
            object.__setattr__(self, "supervisor", str(REPOSITORY / self.supervisor))
        if self.vocabulary.endswith(YAML) and not os.path.isabs(self.vocabulary):
            object.__setattr__(self, "vocabulary", str(REPOSITORY / self.vocabulary))
        if self.data_dir and not os.path.isabs(self.data_dir):
            object.__setattr__(self, "data_dir", str(REPOSITORY / self.data_dir))
        if self.dataset == OWN_IMAGES:
            for name, what in (("data_dir", "a folder of class sub-folders, or a CSV"), ("vocabulary", "a name or a YAML file")):
                if not getattr(self, name):
                    raise SagaError(f"dataset {OWN_IMAGES} needs {name}, {what}")
        elif self.data_dir:
            raise SagaError(f"data_dir is for dataset {OWN_IMAGES}, not for {self.dataset}")
        if self.prompt not in ("structured", "generic"):
            raise unknown_name("prompt", self.prompt, ("structured", "generic"))
        if self.prompt == "generic" and (self.language_signal == "oracle" or self.audit_every):
            raise SagaError("prompt generic names no attributes: it has neither an oracle nor an audit")
        if self.batch_size % self.batch_images_per_class:
            raise SagaError(
                f"batch_size {self.batch_size} must be a multiple of batch_images_per_class {self.batch_images_per_class}"
            )
        if self.max_waves < 1 or not 0 < self.top_p <= 1 or self.temperature < 0:
            raise SagaError("max_waves must be at least 1, top_p in (0, 1] and temperature at least 0")
        if self.signal_control not in ("none", *SIGNAL_CONTROLS.values()):
            raise unknown_name("signal control", self.signal_control, ("none", *SIGNAL_CONTROLS.values()))
        if self.signal_control not in ("none", SIGNAL_CONTROLS.get(self.language_signal)):
            raise SagaError(f"signal_control {self.signal_control} does not go with language_signal {self.language_signal}")
        if not 0 <= self.hard_pairs <= 1:
            raise SagaError(f"hard_pairs {self.hard_pairs} is a fraction between 0 and 1")
        if self.evaluate_on not in ("test", "validation"):
            raise unknown_name("evaluation split", self.evaluate_on, ("test", "validation"))
        if self.audit_every < 0 or (self.audit_every and self.language_signal != "grpo"):
            raise SagaError(f"audit_every {self.audit_every}: takes a number of steps (0 = never), and language_signal grpo to audit")
        if self.lora_rank < 0 or self.lora_alpha <= 0 or self.replay_rows < 0 or self.tower_images < 0:
            raise SagaError("lora_rank, replay_rows and tower_images must be at least 0 and lora_alpha above 0")
        if self.revision and (self.supervisor == "miniature" or self.supervisor.startswith(TIMM)):
            raise SagaError(f"revision {self.revision!r} goes with a supervisor from the hub, not with {self.supervisor}")
        if self.supervisor.startswith(TIMM) and self.language_signal != "none":
            raise SagaError(
                f"supervisor {self.supervisor} is a tower without a language model, so language_signal must be none, "
                f"not {self.language_signal}; name a multimodal model, or a method that is metric learning alone"
            )
        if self.group_size < 2 and self.language_signal == "grpo":
            raise SagaError(f"group_size {self.group_size}: GRPO compares rollouts, so it needs at least 2")

    def to_dict(self) -> dict:
        """Return a JSON-ready dict; `RunConfig.from_dict` reads it back. What this repository holds is named relative to it."""
        is_shipped = self.supervisor.startswith(f"{REPOSITORY}/{SHIPPED}")
        supervisor = self.supervisor.removeprefix(f"{REPOSITORY}/") if is_shipped else self.supervisor
        vocabulary = self.vocabulary.removeprefix(f"{REPOSITORY}/") if self.vocabulary.endswith(YAML) else self.vocabulary
        content = asdict(self) | {"dml_options": dict(self.dml_options), "supervisor": supervisor, "vocabulary": vocabulary}
        content["data_dir"] = self.data_dir.removeprefix(f"{REPOSITORY}/")
        return {name: value for name, value in content.items() if name not in _LATER or value != _LATER[name]}

    @classmethod
    def from_dict(cls, content: dict) -> RunConfig:
        """Read a config back; unknown fields raise `SagaError` with the closest match."""
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise unknown_name("run setting", name, known)
        options = content.get("dml_options", {})
        return cls(**content | {"dml_options": tuple(sorted(dict(options).items()))})

    def needs_supervisor(self) -> bool:
        """Return whether the language model takes part in training."""
        return self.language_signal != "none"


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
    that was taught more than the usual one ("prompts": saga_lib.miniature.prompt_tuning), where the profile has a miniature one.

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


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Return the same configuration with another seed."""
    return replace(config, seed=seed)


_NOT_NUMBERS = (  # draw, sum up, orchestrate or use what is trained; this file's settings enter a run's address by their values
    "attention_maps.py", "audit_summary.py", "claims.py", "comparisons.py", "config.py", "discovery.py", "export.py", "figures.py",
    "gallery.py", "half_taught.py", "notebooks.py", "own_images.py", "planner.py", "prepare.py", "prompt_tuning.py", "report.py", "runs.py",
    "search.py", "study.py", "tables.py", "tuning.py", "__main__.py",
)  # fmt: skip


def exact_code_digest() -> str:
    """Return a digest of the library source that numbers depend on."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        if path.name not in _NOT_NUMBERS:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


SAME_NUMBERS = Path(__file__).parent / "same_numbers.json"  # what `python -m saga_lib.runs --same-numbers STUDY` has shown


@lru_cache
def code_digest() -> str:
    """Return what stands for the code in a run's address; runs of code that may compute other numbers are never mixed.

    That is the digest of the source or, where it was shown on a study's runs to compute what an earlier source did, that of
    the earlier one: a comment or a path that such runs never take must not cost hours of training. What is shown is shown for
    the kind of machine it ran on; no study on a GPU has been shown anything yet.
    """
    digest = exact_code_digest()
    shown = json.loads(SAME_NUMBERS.read_text(encoding="utf-8")) if SAME_NUMBERS.is_file() else []
    return next((entry["same_as"] for entry in shown if entry["code"] == digest), digest)


def content_key(config: RunConfig, inputs: dict[str, str]) -> str:
    """Return the content address of a run: its settings, its inputs' checksums and the code.

    Where your own images and vocabulary lie does not matter: their checksums are among the inputs.
    """
    settings = config.to_dict() | {"data_dir": "", "vocabulary": ""}
    text = json.dumps([settings, inputs, code_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
