"""One run = dataset × method × seed × configuration: the unit of compute of the whole study."""

from __future__ import annotations

import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY, WORKPLACE
from saga_lib.common.ranges import check_names, checked_dml_options, checked_settings

TIMM = "timm:"  # prefix of towers that come from timm, without a language model
OWN_IMAGES = "image_folder"  # the dataset that data_dir and vocabulary describe
CHECKPOINT_PREFIX = "saga_lib/miniature/checkpoints/"  # supervisors in this folder are recorded relative to the repository
CHECKPOINTS = REPOSITORY / CHECKPOINT_PREFIX
YAML = (".yaml", ".yml")  # ends of a vocabulary that is a file, not a name
SIGNAL_CONTROLS = {"grpo": ("shuffled", "shuffled_in_group"), "oracle": ("wrong",)}  # what replaces a signal to see whether it matters
# Fields added after runs had been recorded. At these values, which those runs used, they stay out of the record: its address stays.
_ADDED_LATER = {
    "anchor": "none", "lambda_anchor": 1.0, "anchor_temperature": 0.1, "advantage": "grpo", "token_mean": "buffer",
    "reading_signal": "none", "reading_control": "none", "lambda_reading": 1.0, "reading_temperature": 6.0, "reading_answer": "forced",
    "reading_images": 0, "measure_reading": False, "recompute_layers": False, "tower_images": 0, "image_fit": "crop",
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What determines a run's numbers. The paper's value is noted where a default departs from it.

    Its comments are data, one line per field under the heading of its phase: `saga_study.methods.field_help` reads them.
    """

    # the run
    profile: str  # scale of the study: smoke | miniature | paper
    dataset: str  # name of a benchmark; image_folder: your own images in data_dir
    method: str  # row of the tables: a key of saga_study.methods.METHODS, or any name of your own
    seed: int  # of the weights that start at random, the batches, the pairs and the rollouts

    # models: tower, pooler and supervisor
    supervisor: str  # local folder, hub id, "miniature" for the shipped checkpoint, or "timm:<model>" for a tower alone
    image_size: int  # pixels on a side; paper 224
    image_fit: str = "crop"  # what of an image is seen: crop (the centre square) | resize (all of it, squeezed to a square; paper)
    revision: str = ""  # branch, tag or commit of a hub supervisor; empty: the commit the study pins, else the hub's default branch
    pooler: str = "attention"  # c_φ: attention | mean
    embedding_dim: int = 128  # D_e, size of the embedding; paper 4096; 0: no projection after the pooler
    train_mergers: bool = True  # whether θ includes the mergers after the vision blocks
    lora_rank: int = 0  # of low-rank adapters on the tower's blocks, which are then frozen; 0: full fine-tuning, as in the paper
    lora_alpha: float = 16.0  # the adapters' output is scaled by lora_alpha / lora_rank

    # losses (Eq. 8)
    dml_loss: str = "pf"  # metric-learning loss: pf | pa | ms | infonce
    dml_options: tuple[tuple[str, float | int | str], ...] = ()  # keyword arguments of the metric-learning loss
    language_signal: str = "none"  # none | grpo | oracle (attribute truth through ψ in place of GRPO)
    signal_control: str = "none"  # none | shuffled (advantages over a step) | shuffled_in_group | wrong (oracle of other classes)
    lambda_dml: float = 1.0  # weight of the metric-learning loss
    lambda_lm: float = 1.0  # λ_lm, weight of the language signal
    lambda_kl: float = 1.0  # λ_kl, weight of the attention alignment L_KL
    deepstack_gradient: bool = True  # whether the language signal also reaches the tower through DeepStack
    balance_gradients: bool = False  # scale each language gradient at the tower to its weight times the metric gradient's norm, each step
    advantage: str = "grpo"  # of rewards: grpo (paper) | dr_grpo (not divided by σ) | rloo | right | wrong (answers of that kind only)
    token_mean: str = "buffer"  # what L_GRPO is a mean over: buffer (its tokens; paper) | answer (answers, of the means of their tokens)
    anchor: str = "none"  # teacher of saga_lib.anchor: none | embedding (pre-trained) | reading (frozen model's) | truth; not in the paper
    lambda_anchor: float = 1.0  # weight of the anchor
    anchor_temperature: float = 0.1  # of the similarities that the anchor compares

    # readings (saga_lib.reading; not in the paper)
    reading_signal: str = "none"  # none | contrast | verdict | agreement | consensus | views: loss on what the frozen model reads
    reading_control: str = "none"  # none | permuted (the model's weights) | labels (shuffled) | head (trained in the model's place)
    lambda_reading: float = 1.0  # weight of the reading loss
    reading_temperature: float = 6.0  # τ of contrast
    reading_answer: str = "forced"  # what the model is read along: forced (one answer for all images) | own (its description of each)
    reading_images: int = 0  # images whose activations are kept at once, 0: all of the step's; memory against speed

    # rollouts: Phase B (Sec. 3, App. C)
    prompt: str = "structured"  # structured (App. E) | generic (names no attributes, hence has no L_KL)
    group_size: int = 8  # G, rollouts of a pair
    pairs_per_wave: int = 16  # pairs that are asked about at a time
    max_waves: int = 4  # bound of dynamic sampling: waves per step at most
    contributing_pairs: int = 8  # K, pairs with both right and wrong verdicts that a step collects
    max_micro_batches: int = 1  # of images that Phase B may draw pairs from (Alg. 1); 1: only the step's own, so that methods see as many
    hard_pairs: float = 0.0  # fraction of different-class pairs taken nearest first by the current embedding; paper 0
    temperature: float = 0.7  # of sampling
    top_p: float = 0.95  # of nucleus sampling
    max_new_tokens: int = 1024  # of an answer at most

    # replay: Phase C
    attention_layer: int = 26  # ℓ, layer of ψ whose attention L_KL aligns the pooler with, from 0
    replay_pairs: int = 1  # pairs per replay micro-batch: memory against speed
    replay_rows: int = 0  # rollouts of a pair whose activations are kept at once, 0: all G; memory against speed
    recompute_layers: bool = False  # keep only the inputs of ψ's layers and compute the rest again in backward; changes no number
    tower_images: int = 0  # images at a time whose activations the tower keeps; 0: all of them, from Phase A to C

    # data
    data_dir: str = ""  # folder or CSV of your own images, for dataset image_folder
    vocabulary: str = ""  # name or YAML file; empty: the dataset's own, which image_folder has not
    test_fraction: float = 0.5  # of an image_folder's classes, drawn by split_seed; a CSV's split column goes first
    split_seed: int = 0  # of the draw of an image_folder's test classes
    evaluate_on: str = "test"  # test | validation (train on half of the train classes, evaluate on the other half)
    images_per_class: int = 0  # of the benchmark, 0: all

    # optimisation
    steps: int = 0  # optimizer steps; 0 with epochs 0: no training
    epochs: int = 0  # used when steps is 0; paper 3
    batch_size: int = 64  # images
    batch_images_per_class: int = 4  # m of the class-balanced batches; not stated in the paper
    lr_tower: float = 2e-5  # learning rate of the tower or its adapters
    lr_pooler: float = 1e-4  # learning rate of pooler and projection
    lr_proxies: float = 1e-2  # learning rate of the metric loss's proxies
    weight_decay: float = 1e-4  # not stated in the paper
    warmup_fraction: float = 0.05  # of the steps, in which learning rates rise from 0
    max_grad_norm: float = 1.0  # gradients are clipped to it

    # bookkeeping: changes no number
    checkpoint_every: int = 50  # steps between checkpoints that an interrupted run goes on from
    measure_reading: bool = False  # also measure what the frozen model reads from the test images after training
    audit_every: int = 0  # steps between gradient audits (saga_study.audit), 0: never; needs attribute truth

    def __post_init__(self) -> None:
        types = {field.name: field.type for field in fields(self)}
        plain = checked_settings(types, {name: getattr(self, name) for name in types})
        plain["dml_options"] = checked_dml_options(plain["dml_loss"], self.dml_options)
        shipped, described = plain["supervisor"].startswith(CHECKPOINT_PREFIX), plain["vocabulary"].endswith(YAML)
        for name, is_path in (("supervisor", shipped), ("vocabulary", described), ("data_dir", bool(plain["data_dir"]))):
            if is_path:
                plain[name] = os.path.normpath((REPOSITORY if name == "supervisor" else WORKPLACE) / plain[name])
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._check_models()
        self._check_losses()
        self._check_data()

    def _check_models(self) -> None:
        is_tower = self.supervisor.startswith(TIMM)
        if self.revision and (self.supervisor == "miniature" or is_tower):
            raise SagaError(f"revision {self.revision!r} goes with a supervisor from the hub, not with {self.supervisor}")
        if is_tower and (self.needs_supervisor() or self.measure_reading):
            raise SagaError(
                f"supervisor {self.supervisor} is a tower without a language model, so language_signal must be none, and nothing can be "
                "read; name a multimodal model, or a method that is metric learning alone"
            )
        if self.pooler == "attention" and not self.embedding_dim:
            raise SagaError("embedding_dim 0, no projection, goes with pooler mean; the attention pooler ends in one: set at least 1")

    def _check_losses(self) -> None:
        if self.signal_control not in ("none", *SIGNAL_CONTROLS.get(self.language_signal, ())):
            raise SagaError(f"signal_control {self.signal_control} does not go with language_signal {self.language_signal}")
        if self.reading_control != "none" and self.reading_signal == "none":
            raise SagaError(f"reading_control {self.reading_control} needs a reading_signal to replace")
        if self.reading_control == "labels" and self.reading_signal == "views":
            raise SagaError("reading_control labels shuffles class labels, which reading_signal views does not use")
        if self.reading_control == "permuted" and (self.language_signal != "none" or self.anchor == "reading"):
            raise SagaError("reading_control permuted permutes the only language model: set language_signal none and another anchor")
        if self.audit_every and self.language_signal != "grpo":
            raise SagaError(f"audit_every {self.audit_every} needs language_signal grpo to audit, not {self.language_signal}; set it to 0")
        if self.prompt == "generic" and (self.language_signal == "oracle" or self.audit_every):
            raise SagaError("prompt generic names no attributes: it has neither an oracle nor an audit")
        signals = (self.reading_signal != "none") * self.lambda_reading
        signals += (self.language_signal != "none") * (self.lambda_lm + self.lambda_kl)
        if not (self.lambda_dml or self.anchor != "none" and self.lambda_anchor):
            if self.balance_gradients if signals else self.steps or self.epochs:
                what = "no gradient that signals could be a multiple of: set balance_gradients false" if signals else "nothing to train"
                raise SagaError(f"lambda_dml 0 leaves {what}, or set lambda_dml above 0")
        if self.group_size < 2 and self.language_signal == "grpo":
            raise SagaError(f"group_size {self.group_size}: GRPO compares rollouts, so it needs at least 2")

    def _check_data(self) -> None:
        if self.dataset == OWN_IMAGES:
            for name, what in (("data_dir", "a folder of class sub-folders, or a CSV"), ("vocabulary", "a name or a YAML file")):
                if not getattr(self, name):
                    raise SagaError(f"dataset {OWN_IMAGES} needs {name}, {what}")
        elif self.data_dir:
            raise SagaError(f"data_dir is for dataset {OWN_IMAGES}, not for {self.dataset}")
        if self.batch_size % self.batch_images_per_class:
            raise SagaError(f"batch_size {self.batch_size} must be a multiple of batch_images_per_class {self.batch_images_per_class}")
        if self.batch_images_per_class < 2 and (self.needs_supervisor() or self.dml_loss in ("ms", "infonce")):
            raise SagaError("batch_images_per_class 1 leaves no two images of a class in a batch, which this run compares; set at least 2")

    def to_dict(self) -> dict:
        """Return a JSON-ready dict that `from_dict` reads back. Paths inside the repository are given relative to it."""
        content = asdict(self) | {"dml_options": dict(self.dml_options), "data_dir": self.data_dir.removeprefix(f"{WORKPLACE}/")}
        if self.supervisor.startswith(f"{REPOSITORY}/{CHECKPOINT_PREFIX}"):
            content["supervisor"] = self.supervisor.removeprefix(f"{REPOSITORY}/")
        if self.vocabulary.endswith(YAML):
            content["vocabulary"] = self.vocabulary.removeprefix(f"{WORKPLACE}/")
        return {name: value for name, value in content.items() if name not in _ADDED_LATER or value != _ADDED_LATER[name]}

    @classmethod
    def from_dict(cls, content: dict) -> RunConfig:
        """Return the config of a record, whatever the order of its keys; raises `SagaError` for unknown or missing fields."""
        check_names(content, [field.name for field in fields(cls)], [field.name for field in fields(cls) if field.default is MISSING])
        return cls(**content)

    @property
    def name(self) -> str:
        """The run's name for people: dataset (of your own images: their folder), method, seed."""
        return f"{Path(self.data_dir).stem if self.data_dir else self.dataset} {self.method} seed {self.seed}"

    def needs_supervisor(self) -> bool:
        """Return whether the language model takes part in training."""
        reads = self.reading_signal != "none" and self.reading_control != "head"
        return self.language_signal != "none" or reads or self.anchor == "reading"
