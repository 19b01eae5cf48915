"""One run = dataset × method × seed × configuration: the unit of compute of the whole study."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.paths import REPOSITORY

TIMM = "timm:"  # prefix of towers that come from timm, without a language model
OWN_IMAGES = "image_folder"  # the dataset that data_dir and vocabulary describe
SHIPPED = "saga_lib/miniature/checkpoints/"  # supervisors below it are recorded relative to the repository
CHECKPOINTS = REPOSITORY / SHIPPED
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

    @property
    def name(self) -> str:
        """What people call the run: dataset (of your own images: their folder), method, seed."""
        return f"{Path(self.data_dir).stem if self.data_dir else self.dataset} {self.method} seed {self.seed}"

    def needs_supervisor(self) -> bool:
        """Return whether the language model takes part in training."""
        return self.language_signal != "none"


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Return the same configuration with another seed."""
    return replace(config, seed=seed)
