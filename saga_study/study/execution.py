"""Carry out a plan: its runs in parallel, then its notebooks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import CLOSED, FULL, SagaError, cannot_write
from saga_lib.common.files import remove_leftovers, write_text
from saga_lib.common.paths import REPOSITORY
from saga_study.commands import MENDABLE, interrupted_code
from saga_study.design.minutes import expected_minutes
from saga_study.parameters import executed_inputs, source_digest
from saga_study.paths import is_complete, results_root, study_folder
from saga_study.processes import count_cores, only_one_process
from saga_study.runs.children import Child, RunFailed, stop
from saga_study.runs.packing import pack_logs
from saga_study.runs.processes import child_environment, default_workers, on_cpu
from saga_study.runs.progress import ProgressLine, show_duration, tell
from saga_study.runs.queue import run_queue
from saga_study.runs.store import run_folder
from saga_study.study.listing import describe_left_out
from saga_study.study.manifest import check_unchanged, data_checksums, reserve_folder, start_manifest, write_manifest
from saga_study.study.plan import Execution, Plan, notebooks_at_once


def run_study(plan: Plan, manifest: dict | None = None) -> int:
    """Start a study, or continue the one of `manifest`: its runs, then its notebooks. Returns the exit code.

    0 means done, 2 an error that the user can mend, 130 Ctrl-C, 143 SIGTERM, 129 a closed terminal, 1 any other error, whose details
    are in `error.log`. Finished runs and notebooks stay in any case.
    """
    begins = "starts" if manifest is None else "continues"
    manifest = reserve_folder(start_manifest(plan)) if manifest is None else manifest
    study, folder = manifest["study"], study_folder(manifest["study"])
    started, spent = time.monotonic(), manifest["wall_seconds"]
    with only_one_process(folder / ".lock", f"study {study}"):
        if begins == "continues":
            check_unchanged(manifest)
        manifest |= {name: list(getattr(plan, name)) for name in ("datasets", "methods")}
        manifest |= {"seeds": {name: list(seeds) for name, seeds in plan.seeds.items()}, "full": plan.full, "status": "running"}
        write_manifest(manifest)  # from here on the study can be resumed
        status, code = "failed", 1
        try:
            _remove_leftovers(plan, folder)
            write_text(results_root() / "LATEST", study + "\n")
            tell(f"study {study} {begins} in {folder}")
            if line := describe_left_out(plan, study, plan.workers or default_workers()):
                tell(line)
            _carry_out_plan(plan, manifest)
            status, code = "ok", 0
        except KeyboardInterrupt as interrupt:
            status, code = "interrupted", interrupted_code(interrupt)
            say(f"interrupted; continue with {_resume(plan, study)}")
        except Exception as error:  # noqa: BLE001  (one line here, the rest in error.log)
            code = _report_failure(error, folder, _resume(plan, study))
        finally:
            manifest |= {"status": status, "wall_seconds": round(spent + time.monotonic() - started)}
            with contextlib.suppress(SagaError):  # a full disk has been reported already
                write_manifest(manifest)
    if code == 0:
        report = folder / "report.html"
        tell(f"done in {show_duration(time.monotonic() - started)}: {report if report.is_file() else folder}")
    return code


def _remove_leftovers(plan: Plan, folder: Path) -> None:
    """Remove the unfinished files of killed processes; where nodes may be at work on unfinished runs, each run is left to its task."""
    if not plan.cluster:
        return remove_leftovers(folder)
    for part in folder.iterdir():
        for place in part.iterdir() if part.name == "runs" else [part]:
            if place.is_dir() and (part.name != "runs" or is_complete(place)):
                remove_leftovers(place)


def say(line: str) -> None:
    """Print a line on stderr at once."""
    tell(line, sys.stderr)


def _resume(plan: Plan, study: str) -> str:
    """Return the command that goes on with a study."""
    return f"./run_all.sh {plan.profile} --resume {study}"


def _report_failure(error: Exception, folder: Path, resume: str) -> int:
    """Say in one line what stopped a study and return its exit code; all that is known of an unforeseen error goes to `error.log`."""
    if isinstance(error, OSError) and error.errno in FULL + CLOSED:
        error = cannot_write(error.filename or folder, error)
    if isinstance(error, SagaError):
        say(f"error: {error}; after mending it, continue with {resume}")
        return MENDABLE
    log, reason = folder / "error.log", str(error).strip()
    with contextlib.suppress(SagaError):  # the disk may be full
        write_text(log, error.log if isinstance(error, RunFailed) else traceback.format_exc())
    kind = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
    say(f"error: {kind}{reason.splitlines()[0] if reason else ''}; details in {log}")
    return 1


def _carry_out_plan(plan: Plan, manifest: dict) -> None:
    from saga_study.teaching import half_taught

    study, runs = manifest["study"], plan.runs
    (study_folder(study) / "error.log").unlink(missing_ok=True)  # of an earlier attempt
    if runs:
        tell("preparing the benchmarks (rendered once, then kept in data/)")
        half_taught.make_missing({run.supervisor for run in runs}, report=tell)
        manifest["data"] |= data_checksums(runs)
        write_manifest(manifest)
        run_queue(
            runs, study, plan.workers, expected_minutes, cluster=plan.cluster, ranks=plan.ranks, track=plan.track, first=plan.shown_first(),
        )  # fmt: skip
        pack_logs(study)  # before notebooks read them, so that they read the same when they are executed again
    try:
        _execute_notebooks(plan, manifest)
    finally:
        pack_logs(study)


@dataclass(frozen=True)
class _Running:
    """A notebook that a child process executes."""

    title: str
    target: Path
    child: Child

    def seconds(self) -> float:
        return time.monotonic() - self.child.started


def _execute_notebooks(plan: Plan, manifest: dict) -> None:
    """Execute a study's notebooks, on CPUs as many at a time as there are workers; one that sums up the others waits for them.

    The first that fails ends it: those that run beside it are stopped, and executed again when the study continues.
    """
    folder = study_folder(manifest["study"])
    scratch = folder / ".executing"  # on the same disk as the result
    shutil.rmtree(scratch, ignore_errors=True)  # a killed study leaves it behind
    executions, at_once = plan.executions(manifest["study"]), notebooks_at_once(plan)
    waiting, running, line = list(enumerate(executions, 1)), [], ProgressLine()
    try:
        while waiting or running:
            while waiting and len(running) < at_once and not (running and waiting[0][1].notebook.sums_up):
                number, execution = waiting.pop(0)
                target = folder / "notebooks" / execution.file_name
                title, inputs = f"notebook {number}/{len(executions)} {target.stem}", _inputs_digest(execution, plan, folder)
                if executed_inputs(target) == inputs:
                    tell(f"{title}: nothing changed, kept")
                    _note(manifest, target)  # it may have ended just when this study was killed
                    continue
                line.note(f"{title}: about {show_duration(execution.minutes * 60)}")
                running.append(_Running(title, target, _start(execution, target, inputs, scratch / str(number))))
            time.sleep(0.2)
            line.update(" | ".join(f"{one.title}: {show_duration(one.seconds())}" for one in running))
            for one in [one for one in running if one.child.has_ended()]:
                one.child.check()
                running.remove(one)
                line.note(f"{one.title}: took {show_duration(one.seconds())}")
                _note(manifest, one.target)
    finally:
        line.close()
        stop([one.child for one in running])
        shutil.rmtree(scratch, ignore_errors=True)


def _note(manifest: dict, notebook: Path) -> None:
    """Add an executed notebook to the manifest."""
    manifest["notebooks"] = sorted({*manifest["notebooks"], notebook.stem})
    write_manifest(manifest)


def _start(execution: Execution, target: Path, inputs: str, scratch: Path) -> Child:
    """Start the execution of a notebook. `scratch` is a folder for unfinished files; `target` appears when every cell has succeeded."""
    profile = execution.parameters["PROFILE"]
    request = {
        "source": str(execution.notebook.path), "target": str(target), "parameters": execution.parameters, "inputs": inputs,
        "scratch": str(scratch), "parent": os.getpid(),
    }  # fmt: skip
    environment = child_environment(profile, threads=1 if on_cpu(profile) else count_cores())
    command = ["saga_study.study.papermill", str(scratch / "request.json")]
    return Child(f"notebook {target.stem}", command, request, scratch / "output.log", environment)


def _inputs_digest(execution: Execution, plan: Plan, folder: Path) -> str:
    """Return a digest of all that an executed notebook depends on.

    That is its source, its parameters, the code it may call and the runs it needs; for one that sums up the others, also all files
    that these have made.
    """
    parts: list[object] = [source_digest(execution.notebook.path), execution.parameters, _library_digest()]
    parts.append([run_folder(folder.name, config).name for config in plan.runs_of(execution.notebook)])
    if execution.notebook.sums_up:
        made = [path for kind in ("notebooks", "tables", "figures") for path in folder.glob(f"{kind}/[!.]*")]
        others = sorted(path for path in made if path.name != execution.file_name)
        parts.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in others])
        parts.append(sorted(path.parent.name for path in folder.glob("runs/*/evaluation.json")))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _library_digest() -> str:
    """Return a digest of the code that a notebook may call, which is all but the folder of this module."""
    roots = (REPOSITORY / "saga_lib", REPOSITORY / "saga_study")
    kinds = ("*.py", "*.yaml", "*.css", "*.html", "*.js", "*.jinja")
    used = [path for root in roots for kind in kinds for path in sorted(root.rglob(kind))]
    orchestration = REPOSITORY / "saga_study" / "study"
    return hashlib.sha256(b"".join(path.read_bytes() for path in used if orchestration not in path.parents)).hexdigest()[:12]
