"""Tune a miniature supervisor to other prompts: those that name any part of its attributes, or none.

The pre-trained supervisors compare along one fixed list of attributes. Real models follow whatever list the prompt has, and the
paper's generic prompt and a discovered vocabulary need that. Only the language model is trained further here; the tower stays as it
was pre-trained, so encoders trained with either supervisor start from the same weights and their numbers can be compared.

    python -m saga_study.teaching prompts birds --into FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saga_lib.common.errors import unknown_name
from saga_lib.config import CHECKPOINTS
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_answer, comparison_prompt, generic_prompt
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.rollouts import Sampling
from saga_lib.vocabulary import Vocabulary
from saga_study.assessment import LabelledPairs, Question, assess_verdicts
from saga_study.miniature.scene import IMAGE_SIZE
from saga_study.miniature.world import DOMAINS, PRETRAINING, draw_combination, pool_of
from saga_study.questions import generic_answer
from saga_study.teaching.checkpoints import Recipe, copy_checkpoint, save_checkpoint, save_records
from saga_study.teaching.pretraining import Pool, StageTraining, answer_loss, draw_pairs, render_pool

PROMPT_TASKS = ("structured", "part", "generic", "text")


@dataclass(frozen=True)
class PromptRecipe:
    """Everything that determines a supervisor tuned to other prompts, besides the checkpoint it starts from."""

    domain: str = "birds"
    seed: int = 11
    text_steps: int = 800  # of lists alone, in batches as large as in the supervisor's own text stage: with smaller ones it does not learn
    steps: int = 2400  # of all tasks
    shares: tuple[float, ...] = (0.2, 0.35, 0.3, 0.15)  # of PROMPT_TASKS
    families: int = 6000  # of the pre-training pool, as the supervisor's own recipe draws them
    families_per_batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100
    held_out: int = 200  # of the families: never trained on, for the verdicts in the log


def part_of(vocabulary: Vocabulary, rng: np.random.Generator) -> Vocabulary:
    """Return the vocabulary with some of its attributes, at least one, in their order (as `discovery` keeps them)."""
    number = int(rng.integers(1, len(vocabulary.attributes) + 1))
    chosen = sorted(rng.permutation(len(vocabulary.attributes))[:number])
    return replace(vocabulary, attributes=tuple(vocabulary.attributes[index] for index in chosen))


def text_comparisons_of(asked: Vocabulary, count: int, whole: Vocabulary, rng: np.random.Generator) -> list[str]:
    """Return true answers along some of the attributes over lists of the pre-training pool, 40 % same, 40 % siblings, 20 % strangers."""
    answers = []
    while len(answers) < count:
        first, kind = draw_combination(whole, rng, PRETRAINING), rng.uniform()
        second = first if kind < 0.4 else draw_combination(whole, rng, PRETRAINING)
        if 0.4 <= kind < 0.8:  # differs in what is asked about, in one to three values
            changes = rng.choice(len(asked.attributes), min(len(asked.attributes), int(rng.integers(1, 4))), replace=False)
            second = first | {asked.attributes[index].name: second[asked.attributes[index].name] for index in changes}
            if pool_of(second) != PRETRAINING:
                continue
        answers.append(comparison_answer(asked, first, second))
    return answers


def tune(recipe: PromptRecipe, folder: Path, start: Path | None = None, report: Callable[[str], None] = print) -> list[dict]:
    """Train the language model of a supervisor (default: the shipped one) on other prompts, save it in `folder`, return its log.

    The log ends with the fraction of right verdicts on held-out pairs of the pre-training pool for each prompt, before and after.
    Raises `SagaError` for an unknown domain.
    """
    if recipe.domain not in DOMAINS:
        raise unknown_name("domain", recipe.domain, DOMAINS)
    start = start or CHECKPOINTS / recipe.domain
    copy_checkpoint(start, folder)
    tower, supervisor = load_supervisor(folder, IMAGE_SIZE)
    domain = DOMAINS[recipe.domain]
    pool = render_pool(Recipe(domains=(recipe.domain,), families=recipe.families), domain, tower, report)
    before = _verdicts(recipe, tower, supervisor, pool, domain.vocabulary)
    rng, log = np.random.default_rng([recipe.seed, 1]), []
    for stage, steps, shares in (("lists", recipe.text_steps, (0, 0, 0, 1)), ("prompts", recipe.steps, recipe.shares)):
        training = StageTraining(recipe, steps, {recipe.learning_rate: [supervisor.language_model]}, stage, report)
        for _ in range(steps):
            families = rng.choice(recipe.families - recipe.held_out, recipe.families_per_batch, replace=False)
            task = PROMPT_TASKS[rng.choice(len(PROMPT_TASKS), p=shares)]
            loss = _loss(task, tower, supervisor, domain.vocabulary, pool, families, rng)
            training.step(loss, {task: loss})
        log += training.log
    supervisor.language_model.eval()
    after = _verdicts(recipe, tower, supervisor, pool, domain.vocabulary)
    log += [{"stage": "right verdicts", "prompt": name, "before": before[name], "after": after[name]} for name in before]
    save_checkpoint(folder, tower, supervisor)
    save_records(folder, asdict(recipe), log, model_card(recipe))
    return log


def _loss(
    task: str, tower: torch.nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, pool: Pool, families: np.ndarray,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    asked = vocabulary if task == "structured" or task == "generic" else part_of(vocabulary, rng)
    if task == "text":
        answers = text_comparisons_of(asked, 4 * len(families), vocabulary, rng)
        return answer_loss(supervisor, comparison_prompt(asked), None, answers, 0, scored_from='"}, "differences"')
    pixels, truth = pool.batch(families)
    with torch.no_grad():
        tokens = tower(pixels)
    pairs = draw_pairs(len(families), rng)
    make_answer, make_prompt = (generic_answer, generic_prompt) if task == "generic" else (comparison_answer, comparison_prompt)
    answers = [make_answer(asked, truth[a], truth[b]) for a, b in pairs]
    return answer_loss(supervisor, make_prompt(asked), tokens[torch.as_tensor(pairs.reshape(-1))], answers, num_images=2)


def held_out_pairs(pool: Pool, num_families: int) -> LabelledPairs:
    """Return pairs (2F, 2) of the last F families of a pool: for each, two images of its combination and one with its sibling."""
    total = len(pool.combinations) // 4
    pixels, _ = pool.batch(np.arange(total - num_families, total))
    first = 4 * np.arange(num_families)
    pairs = np.concatenate([np.stack([first, first + 1], 1), np.stack([first, first + 2], 1)])
    return LabelledPairs(pixels, pairs, np.repeat([True, False], num_families))


def _verdicts(
    recipe: PromptRecipe, tower: torch.nn.Module, supervisor: Supervisor, pool: Pool, vocabulary: Vocabulary, num_families: int = 32
) -> dict[str, float]:
    """Return the fraction of right verdicts on pairs of held-out families by kind of prompt.

    Siblings that differ in none of the attributes asked about ("every other") count as different all the same.
    """
    pairs = held_out_pairs(pool, min(num_families, recipe.held_out))
    part = replace(vocabulary, attributes=vocabulary.attributes[1::2])
    asked = {"structured": Question(vocabulary), "every other": Question(part), "generic": Question(vocabulary, "generic")}
    return {name: assess_verdicts(tower, supervisor, question, pairs, Sampling(8, 192)).accuracy for name, question in asked.items()}


def model_card(recipe: PromptRecipe) -> str:
    """Return the model card of a supervisor that was tuned by a recipe, as Markdown."""
    return f"""# Miniature supervisor ({recipe.domain}), taught other prompts

The shipped supervisor of {recipe.domain} whose language model was taught further by `saga_study.teaching.prompt_tuning` (`recipe.json`,
`training_log.json`): to compare along any part of its attributes, and without being given a list. Its vision tower is
unchanged. Trained on the pre-training pool only, in studio style; the classes and the style of every benchmark are excluded.

- **For** the miniature rows with the paper's generic prompt and with discovered vocabularies.
"""
