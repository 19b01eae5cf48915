"""Carry a plan out: runs in parallel, then notebooks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json, write_text
from saga_lib.common.paths import REPOSITORY
from saga_lib.common.processes import count_cores, only_one_process
from saga_study.design.minutes import expected_minutes
from saga_study.paths import results_root, study_folder
from saga_study.runs.packing import pack_logs
from saga_study.runs.processes import PATIENCE_SECONDS, RunFailed, child_environment, default_workers, on_cpu
from saga_study.runs.progress import ProgressLine, show_duration
from saga_study.runs.queue import run_queue
from saga_study.runs.store import run_folder
from saga_study.study.listing import describe_left_out
from saga_study.study.manifest import data_checksums, start_manifest, write_manifest
from saga_study.study.parameters import executed_inputs, source_digest
from saga_study.study.plan import Execution, Plan, notebooks_at_once

# ------------------------------------------------------------------------------------------------- carry it out


def run_study(plan: Plan, manifest: dict | None = None) -> int:
    """Start a study, or go on with the one of `manifest`: its runs, then its notebooks. Returns the exit code."""
    is_new = manifest is None
    manifest = start_manifest(plan) if is_new else manifest
    study, folder = manifest["study"], study_folder(manifest["study"])
    started, spent = time.monotonic(), manifest["wall_seconds"]
    with only_one_process(folder / ".lock", f"study {study}"):
        manifest |= {name: list(getattr(plan, name)) for name in ("datasets", "methods")}
        manifest |= {"seeds": {name: list(seeds) for name, seeds in plan.seeds.items()}, "full": plan.full, "status": "running"}
        write_manifest(manifest)
        write_text(results_root() / "LATEST", study + "\n")
        print(f"study {study} {'starts' if is_new else 'goes on'} in {folder}")
        if line := describe_left_out(plan, study, plan.workers or default_workers()):
            print(line)
        status, code = "failed", 1
        try:
            _carry_out_plan(plan, manifest)
            status, code = "ok", 0
        except SagaError as error:
            code = 2
            say(f"error: {error}; after mending it, go on with {_resume_command(plan, study)}")
        except KeyboardInterrupt:
            status, code = "interrupted", 130
            say(f"interrupted; go on with {_resume_command(plan, study)}")
        except Exception as error:  # noqa: BLE001  (told in one line here, kept in full in error.log)
            detail = error.log if isinstance(error, RunFailed) else traceback.format_exc()
            with contextlib.suppress(SagaError):
                write_text(folder / "error.log", detail)
            reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error).strip()
            kind = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
            say(f"error: {kind}{reason.splitlines()[0] if reason else ''}; details in {folder / 'error.log'}")
        finally:
            manifest |= {"status": status, "wall_seconds": round(spent + time.monotonic() - started)}
            with contextlib.suppress(SagaError):  # a full disk has been reported already
                write_manifest(manifest)
    if code == 0:
        (folder / "error.log").unlink(missing_ok=True)
        report = folder / "report.html"
        print(f"done in {show_duration(time.monotonic() - started)}: {report if report.is_file() else folder}")
    return code


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _resume_command(plan: Plan, study: str) -> str:
    return f"./run_all.sh {plan.profile} --resume {study}"


def _carry_out_plan(plan: Plan, manifest: dict) -> None:
    from saga_study.teaching import half_taught

    study, runs = manifest["study"], plan.runs
    if runs:
        print("preparing the benchmarks (rendered once, then kept in data/)")
        half_taught.make_missing({run.supervisor for run in runs})
        manifest["data"] |= data_checksums(runs)
        write_manifest(manifest)
        run_queue(runs, study, plan.workers, expected_minutes)
        pack_logs(study)  # before notebooks read them, so that they read the same when they are executed again
    try:
        _execute_notebooks(plan, manifest)
    finally:
        pack_logs(study)


def _execute_notebooks(plan: Plan, manifest: dict) -> None:
    """Execute a study's notebooks, on CPUs as many at a time as there are workers; what sums up the others waits for them.

    The first that fails ends it: what is being executed beside it is stopped, and executed again when the study goes on.
    """
    folder = study_folder(manifest["study"])
    at_once = notebooks_at_once(plan)
    scratch = folder / ".executing"  # on the same disk as the result
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed study left
    executions = plan.executions(manifest["study"])
    waiting, going = list(enumerate(executions, 1)), []
    line = ProgressLine()
    try:
        while waiting or going:
            while waiting and len(going) < at_once and not (going and waiting[0][1].notebook.sums_up):
                number, execution = waiting.pop(0)
                target = folder / "notebooks" / execution.file_name
                title = f"notebook {number}/{len(executions)} {target.stem}"
                inputs = _inputs_digest(execution, plan, folder)
                if executed_inputs(target) == inputs:
                    print(f"{title}: nothing changed, kept", flush=True)
                    continue
                line.note(f"{title}: about {show_duration(execution.minutes * 60)}")
                going.append(_Executing(execution, target, inputs, scratch / str(number), title))
            time.sleep(0.2)
            line.update(" | ".join(f"{one.title}: {show_duration(time.monotonic() - one.started)}" for one in going))
            for one in [one for one in going if one.child.poll() is not None]:
                one.finish()
                going.remove(one)
                line.note(f"{one.title}: took {show_duration(time.monotonic() - one.started)}")
                manifest["notebooks"] = sorted({*manifest["notebooks"], one.target.stem})
    finally:
        line.close()
        for one in going:
            one.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _inputs_digest(execution: Execution, plan: Plan, folder: Path) -> str:
    """Return a digest of all that an executed notebook depends on.

    That is its source, its parameters, the library (also the part that only draws) and the runs it needs; for
    the one that sums up, everything the others left.
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
    """Return a digest of the modules a notebook may call; those that only orchestrate do not matter to it."""
    roots = (REPOSITORY / "saga_lib", REPOSITORY / "saga_study")
    used = [path for root in roots for kind in ("*.py", "*.yaml", "*.css", "*.html") for path in sorted(root.rglob(kind))]
    orchestration = REPOSITORY / "saga_study" / "study"
    return hashlib.sha256(b"".join(path.read_bytes() for path in used if orchestration not in path.parents)).hexdigest()[:12]


class _Executing:
    """A notebook that a child process executes."""

    def __init__(self, execution: Execution, target: Path, inputs: str, scratch: Path, title: str) -> None:
        """Start it: `scratch` is a folder of its own for what is unfinished, `target` appears when every cell has succeeded."""
        self.target, self.title, self.started, self.log = target, title, time.monotonic(), scratch / "output.log"
        scratch.mkdir(parents=True, exist_ok=True)
        request = scratch / "request.json"
        write_json(request, {
            "source": str(execution.notebook.path), "target": str(target), "parameters": execution.parameters,
            "inputs": inputs, "scratch": str(scratch), "parent": os.getpid(),
        })  # fmt: skip
        threads = 1 if on_cpu(execution.parameters["PROFILE"]) else count_cores()
        with open(self.log, "wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "saga_study.study.papermill", str(request)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
                env=child_environment(execution.parameters["PROFILE"], threads),
            )  # fmt: skip

    def finish(self) -> None:
        """Raise what an ended execution failed of, if it did."""
        if not self.child.returncode:
            return
        said = self.log.read_text(encoding="utf-8", errors="replace")
        last = next((text for text in reversed(said.splitlines()) if text.strip()), f"exit code {self.child.returncode}")
        if self.child.returncode == 2 and last.startswith("error: "):
            raise SagaError(last.removeprefix("error: "))
        raise RunFailed(f"notebook {self.target.stem} failed: {last}", said)

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.terminate()  # papermill then stops its kernel
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(PATIENCE_SECONDS)
            self.child.kill()
            self.child.wait()
