"""`python -m saga_study.teaching`: make a miniature supervisor, as its recipe says."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from saga_lib.config import CHECKPOINTS
from saga_study.commands import CommandLine, exit_code
from saga_study.miniature.world import DOMAINS
from saga_study.teaching.checkpoints import RECIPES
from saga_study.teaching.half_taught import HalfTaughtRecipe, teach
from saga_study.teaching.pretraining import pretrain
from saga_study.teaching.prompt_tuning import PromptRecipe, tune

_KINDS = {  # of supervisors, with the names they have and what the command does
    "pretrain": (RECIPES, "pre-train a supervisor (20 minutes of one core)"),
    "prompts": (DOMAINS, "teach a pre-trained supervisor other prompts"),
    "half-taught": (DOMAINS, "make supervisors of different quality, in folders NAME_after_STEPS (16 minutes of one core)"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the supervisor that the arguments name."""
    parser = CommandLine(prog="python -m saga_study.teaching", description="Make a miniature supervisor, as its recipe says.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, (names, text) in _KINDS.items():
        one = kinds.add_parser(kind, help=text, description=text)
        one.add_argument("name", choices=names)
        where = "folder of the new checkpoint" if kind == "pretrain" else "where to make it (default: beside the shipped ones)"
        one.add_argument("--into", type=Path, required=kind == "pretrain", metavar="FOLDER", help=where)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the number of threads is part of the order of summation
    if options.kind == "pretrain":
        pretrain(RECIPES[options.name], options.into)
    elif options.kind == "prompts":
        tune(PromptRecipe(options.name), options.into or CHECKPOINTS / f"{options.name}_prompts")
    else:
        teach(HalfTaughtRecipe(options.name), into=options.into)


if __name__ == "__main__":
    sys.exit(exit_code(main))
