"""`python -m saga_study.runs`: train one queued run, reproduce a finished one, or compare this code with an earlier one."""

from __future__ import annotations

import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_study.commands import CommandLine
from saga_study.paths import study_folder
from saga_study.runs.children import child_exit_code
from saga_study.runs.fork_server import serve_forks
from saga_study.runs.full_devices import full_devices_explained
from saga_study.runs.reproduce import check
from saga_study.runs.same_numbers import show_same_numbers
from saga_study.runs.worker import train_requested


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for and return the exit code; after an error, the last line on stderr says what it was."""
    return child_exit_code(lambda: _work(arguments))


def _work(arguments: Sequence[str]) -> int | None:
    parser = CommandLine(prog="python -m saga_study.runs", description="Train one run, or train again to compare numbers.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("request", nargs="?", type=Path, help="train the run that this file describes, written by the queue of a study")
    work.add_argument("--check", type=Path, metavar="RUN_FOLDER", help="train a finished run again and compare every number")
    work.add_argument(
        "--same-numbers", nargs="+", metavar=("STUDY", "COMMIT"),
        help="train some runs of a study by its code and by this one; if all numbers agree, its runs keep their addresses",
    )  # fmt: skip
    work.add_argument("--serve", type=int, metavar="PARENT", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve_forks(options.serve)
    if options.request:
        return train_requested(options.request)
    with full_devices_explained(Path(tempfile.gettempdir())):  # where the comparisons write
        if options.check:
            return check(options.check)
        if len(options.same_numbers) > 2 or not (study_folder(options.same_numbers[0]) / "manifest.json").is_file():
            raise SagaError("--same-numbers takes a study by its id, such as 20261124-001557-miniature-02fee24, and perhaps a commit")
        return show_same_numbers(*options.same_numbers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
