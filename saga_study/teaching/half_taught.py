"""Half-taught miniature supervisors: how good must the language model be before its reward helps?

A language model is trained again from its untrained weights, with the shipped tower, and saved after several numbers of steps. The
tower is frozen and the same in all of them, so encoders start from the same weights whichever supervisor gives the reward: one PF
run is the baseline of all, and only the reward differs. They are made when a study needs them (`make_missing`), not shipped:

    python -m saga_study.teaching half-taught birds
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from saga_lib.common.errors import unknown_name
from saga_lib.config import CHECKPOINTS
from saga_lib.families.loading import load_supervisor
from saga_lib.supervisor.rollouts import Sampling
from saga_study.assessment import Question, assess_verdicts
from saga_study.folders import write_folder
from saga_study.methods import HALF_TAUGHT_MINUTES as MINUTES
from saga_study.methods import HALF_TAUGHT_STEPS as STEPS
from saga_study.miniature.scene import IMAGE_SIZE
from saga_study.miniature.world import DOMAINS
from saga_study.processes import only_one_process
from saga_study.teaching.checkpoints import RECIPES, Recipe, build_checkpoint, copy_checkpoint, save_checkpoint, save_records
from saga_study.teaching.pretraining import StageTraining, draw_task, render_pool, task_loss, text_stage
from saga_study.teaching.prompt_tuning import held_out_pairs


@dataclass(frozen=True)
class HalfTaughtRecipe:
    """What determines half-taught supervisors besides the recipe of the shipped one, whose tower and stages they share."""

    domain: str = "birds"
    keep_after: tuple[int, ...] = STEPS  # language steps, ascending
    held_out: int = 32  # families of the pool that are never trained on, for the verdicts in the log


def folder_after(domain: str, steps: int) -> Path:
    """Return the folder of the supervisor of a domain whose language model was trained for `steps` language steps."""
    return CHECKPOINTS / f"{domain}_after_{steps:04d}"


def make_missing(supervisors: Iterable[str], report: Callable[[str], None] = print) -> None:
    """Make the half-taught ones among some supervisors (as run configs name them) whose folders are missing.

    If another process makes them already, wait for it.
    """
    for domain in RECIPES:
        folders = {Path(name) for name in {str(folder_after(domain, steps)) for steps in STEPS}.intersection(supervisors)}
        if all(folder.is_dir() for folder in folders):
            continue
        with only_one_process(CHECKPOINTS / f".half-taught-{domain}.lock", f"teaching {domain}", waiting=_say_once(report, domain)):
            if not all(folder.is_dir() for folder in folders):
                report(f"teaching half-taught supervisors of {domain}: about {MINUTES:.0f} minutes of one core, once")
                teach(HalfTaughtRecipe(domain), report=report)


def _say_once(report: Callable[[str], None], domain: str) -> Callable[[str], None]:
    said: set[str] = set()

    def say(holder: str) -> None:
        if holder not in said:
            report(f"waiting for process {holder}, which teaches the half-taught supervisors of {domain}")
        said.add(holder)

    return say


def teach(
    recipe: HalfTaughtRecipe, base: Recipe | None = None, into: Path | None = None, report: Callable[[str], None] = print
) -> list[dict]:
    """Train a language model with the shipped tower, save it after each of `recipe.keep_after` steps, return the log.

    Folders `<domain>_after_<steps>` appear below `into` (default: beside the shipped ones), each whole or not at all. The log in each
    ends with the fraction of right verdicts on held-out pairs in studio style, half of which are siblings. Raises `SagaError` for
    an unknown domain.
    """
    if recipe.domain not in DOMAINS:
        raise unknown_name("domain", recipe.domain, DOMAINS)
    base, into = base or RECIPES[recipe.domain], into or CHECKPOINTS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads is part of the order of summation
    try:
        return _teach(recipe, base, into, report)
    finally:
        torch.set_num_threads(threads)


def _teach(recipe: HalfTaughtRecipe, base: Recipe, into: Path, report: Callable[[str], None]) -> list[dict]:
    shipped, domain = CHECKPOINTS / recipe.domain, DOMAINS[recipe.domain]
    with tempfile.TemporaryDirectory(prefix="saga-untrained-") as untaught:
        build_checkpoint(base, Path(untaught))
        _, untrained = load_supervisor(untaught, IMAGE_SIZE)
    tower, supervisor = load_supervisor(shipped, IMAGE_SIZE)
    supervisor.language_model.load_state_dict(untrained.language_model.state_dict())  # the head is tied to its embeddings
    pool = render_pool(base, domain, tower, report)
    held_out = held_out_pairs(pool, recipe.held_out)
    log = text_stage(base, supervisor, domain.vocabulary, report)
    training = StageTraining(base, base.steps, {base.learning_rate: [supervisor.language_model]}, "language", report)
    rng = np.random.default_rng([base.seed, 3])
    for step in range(1, max(recipe.keep_after) + 1):
        pixels, truth = pool.batch(rng.choice(base.families - recipe.held_out, base.families_per_batch, replace=False))
        task = draw_task((step - 1) / base.steps, base, rng)
        with torch.no_grad():
            tokens = tower(pixels)
        loss = task_loss(task, supervisor, domain.vocabulary, tokens, truth, rng)
        training.step(loss, {task: loss})
        if step in recipe.keep_after:
            supervisor.language_model.eval()
            right = assess_verdicts(tower, supervisor, Question(domain.vocabulary), held_out, Sampling(8, 72)).accuracy
            report(f"after {step} steps: {right:.0%} right verdicts on held-out pairs in studio style")
            record = {"half_taught": asdict(recipe) | {"keep_after": step}, "base": asdict(base)}
            # Without times: a checkpoint that is made again must have the same checksum, which is part of the address of its runs.
            rows = [*log, *training.log, {"stage": "right verdicts", "step": step, "structured": right}]
            rows = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
            card, target = _model_card(recipe.domain, step), into / folder_after(recipe.domain, step).name

            def write(folder: Path, record: dict = record, rows: list[dict] = rows, card: str = card) -> None:
                save_checkpoint(copy_checkpoint(shipped, folder), tower, supervisor)
                save_records(folder, record, rows, card)

            write_folder(target, write, is_whole=lambda _: False)  # in place of an older one
            supervisor.language_model.train()
    return log + training.log


def _model_card(domain: str, step: int) -> str:
    return f"""# Miniature supervisor ({domain}), half taught

The shipped tower of {domain} above a language model that was taught anew and kept after {step} steps of its language stage
(`saga_study.teaching.half_taught`, `recipe.json`, `training_log.json`). For the sensitivity of SAGA to its supervisor (notebook 11).
Trained on the pre-training pool only, in studio style; the classes and the style of every benchmark are excluded.

"""
