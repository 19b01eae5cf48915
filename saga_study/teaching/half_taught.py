"""Miniature supervisors that have not learnt all they could: how good must the language model be before its reward helps?

Language models are taught anew, from their untrained weights, beneath the shipped tower, and kept after so many steps. The tower is
frozen and the same in all of them: encoders start from the same weights whichever supervisor gives the reward, so one PF run is
the baseline of all, and what differs is the reward alone. They are made where they are needed (`make_missing`), not shipped:

    python -m saga_study.teaching.half_taught birds
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saga_lib.common.errors import unknown_name
from saga_lib.common.files import write_json, write_text
from saga_lib.config import CHECKPOINTS
from saga_lib.families.loading import load_supervisor
from saga_lib.miniature.scene import IMAGE_SIZE
from saga_lib.miniature.world import DOMAINS
from saga_lib.supervisor.base import Supervisor
from saga_study.assessment import assess_verdicts
from saga_study.methods import HALF_TAUGHT_MINUTES as MINUTES
from saga_study.methods import HALF_TAUGHT_STEPS as STEPS
from saga_study.teaching import checkpoints, pretraining
from saga_study.teaching.checkpoints import SHIPPED, Recipe
from saga_study.teaching.prompt_tuning import held_out_pairs


@dataclass(frozen=True)
class HalfTaughtRecipe:
    """What determines the supervisors besides the recipe of the shipped one, whose tower and stages they share."""

    domain: str = "birds"
    keep_after: tuple[int, ...] = STEPS  # language steps, ascending
    held_out: int = 32  # families of the pool that are never trained on, for the verdicts in the log


def folder_after(domain: str, steps: int) -> Path:
    """Return where the supervisor of a domain lies whose language model was taught for so many steps."""
    return CHECKPOINTS / f"{domain}_after_{steps:04d}"


def make_missing(supervisors: Iterable[str], report: Callable[[str], None] = print) -> None:
    """Make those of some supervisors (folders of run configs) that are half-taught ones and lack; others are left alone."""
    for domain in SHIPPED:
        folders = {str(folder_after(domain, steps)) for steps in STEPS}
        if any(not Path(name).is_dir() for name in folders.intersection(supervisors)):
            report(f"teaching half-taught supervisors of {domain}: about {MINUTES:.0f} minutes of one core, once")
            teach(HalfTaughtRecipe(domain), report=report)


def teach(
    recipe: HalfTaughtRecipe, base: Recipe | None = None, into: Path | None = None, report: Callable[[str], None] = print
) -> list[dict]:
    """Teach a language model beneath the shipped tower, keep it after `recipe.keep_after` steps, return the log.

    Folders `<domain>_after_<steps>` appear below `into` (default: beside the shipped ones), each whole or not at all. Every one's
    log ends with the share of right verdicts on held-out pairs in studio style, half of which are siblings. Raises `SagaError` for an
    unknown domain.
    """
    if recipe.domain not in DOMAINS:
        raise unknown_name("domain", recipe.domain, DOMAINS)
    base, into = base or SHIPPED[recipe.domain], into or CHECKPOINTS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads is part of the order of summation
    try:
        with tempfile.TemporaryDirectory(prefix=".half-taught-", dir=into) as scratch:  # on the disk where they will lie
            return _teach(recipe, base, into, Path(scratch), report)
    finally:
        torch.set_num_threads(threads)


def _teach(recipe: HalfTaughtRecipe, base: Recipe, into: Path, scratch: Path, report: Callable[[str], None]) -> list[dict]:
    checkpoints.build_checkpoint(base, scratch / "untrained")
    _, untrained = load_supervisor(scratch / "untrained", IMAGE_SIZE)
    tower, supervisor = load_supervisor(CHECKPOINTS / recipe.domain, IMAGE_SIZE)
    supervisor.language_model.load_state_dict(untrained.language_model.state_dict())  # the head is tied to its embeddings
    vocabulary = DOMAINS[recipe.domain].vocabulary
    pool = pretraining.render_pool(base, DOMAINS[recipe.domain], tower, report)
    log = pretraining._text_stage(base, supervisor, vocabulary, report)
    training = pretraining._Training(base, base.steps, {base.learning_rate: [supervisor.language_model]}, "language", report)
    rng = np.random.default_rng([base.seed, 3])
    for step in range(1, max(recipe.keep_after) + 1):
        pixels, truth = pool.batch(rng.choice(base.families - recipe.held_out, base.families_per_batch, replace=False))
        task = pretraining._draw_task((step - 1) / base.steps, base, rng)
        with torch.no_grad():
            tokens = tower(pixels)
        loss = pretraining._task_loss(task, supervisor, vocabulary, tokens, truth, rng)
        training.step(loss, {task: loss})
        if step in recipe.keep_after:
            supervisor.language_model.eval()
            right = {"stage": "right verdicts", "step": step, "structured": _right_verdicts(base, recipe.held_out, tower, supervisor, pool)}
            report(f"after {step} steps: {right['structured']:.0%} right verdicts on held-out pairs in studio style")
            _keep(recipe, base, step, [*log, *training.log, right], tower, supervisor, into, scratch)
            supervisor.language_model.train()
    return log + training.log


def _right_verdicts(base: Recipe, held_out: int, tower: nn.Module, supervisor: Supervisor, pool: pretraining.Pool) -> float:
    vocabulary = DOMAINS[base.domains[0]].vocabulary
    return assess_verdicts(tower, supervisor, vocabulary, *held_out_pairs(pool, held_out), max_new_tokens=72).accuracy


def _keep(
    recipe: HalfTaughtRecipe, base: Recipe, step: int, log: list[dict], tower: nn.Module, supervisor: Supervisor, into: Path, scratch: Path
) -> None:
    kept = scratch / f"after_{step}"
    others = shutil.ignore_patterns("recipe.json", "training_log.json", "README.md")
    shutil.copytree(CHECKPOINTS / recipe.domain, kept, ignore=others)
    checkpoints.save_checkpoint(kept, tower, supervisor)
    write_json(kept / "recipe.json", {"half_taught": asdict(recipe) | {"keep_after": step}, "base": asdict(base)})
    # Without times: what is made again where it lacks must have the same checksum, by which runs are found.
    write_json(kept / "training_log.json", [{name: value for name, value in entry.items() if name != "seconds"} for entry in log])
    write_text(kept / "README.md", _model_card(recipe.domain, step))
    target = into / folder_after(recipe.domain, step).name
    shutil.rmtree(target, ignore_errors=True)
    os.replace(kept, target)


def _model_card(domain: str, step: int) -> str:
    return f"""# Miniature supervisor ({domain}), half taught

The shipped tower of {domain} above a language model that was taught anew and kept after {step} steps of its language stage
(`saga_study.teaching.half_taught`, `recipe.json`, `training_log.json`). For the sensitivity of SAGA to its supervisor (notebook 11).
Trained on the pre-training pool only, in studio style; the classes and the style of every benchmark are excluded.

- **Licence** Apache-2.0, like the study.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Teach supervisors of different quality."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("domain", choices=sorted(DOMAINS))
    teach(HalfTaughtRecipe(parser.parse_args(arguments).domain))


if __name__ == "__main__":
    main()
