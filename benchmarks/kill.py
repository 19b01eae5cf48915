"""What a study loses when it is killed: a smoke study is disturbed at random moments, resumed, and compared with an undisturbed one.

Each trial starts the study with two workers in folders of its own, datasets included, waits for a moment drawn from the length of an
undisturbed pass, and sends a signal: SIGKILL to the whole study's first process or to a random one of its children, or, with --signals,
Ctrl-C, SIGTERM or a closed terminal to the first. Then it looks for processes that live on, resumes the study, and compares every table
and every run's evaluation byte by byte with the undisturbed ones. Nothing hidden, partial or locked may be left.

    python benchmarks/kill.py [--trials 30] [--signals] [--only 3,7] [--seed 0] [--work FOLDER] [--output FILE]

It works on a copy of the code, so that editing goes on meanwhile. Results are kept in FOLDER/trials-*.jsonl; the same command goes on
with the trials that are missing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from saga_lib.common.files import write_json
from saga_lib.common.paths import REPOSITORY

ARGUMENTS = ("smoke", "--only", "04,99", "--methods", "pf,saga_pf", "--set", "steps=5", "--workers", "2")  # passes every stage
CODE = ("saga_lib", "saga_study", "notebooks", "results/paper", "results/tuning")  # what a study reads
LIMIT_SECONDS = 1200  # of a pass
GONE_SECONDS = 30  # in which all processes of a killed study must have ended
PATTERNS = (".*", "*.partial*", "worker.*", "error.log", "checkpoint", "*.tmp")  # of names that a finished study does not have
CODES = {"INT": 130, "TERM": 143, "HUP": 129}  # exit codes by signal, 128 and its number
TIMES = ("seconds", "seconds per run")  # columns of tables, and a run's entry, that no two passes have in common
CACHES = ("torchinductor_*",)  # temporary files that libraries share between processes and keep


def copy_code(folder: Path) -> Path:
    """Copy what a study reads into a folder (once) and return it."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in CODE:
            shutil.copytree(REPOSITORY / name, partial / name, ignore=shutil.ignore_patterns("__pycache__", "*_after_*", ".half-taught-*"))
        shutil.copy2(REPOSITORY / "pyproject.toml", partial)
        partial.rename(folder)
    return folder


@dataclass
class Place:
    """A folder in which a study has its results, its datasets and its temporary files, all its own."""

    folder: Path
    tree: Path  # of the code
    results: Path = field(init=False)
    data: Path = field(init=False)
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.results, self.data, self.scratch = (self.folder / name for name in ("results", "data", "tmp"))
        self.scratch.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, name: str = "study", terminal: int | None = None, script: Path | None = None) -> subprocess.Popen:
        """Start the study's command, or a script, as the leader of a session of its own.

        What it prints goes to files called `name`, or to `terminal`, a file descriptor, which controls it then.
        """
        environment = os.environ | {
            "SAGA_RESULTS": str(self.results), "SAGA_DATA": str(self.data), "TMPDIR": str(self.scratch), "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }  # fmt: skip
        command = [sys.executable, *(["-m", "saga_study"] if script is None else [str(script)]), *arguments]
        if terminal is not None:
            command = [sys.executable, "-c", _TAKE_TERMINAL, *command]
        with open(self.folder / f"{name}.out", "ab") as out, open(self.folder / f"{name}.err", "ab") as err:
            return subprocess.Popen(
                command, cwd=self.tree, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL if terminal is None else terminal, stdout=out if terminal is None else terminal,
                stderr=err if terminal is None else terminal,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Return all living processes that were started here, by their environment; orphans, too."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("SAGA_RESULTS") == str(self.results):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def seconds_until_gone(self) -> float | None:
        """Wait until no process is left and return how long it took; None if some live on, which are then killed."""
        started = time.monotonic()
        while living := self.processes():
            if time.monotonic() - started > GONE_SECONDS:
                for process in living:
                    process.kill()
                return None
            time.sleep(0.3)
        return round(time.monotonic() - started, 1)

    def said(self, name: str = "study") -> list[str]:
        """Return the lines that a command has written to stderr."""
        path = self.folder / f"{name}.err"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []

    def studies(self) -> list[Path]:
        return sorted(path.parent for path in self.results.glob("*/manifest.json"))

    def stage(self) -> str:
        """Return what a study is doing, as its files show it."""
        if not (studies := self.studies()):
            return "start-up"
        study = studies[-1]
        if not list(self.data.glob("*/classes.json")):
            return "rendering" if list(self.data.glob("*partial*")) else "start-up"
        if (study / "report.html").is_file():
            return "report"
        if requests := sorted(study.glob(".executing/*/request.json")):
            sources = [json.loads(path.read_text() or "{}").get("source", "") for path in requests]
            return "report" if any("99_" in source for source in sources) else "notebook"
        runs = [path for path in study.glob("runs/*") if path.is_dir()]
        if not runs:
            return "rendering"
        if any((run / "checkpoint").is_dir() for run in runs):
            return "training, checkpoints"
        return "training" if any((run / "metrics.jsonl").is_file() for run in runs) else "loading models"

    def leftovers(self) -> list[str]:
        """Return what a finished study should not have left: hidden or partial files, locks, logs of workers, temporary files."""
        found = [path for root in (self.results, self.data) for pattern in PATTERNS for path in root.rglob(pattern)]
        found += [path for path in self.scratch.iterdir() if not any(path.match(cache) for cache in CACHES)]
        return sorted({os.path.relpath(path, self.folder) for path in found})


# Makes what is its standard input the terminal that controls it, as a login shell has it, then becomes the command.
_TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where this benchmark itself runs under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def made(study: Path) -> dict[str, str]:
    """Return a digest of every table and of every run's evaluation, times left out, by name."""
    contents = {f"tables/{path.name}": _timeless(path) for path in study.glob("tables/*")}
    for path in study.glob("runs/*/evaluation.json"):
        content = {key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES}
        contents[f"runs/{path.parent.name}"] = json.dumps(content).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _timeless(table: Path) -> bytes:
    """Return the bytes of a table, its columns of times left out."""
    content = table.read_bytes()
    rows = list(csv.reader(io.StringIO(content.decode("utf-8")))) if table.suffix == ".csv" else []
    times = {number for number, name in enumerate(rows[0] if rows else ()) if name in TIMES}
    if not times:
        return content
    return json.dumps([[cell for number, cell in enumerate(row) if number not in times] for row in rows]).encode()


def manifest_of(study: Path) -> dict:
    """Return a study's manifest without what is its own: its id and its times."""
    manifest = json.loads((study / "manifest.json").read_text())
    return {name: value for name, value in manifest.items() if name not in ("study", "started", "wall_seconds", "hardware")}


def differences(study: Path, alone: Path) -> list[str]:
    """Return the names of tables, runs and entries of the manifest that differ between two studies."""
    pairs = ((made(study), made(alone)), (manifest_of(study), manifest_of(alone)))
    return [name for mine, other in pairs for name in sorted({*mine, *other}) if mine.get(name) != other.get(name)]


def undisturbed(work: Path, tree: Path) -> tuple[Path, float]:
    """Return a study that nothing disturbed and how many seconds it took (run once, then kept)."""
    place, record = Place(work / "alone", tree), work / "alone.json"
    if not record.is_file():
        shutil.rmtree(place.folder)
        place = Place(work / "alone", tree)
        started = time.monotonic()
        if (code := place.start(*ARGUMENTS).wait(LIMIT_SECONDS)) != 0:
            raise SystemExit(f"the undisturbed study ended with {code}: {place.said()[-3:]}")
        write_json(record, {"seconds": time.monotonic() - started, "leftovers": place.leftovers()})
    return place.studies()[0], json.loads(record.read_text())["seconds"]


def disturb(place: Place, leader: subprocess.Popen, kind: str, rng: random.Random, terminal: int | None) -> dict:
    """Send a study's process, or one of its children, a signal; return to whom."""
    # the main process of the study is the session's leader; a terminal's Ctrl-C reaches its whole group
    process = psutil.Process(leader.pid)
    if kind == "KILL child" and (children := process.children(recursive=True)):
        child = rng.choice(sorted(children, key=lambda each: each.pid))
        try:
            whom = " ".join(part for part in child.cmdline()[1:3] if part != "-m")  # the module
            child.kill()
            return {"whom": whom}
        except psutil.Error:
            return {"whom": "a child that had just ended"}
    if kind == "HUP":
        os.close(terminal)
    elif kind == "INT":
        os.killpg(leader.pid, signal.SIGINT)
    else:
        leader.send_signal(signal.SIGTERM if kind == "TERM" else signal.SIGKILL)
    return {"whom": "leader"}


def trial(number: int, kind: str, moment: float, rng: random.Random, alone: Path, work: Path, tree: Path) -> dict:
    """Disturb a study at a moment (seconds), resume it and return what came of it; `faults` is empty if nothing was lost."""
    shutil.rmtree(work / f"trial-{number}", ignore_errors=True)
    place = Place(work / f"trial-{number}", tree)
    master, slave = os.openpty() if kind == "HUP" else (None, None)
    leader = place.start(*ARGUMENTS, terminal=slave)
    if slave is not None:
        os.close(slave)
    started, ended = time.monotonic(), False
    while time.monotonic() - started < moment and not (ended := leader.poll() is not None):
        if master is not None:
            _drain(master)
        time.sleep(0.02)
    row = {"number": number, "kind": kind, "moment": round(moment, 2), "stage": "after the end" if ended else place.stage()}
    row |= disturb(place, leader, kind, rng, master) if not ended else {"whom": "nobody"}
    faults: list[str] = []
    at_once = kind == "KILL leader" and number % 4 == 0  # resumed while children of the killed one may still be ending
    try:
        row["code"] = leader.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        faults.append("the first process does not end")
        leader.kill()
    row["last_line"] = (place.said() or [""])[-1]
    if not ended:
        faults += judge_end(kind, row, place)
    if not at_once:
        row["gone_after"] = place.seconds_until_gone()
        faults += ["processes lived on"] if row["gone_after"] is None else []
    done = {path: path.stat().st_mtime_ns for study in place.studies() for path in study.glob("runs/*/encoder/model.safetensors")
            if (path.parent.parent / "evaluation.json").is_file()}  # fmt: skip
    began = time.monotonic()
    resume = ("--resume", "LATEST") if place.studies() else ()
    code = place.start(*ARGUMENTS[:1], *resume, *(ARGUMENTS[1:] if not resume else without_set()), name="resumed").wait(LIMIT_SECONDS)
    row |= {"resumed_at_once": at_once, "resume_seconds": round(time.monotonic() - began, 1)}
    if code:
        faults.append(f"resuming ended with {code}: {(place.said('resumed') or [''])[-1]}")
    faults += ["processes of the resumed study lived on"] if place.seconds_until_gone() is None else []
    faults += ["a finished run was trained again"] if any(path.stat().st_mtime_ns != at for path, at in done.items()) else []
    if len(studies := place.studies()) != 1:
        faults.append(f"{len(studies)} studies")
    faults += [f"differs: {name}" for name in differences(studies[-1], alone)]
    faults += [f"left behind: {name}" for name in place.leftovers()]
    row["faults"] = faults
    if not faults:
        shutil.rmtree(place.folder)
    return row


def judge_end(kind: str, row: dict, place: Place) -> list[str]:
    """Return what is wrong with how a disturbed study ended: its exit code, its last line."""
    faults, lines = [], place.said()
    if any(line.startswith("Traceback") for line in lines):
        faults.append("a traceback")
    if kind in CODES:
        if row["code"] != CODES[kind]:
            faults.append(f"exit code {row['code']}, not {CODES[kind]}")
        if kind != "HUP" and not (row["last_line"].startswith("interrupted") and ("--resume" in row["last_line"] or not place.studies())):
            faults.append(f"the last line does not say how to go on: {row['last_line']}")
        if place.studies() and (status := manifest_of(place.studies()[-1])["status"]) not in ("interrupted", "ok"):
            faults.append(f"status {status}")
    elif kind == "KILL child" and row["whom"] != "leader" and row["code"] and not row["last_line"].startswith("error: "):
        faults.append(f"the last line is no error: {row['last_line']}")
    return faults


def without_set() -> list[str]:
    """Return the arguments with which a study is resumed: --set stays with the study."""
    arguments = list(ARGUMENTS[1:])
    at = arguments.index("--set") if "--set" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def _drain(terminal: int) -> None:
    """Read what a terminal shows, so that its programs are never kept waiting."""
    os.set_blocking(terminal, False)
    try:
        os.read(terminal, 65536)
    except OSError:
        pass


def plan_trials(count: int, signals: bool, seconds: float, seed: int) -> list[tuple[int, str, float]]:
    """Return (number, kind, moment in seconds) of each trial: moments are drawn one from each of `count` equal parts of a pass."""
    rng = random.Random(seed)
    kinds = list(CODES) if signals else ["KILL leader", "KILL child"]
    moments = [seconds * (part + rng.random()) / count for part in range(count)]
    return [(number, kinds[number % len(kinds)], moment) for number, moment in enumerate(moments)]


def summary(rows: list[dict]) -> dict:
    """Return how many trials lost nothing, by kind and by stage."""
    good = [row for row in rows if not row["faults"]]
    count = {name: Counter(row[name] for row in rows) for name in ("kind", "stage")}
    right = {name: Counter(row[name] for row in good) for name in ("kind", "stage")}
    return {
        "trials": len(rows), "nothing_lost": len(good),
        **{f"by_{name}": {key: f"{right[name][key]} of {number}" for key, number in count[name].items()} for name in count},
        "slowest_end_of_all_processes": max((row.get("gone_after") or 0 for row in rows), default=0),
        "resume_seconds": [min(times), max(times)] if (times := [row["resume_seconds"] for row in rows]) else [],
    }  # fmt: skip


def print_table(rows: list[dict]) -> None:
    print(f"{'':>3} {'signal':12} {'s':>6} {'stage':22} {'code':>5} {'gone':>5} {'resume':>7}  faults")
    for row in rows:
        gone = "" if (after := row.get("gone_after")) is None else f"{after:.1f}"
        print(
            f"{row['number']:3} {row['kind']:12} {row['moment']:6.1f} {row['stage']:22} {row.get('code', ''):>5} {gone:>5} "
            f"{row['resume_seconds']:7.1f}  {'; '.join(row['faults']) or 'none'}" + (f" ({row['whom']})" if "child" in row["kind"] else "")
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30, help="moments, one in each of as many equal parts of a pass")
    parser.add_argument("--signals", action="store_true", help="Ctrl-C, SIGTERM and a closed terminal in turn, in place of SIGKILL")
    parser.add_argument("--only", type=lambda text: {int(part) for part in text.split(",")}, help="these trials, by number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of the copy of the code and of the trials (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    work = (options.work or Path(tempfile.mkdtemp(prefix="saga-kill-"))).absolute()
    tree = copy_code(work / "tree")
    alone, seconds = undisturbed(work, tree)
    print(f"one undisturbed pass: {seconds:.0f} s", flush=True)
    kept = work / f"trials-{'signals' if options.signals else 'kill'}.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    for number, kind, moment in plan_trials(options.trials, options.signals, seconds, options.seed):
        if number in {row["number"] for row in rows} or (options.only and number not in options.only):
            continue
        rows.append(trial(number, kind, moment, random.Random(f"{options.seed} {number}"), alone, work, tree))
        with open(kept, "a", encoding="utf-8") as log:
            log.write(json.dumps(rows[-1]) + "\n")
        print(f"{len(rows)}: {rows[-1]['kind']} {rows[-1]['stage']}: {rows[-1]['faults'] or 'nothing lost'}", flush=True)
    rows.sort(key=lambda row: row["number"])
    print_table(rows)
    result = {"arguments": " ".join(ARGUMENTS), "undisturbed_seconds": round(seconds, 1), "seed": options.seed} | summary(rows)
    print(json.dumps(result, indent=1))
    if options.output:
        write_json(options.output, result | {"rows": [{name: row[name] for name in row if name != "last_line"} for row in rows]})
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
