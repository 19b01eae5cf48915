"""The command line of ./run_all.sh."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.paths import WORKPLACE
from saga_study import planner
from saga_study.commands import MENDABLE, CommandLine, exit_code
from saga_study.methods import METHODS, PROFILES, settings_help
from saga_study.paths import BY_HAND
from saga_study.runs.status import cancel_tasks, describe_status
from saga_study.study.checks import run_tests
from saga_study.study.cluster import add_options
from saga_study.study.execution import run_study
from saga_study.study.listing import describe_estimate, describe_fit, describe_gpus, print_list
from saga_study.study.manifest import find_study
from saga_study.study.plan import make_plan, missing_for_paper


def _comma_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = CommandLine(
        prog="./run_all.sh", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the runs a study lacks, execute its notebooks, leave a report in results/<study>/.",
        epilog="profiles:\n"
        "  smoke      everything once, at toy size, to see that it works (minutes)\n"
        "  miniature  the whole study in the miniature world, on a laptop (the default)\n"
        "  paper      the paper's scale; needs a CUDA GPU with about 80 GiB\n"
        "  test       ruff, unit tests, then the smoke study in a temporary folder\n"
        "settings of runs:\n"
        "  ./run_all.sh PROFILE --set help explains them all, with their values in that profile\n"
        "environment variables: SAGA_RESULTS, SAGA_DATA move the two folders; SAGA_ENV=active uses the active\n"
        "environment instead of .venv; SAGA_CUDA_GRAPHS=0 decodes on a GPU without CUDA graphs",
    )  # fmt: skip
    add = parser.add_argument
    add("profile", nargs="?", help="smoke | miniature | paper | test (default: miniature)")
    add("--only", type=_comma_list, default=[], metavar="04[,99]", help="these notebooks and the runs they need")
    add("--datasets", type=_comma_list, default=[], metavar="A[,B]", help="default: all of the profile")
    add("--methods", type=_comma_list, default=[], metavar="A[,B]", help=f"default: all of {', '.join(METHODS)}")
    add("--seeds", type=_comma_list, default=[], metavar="0[,1]", help="default: 0; paper: 0,1,2")
    add("--full", action="store_true", help="three to five seeds, every cell of every table, other numbers of steps, a map of worlds "
        "(hours: --list --full)")
    add("--search", action="store_true", help="train the search for settings again, whose committed log is shown otherwise "
        "(--list --search --only 04b)")
    add("--resume", metavar="STUDY", help="go on with a study, by its id or LATEST; nothing finished is redone")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of runs in place of the profile's, such as steps=200 "
        "or supervisor=/folder/of/a/model; repeatable, kept in the manifest; what defines a method stays")
    add("--cpu", action="store_true", help="hide all GPUs; profile paper then runs without one, to rehearse with a small supervisor")
    add("--workers", metavar="N", help="parallel training processes (default: one per core, paper: one per GPU)")
    add("--gpus-per-run", default="1", metavar="N", help="share each run out over N GPUs of a machine, or with miniature runs over N "
        "processes; the numbers stay those of one, up to rounding")
    add("--track", metavar="TRACKER", help="show the curves of runs while they train: tensorboard, trackio or wandb, if it is installed")
    add_options(parser)
    add("--list", action="store_true", help="print what would run and the expected minutes, then stop")
    add("--dry-run", action="store_true", help="check everything that can be checked without running, then stop; paper: "
        "with an estimate of hours, memory and disk, for which nothing needs to be there")
    add("--gpus", metavar="N", help="paper: how many GPUs --list and --dry-run plan for (default 1), one or several of them a run")
    add("--gpu-price", metavar="P", help="paper: what an hour of one GPU costs, for the costs in that plan")
    add("--gpu-memory", metavar="GIB", help=f"paper: memory of the GPU that --list and --dry-run plan for (default {planner.H200_GIB:.0f})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 1 (failed), 2 (a mistake the user can correct) or a signal's (Ctrl-C: 130)."""
    try:
        return exit_code(lambda: _carry_out(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # e.g. `--list | head`
        sys.stderr.close()
        return 1


def _carry_out(arguments: Sequence[str]) -> int:
    options, unknown = make_parser().parse_known_args(arguments)
    if unknown:
        known = [name for action in make_parser()._actions for name in action.option_strings if name[:2] == "--"]
        raise unknown_name("option", unknown[0], known)
    if options.profile == "test":
        if len(arguments) > 1:
            raise SagaError("test takes no options")
        return run_tests()
    if options.profile and options.profile not in PROFILES:
        raise unknown_name("profile", options.profile, [*PROFILES, "test"])
    manifest = None
    _check_what_stops(options)
    if options.resume:
        manifest = find_study(options.resume, options.profile)
    profile = manifest["profile"] if manifest else options.profile or "miniature"
    if "help" in options.set:
        print(settings_help(profile))
        return 0
    gpu_memory, (gpus, price) = _gpu_memory(options, profile), _gpus(options, profile)
    _choose_results_root(profile)
    if profile != "paper":
        os.environ["HF_HUB_OFFLINE"] = "1"  # only the paper's models are ever fetched
    if options.cancel:
        print(f"{cancel_tasks(manifest['study'])} jobs cancelled; continue with ./run_all.sh {profile} --resume {manifest['study']}")
        return 0
    plan = make_plan(options, profile, manifest)
    if options.status:
        print(describe_status(manifest["study"], plan.runs))
        return 0
    if plan.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for this process, which has not imported torch yet, and all that it starts
    if {"image_size", "supervisor"} & {*plan.profile.chosen}:
        for run in plan.runs:
            planner.check_image_size(run)

    def estimate() -> Iterator[str]:
        yield describe_estimate(plan, gpu_memory)
        if gpus:
            yield describe_gpus(plan, gpus, gpu_memory, price)
        yield describe_fit(plan, gpu_memory, arguments, bool(manifest))

    if options.list:
        print_list(plan, manifest)
        if profile == "paper":
            print(*estimate(), sep="\n")
        return 0
    if options.dry_run and profile == "paper":
        print(*estimate(), sep="\n")
        if problems := list(missing_for_paper(plan.datasets, not plan.needs_gpu)):
            print("\n".join(["nothing was executed, and it could not start here yet:", *(f"  {problem}" for problem in problems)]))
            return MENDABLE
    plan = plan.check()
    if options.dry_run:
        num_executions = len(plan.executions(BY_HAND))
        print(f"{len(plan.runs)} runs and {num_executions} notebooks could start; nothing was executed")
        return 0
    return run_study(plan, manifest)


def _check_what_stops(options: argparse.Namespace) -> None:
    """Raise `SagaError` for options that have no effect beside one that stops before anything is run."""
    stops = [name for name in ("cancel", "status", "list", "dry_run") if getattr(options, name)]
    flags = [f"--{name.replace('_', '-')}" for name in stops]
    if len(stops) > 1:
        raise SagaError(f"{' and '.join(flags)} each do one thing and stop: choose one")
    if not stops:
        return
    if stops[0] in ("cancel", "status") and not options.resume:
        raise SagaError(f"{flags[0]} needs the study: add --resume STUDY, by its id or LATEST")
    idle = {"list": ["track"], "dry_run": []}.get(stops[0], ["track", "workers", "cpu", "gpus_per_run"])
    for name in idle:
        if getattr(options, name) != make_parser().get_default(name):
            raise SagaError(f"--{name.replace('_', '-')} has no effect with {flags[0]}: leave it out")


def _gpu_memory(options: argparse.Namespace, profile: str) -> float:
    """Return the GiB to plan for; raises `SagaError` where nothing is planned: it is no limit that training would keep to."""
    text = options.gpu_memory
    if text is not None and not (profile == "paper" and (options.list or options.dry_run)):
        raise SagaError(
            f"--gpu-memory {text}: only ./run_all.sh paper with --list or --dry-run plans for a GPU, and training is not limited by it; "
            "leave it out, or add what is missing"
        )
    try:
        memory = planner.H200_GIB if text is None else float(text)
    except ValueError:
        memory = 0.0
    if not 0 < memory < float("inf"):
        raise SagaError(f"--gpu-memory takes GiB, such as 80, got {text!r}")
    return memory


def _gpus(options: argparse.Namespace, profile: str) -> tuple[int, float]:
    """Return how many GPUs to plan for, 0 if nobody asked, and the price of an hour; raises `SagaError` as `_gpu_memory` does."""
    plans = profile == "paper" and (options.list or options.dry_run)
    for name in ("gpus", "gpu_price"):
        if getattr(options, name) is not None and not (plans and options.gpus):
            needed = "--gpus N" if plans else "--list or --dry-run of ./run_all.sh paper"
            raise SagaError(f"--{name.replace('_', '-')} is for a plan: add {needed}, or leave it out")
    if options.gpus is None:
        return 0, 0.0
    try:
        price = float(options.gpu_price or 0)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise SagaError(f"--gpu-price takes a number, such as 2.5, got {options.gpu_price!r}")
    if not options.gpus.isdecimal() or not 0 < int(options.gpus) <= 4096:
        raise SagaError(f"--gpus takes a number of at least 1, got {options.gpus!r}")
    return int(options.gpus), price


def _choose_results_root(profile: str) -> None:
    """Keep smoke results apart from real ones, for this process and all that it starts."""
    default = WORKPLACE / ("results-smoke" if profile == "smoke" else "results")
    os.environ["SAGA_RESULTS"] = str(Path(os.environ.get("SAGA_RESULTS") or default).absolute())
