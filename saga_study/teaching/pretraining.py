"""Pre-train a miniature supervisor: a tiny Qwen3-VL or InternVL that describes and compares the birds, cars or aircraft of its domain.

Three stages, as for real MLLMs. *Vision*: the tower alone is trained with a probe that reads every attribute from its tokens, from
easy images to hard ones; the probe is dropped afterwards. *Text*: the language model alone learns to compare attribute lists, so
that its verdict follows from what it has written. *Language*: the whole model learns to describe single images and to compare
attribute lists given as text, then image pairs in the paper's JSON order; a contrastive term on mean-pooled tokens, with siblings
as hard negatives, stands for the image-text pre-training of a real tower. All images and lists are drawn from the pre-training
pool in studio style, never from that of a benchmark.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.common.errors import SagaError
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_answer, comparison_prompt, generic_prompt
from saga_lib.reading import description_answer, description_prompt
from saga_lib.supervisor.base import Supervisor
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import Vocabulary
from saga_study.miniature.scene import IMAGE_SIZE
from saga_study.miniature.world import DOMAINS, PRETRAINING, Domain, draw_combination, draw_sibling, render_batch
from saga_study.questions import generic_answer
from saga_study.teaching.checkpoints import Recipe, build_checkpoint, save_checkpoint, save_records

# --------------------------------------------------------------------------------------------------- data


@dataclass
class Pool:
    """Pre-rendered images: row 4f+{0,1} shows family f's combination, row 4f+{2,3} its sibling."""

    pixels: Tensor  # (4F, patches, patch_dim) uint8
    combinations: list[dict[str, str]]  # 4F

    def batch(self, families: np.ndarray) -> tuple[Tensor, list[dict[str, str]]]:
        rows = (families[:, None] * 4 + np.arange(4)).reshape(-1)
        pixels = self.pixels[torch.as_tensor(rows)].float().div_(127.5).sub_(1)
        return pixels, [self.combinations[r] for r in rows]


def render_pool(recipe: Recipe, domain: Domain, tower: nn.Module, report: Callable[[str], None]) -> Pool:
    """Render the images of a pre-training pool, the nuisance growing with the family (deterministic in the recipe's seed)."""
    rng = np.random.default_rng([recipe.seed, 1])
    combinations, parts = [], []
    low, high = recipe.nuisance
    for start in range(0, recipe.families, 250):
        chunk, nuisances = [], []
        for family in range(start, min(start + 250, recipe.families)):
            founder = draw_combination(domain.vocabulary, rng, PRETRAINING)
            sibling = draw_sibling(founder, domain.vocabulary, rng, PRETRAINING)
            chunk += [founder, founder, sibling, sibling]
            nuisances += 4 * [low + (high - low) * family / recipe.families]
        pixels = tower.preprocess(render_batch(domain, chunk, rng, nuisances))
        parts.append(pixels.add(1).mul(127.5).round().to(torch.uint8))
        combinations += chunk
        if start % 2500 == 0:
            report(f"rendering: {len(combinations)} of {4 * recipe.families} images")
    return Pool(torch.cat(parts), combinations)


# ------------------------------------------------------------------------------------------------- losses


def answer_loss(
    supervisor: Supervisor, prompt: str, images: VisualTokens | None, answers: Sequence[str], num_images: int,
    scored_from: str | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean negative log-likelihood per token of answers, from the token where `scored_from` begins."""
    prompt_ids = supervisor.prompt_ids(prompt, num_images).tolist()
    answer_ids = [supervisor.answer_ids(answer) for answer in answers]
    width = max(map(len, answer_ids))
    padding = supervisor.eos_token_id
    ids = torch.tensor([prompt_ids + a + [padding] * (width - len(a)) for a in answer_ids])
    scored = torch.tensor([[place < len(a) for place in range(width)] for a in answer_ids])
    skipped = 0
    if scored_from is not None:
        skipped = len(supervisor.answer_ids(answers[0][: answers[0].index(scored_from)])) - 1
    start = len(prompt_ids) + skipped
    hidden = supervisor.forward_sequences(ids, images)[:, start - 1 : -1]
    return -supervisor.log_probs(hidden, ids[:, start:])[scored[:, skipped:]].mean()


def contrastive_loss(tokens: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE over mean-pooled tokens (4F, Np, D): positives are the two images of a combination."""
    z = nn.functional.normalize(tokens.mean(1), dim=-1)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    partner = torch.arange(len(z)) ^ 1
    return nn.functional.cross_entropy(similarity, partner)


class AttributeProbe(nn.Module):
    """Reads every attribute from merged tokens by one attention query each; used in the vision stage only."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(len(vocabulary.attributes), width) * 0.3)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = nn.ModuleList([nn.Linear(width, len(a.values)) for a in vocabulary.attributes])

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Return one (N, values) tensor of logits per attribute for tokens (N, Np, D)."""
        x = self.norm(tokens)
        attention = torch.einsum("ad,npd->nap", self.query, self.key(x)).div(x.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("nap,npd->nad", attention, self.value(x))
        return [head(seen[:, index]) for index, head in enumerate(self.heads)]

    def loss(self, tokens: Tensor, truth: list[dict[str, str]], vocabulary: Vocabulary) -> Tensor:
        """Return the mean cross-entropy over attributes."""
        losses = []
        for attribute, logits in zip(vocabulary.attributes, self(tokens), strict=True):
            wanted = torch.tensor([attribute.values.index(item[attribute.name]) for item in truth])
            losses.append(nn.functional.cross_entropy(logits, wanted))
        return torch.stack(losses).mean()


def draw_pairs(families: int, rng: np.random.Generator) -> np.ndarray:
    """Return (2·families, 2) row pairs: half same, a third siblings, the rest strangers."""
    pairs = []
    for f in range(families):
        for _ in range(2):
            kind = rng.uniform()
            if kind < 0.5:
                side = 2 * rng.integers(2)
                pair = (4 * f + side, 4 * f + side + 1)
            elif kind < 0.83:
                pair = (4 * f + rng.integers(2), 4 * f + 2 + rng.integers(2))
            else:
                pair = (4 * f + rng.integers(4), 4 * ((f + 1 + rng.integers(families - 1)) % families) + rng.integers(4))
            pairs.append(pair if rng.uniform() < 0.5 else pair[::-1])
    return np.asarray(pairs)


def text_comparisons(count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> list[str]:
    """Return true answers over random attribute lists, 40 % same, 40 % siblings, 20 % strangers."""
    answers = []
    for _ in range(count):
        first = draw_combination(vocabulary, rng, PRETRAINING)
        kind = rng.uniform()
        if kind < 0.4:
            second = first
        elif kind < 0.8:
            second = draw_sibling(first, vocabulary, rng, PRETRAINING, max_changes=3)
        else:
            second = draw_combination(vocabulary, rng, PRETRAINING)
        answers.append(comparison_answer(vocabulary, first, second))
    return answers


# ----------------------------------------------------------------------------------------------- training


def pretrain(recipe: Recipe, folder: Path, report: Callable[[str], None] = print) -> list[dict]:
    """Pre-train a supervisor by the recipe, save it below `folder` and return its log.

    About 20 minutes on one thread with the default recipe. The folder holds an ordinary checkpoint plus
    `recipe.json`, `training_log.json` and a model card.
    """
    if len(recipe.domains) != 1:
        raise SagaError(f"a recipe pre-trains one domain, got {', '.join(recipe.domains) or 'none'}; make one supervisor per domain")
    build_checkpoint(recipe, folder)
    tower, supervisor = load_supervisor(folder, IMAGE_SIZE)
    domain = DOMAINS[recipe.domains[0]]
    pool = render_pool(recipe, domain, tower, report)
    log = _vision_stage(recipe, tower, pool, domain.vocabulary, report)
    log += text_stage(recipe, supervisor, domain.vocabulary, report)
    log += _language_stage(recipe, tower, supervisor, pool, domain.vocabulary, folder, report)
    save_checkpoint(folder, tower, supervisor)
    save_records(folder, asdict(recipe), log, model_card(recipe))
    return log


def _vision_stage(
    recipe: Recipe, tower: nn.Module, pool: Pool, vocabulary: Vocabulary, report: Callable[[str], None]
) -> list[dict]:
    """Train tower and probe; return the log."""
    probe = AttributeProbe(vocabulary, tower.width)
    training = StageTraining(recipe, recipe.vision_steps, {recipe.vision_learning_rate: [tower, probe]}, "vision", report)
    rng = np.random.default_rng([recipe.seed, 2])
    for step in range(recipe.vision_steps):
        # the easy families first: from a tenth of the pool to all of it
        reach = int(recipe.families * min(1.0, 0.1 + 1.3 * step / recipe.vision_steps))
        families = rng.choice(max(reach, recipe.families_per_batch), recipe.families_per_batch, replace=False)
        pixels, truth = pool.batch(families)
        loss = probe.loss(tower(pixels).merged, truth, vocabulary)
        training.step(loss, {"probe": loss})
    return training.log


def text_stage(
    recipe: Recipe, supervisor: Supervisor, vocabulary: Vocabulary, report: Callable[[str], None]
) -> list[dict]:
    """Train the language model to compare attribute lists given as text; return the log."""
    training = StageTraining(recipe, recipe.text_steps, {recipe.learning_rate: [supervisor.language_model]}, "text", report)
    rng = np.random.default_rng([recipe.seed, 4])
    for _ in range(recipe.text_steps):
        loss = task_loss("text", supervisor, vocabulary, None, [{}] * 8 * recipe.families_per_batch, rng)
        training.step(loss, {"text": loss})
    return training.log


def _language_stage(
    recipe: Recipe, tower: nn.Module, supervisor: Supervisor, pool: Pool, vocabulary: Vocabulary, folder: Path,
    report: Callable[[str], None],
) -> list[dict]:  # fmt: skip
    # The head is tied to the embeddings.
    modules = {recipe.learning_rate: [supervisor.language_model], recipe.tower_learning_rate: [tower]}
    training = StageTraining(recipe, recipe.steps, modules, "language", report)
    rng = np.random.default_rng([recipe.seed, 3])
    for step in range(recipe.steps):
        pixels, truth = pool.batch(rng.choice(recipe.families, recipe.families_per_batch, replace=False))
        task = draw_task(step / recipe.steps, recipe, rng)
        tokens = tower(pixels)
        contrast = contrastive_loss(tokens.merged, recipe.contrastive_temperature)
        loss = task_loss(task, supervisor, vocabulary, tokens, truth, rng)
        training.step(loss + recipe.contrastive_weight * contrast, {task: loss, "contrastive": contrast})
        if (step + 1) % recipe.snapshot_every == 0:
            save_checkpoint(folder, tower, supervisor)
    for module in (tower, supervisor.language_model):
        module.eval()
    return training.log


class StageTraining:
    """Optimizer, schedule and log of one stage."""

    def __init__(
        self, recipe: Recipe, steps: int, modules: dict[float, list[nn.Module]], stage: str, report: Callable[[str], None]
    ) -> None:
        groups = []
        for rate, parts in modules.items():
            parameters = [p for part in parts for p in part.requires_grad_(True).train().parameters()]
            groups.append({"params": parameters, "lr": rate})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _schedule(step, steps, recipe.warmup))
        self.parameters = [p for group in groups for p in group["params"]]
        self.steps, self.stage, self.report = steps, stage, report
        self.log: list[dict] = []
        self._done, self._started, self._recent = 0, time.time(), {}

    def step(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Take one optimizer step and log `parts`, the values of the loss by name."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self._done += 1
        for name, value in parts.items():
            self._recent.setdefault(name, []).append(float(value.detach()))
        if self._done % 250 == 0 or self._done == self.steps:
            row = {"stage": self.stage, "step": self._done, "seconds": round(time.time() - self._started, 1)}
            row |= {name: round(float(np.mean(values)), 4) for name, values in self._recent.items()}
            self.log.append(row)
            self._recent.clear()
            self.report(f"pre-training: {json.dumps(row)}")


def _schedule(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


LANGUAGE_TASKS = ("describe", "text", "compare", "generic")


def draw_task(progress: float, recipe: Recipe, rng: np.random.Generator) -> str:
    """Draw a task of the language stage; `progress` is the fraction of its steps that are done."""
    shares = (0.65, 0.35, 0.0, 0.0) if progress < recipe.comparing_from else (0.15, 0.3, 0.4, 0.15)
    return LANGUAGE_TASKS[rng.choice(4, p=shares)]


def task_loss(
    task: str, supervisor: Supervisor, vocabulary: Vocabulary, tokens: VisualTokens | None, truth: list[dict],
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Return the loss of the true answers to a language task; `truth` has the attributes of each image, four images a family."""
    if task == "describe":
        answers = [description_answer(vocabulary, t) for t in truth]
        return answer_loss(supervisor, description_prompt(vocabulary), tokens, answers, num_images=1)
    if task == "text":
        answers = text_comparisons(len(truth) // 2, vocabulary, rng)
        return answer_loss(supervisor, comparison_prompt(vocabulary), None, answers, 0, scored_from='"}, "differences"')
    make_answer, make_prompt = (comparison_answer, comparison_prompt) if task == "compare" else (generic_answer, generic_prompt)
    pairs = draw_pairs(len(truth) // 4, rng)
    answers = [make_answer(vocabulary, truth[a], truth[b]) for a, b in pairs]
    images = tokens[torch.as_tensor(pairs.reshape(-1))]
    return answer_loss(supervisor, make_prompt(vocabulary), images, answers, num_images=2)


def model_card(recipe: Recipe) -> str:
    """Return the model card of a supervisor that was pre-trained by a recipe, as Markdown."""
    kind = {
        "qwen3_vl": "Qwen3-VL (stock `transformers` classes, DeepStack and M-RoPE included)",
        "internvl": "InternVL (stock `transformers` classes, pixel shuffle and projector included)",
    }[recipe.family]
    return f"""# Miniature supervisor ({", ".join(recipe.domains)})

A tiny {kind} that describes and compares the
procedural images of the miniature world in the JSON format of SAGA's prompt. Made by
`saga_study.teaching.pretraining.pretrain` with `recipe.json`; its loss curve is `training_log.json`.

- **Trained on** attribute combinations of the pre-training pool only, studio style. The classes and the style of
  every miniature benchmark are excluded (`saga_study.miniature.world.pool_of`).
- **For** the miniature scale of the SAGA study. It knows nothing about real photographs.
- **Rebuild** with `python -m saga_study.teaching pretrain NAME --into FOLDER`, NAME this folder's.
"""
