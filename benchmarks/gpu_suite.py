"""One session on a GPU: the tests that need one, and the benchmarks beside what they should reach, within a time limit.

    python benchmarks/gpu_suite.py [--minutes 9] [--parts step-qwen,decode,...] [--output FILE]
    python benchmarks/gpu_suite.py --dry-run       # every part at toy size on a CPU that computes as a GPU would

Parts, in the order in which they matter, each a process of its own that is ended when its time is up:

    step-qwen, step-internvl   paper_step.py: a step at 8 billion parameters, 16 pairs × 8 answers of 900 tokens, and the readings
    decode                     decode.py: the rollouts of one wave, ours and stock generate
    tests                      tests/gpu
    share                      miniature_run.py: miniature runs side by side on one card

Time that a part leaves is for those after it; a part whose time is not left is skipped, and the table says so. The result is
written after every part. Nothing is downloaded; beside torch, transformers, pandas, scipy and pytest little need be there, and the
repository need not be installed (benchmarks/stand_ins.py).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # where the packages are not installed

import pandas as pd
import torch
import transformers
from stand_ins import missing

from saga_lib.common.files import read_json, write_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.records import exact_code_digest

BENCHMARKS = REPOSITORY / "benchmarks"
LIMITS = {"step": 18.0, "reading": 4.0, "GiB": 60.0, "MFU": 0.45, "faster": 5.0}  # what is to be reached on an 80 GB card
BEFORE = {  # in the first session on an H100, benchmarks/results/h100-80gb.json
    "step-qwen": {"step": 34.4, "MFU": 0.31, "GiB": 52.6}, "step-internvl": {"step": 33.3}, "decode": {"faster": 2.6},
}  # fmt: skip
TAIL = 20  # last lines of a part's output that are kept


class Number(NamedTuple):
    """A measured number; `limit` is what it should reach, with "<=" or ">=" before it, or empty."""

    what: str
    value: float
    limit: str = ""
    before: float | None = None  # what was measured on an H100 in the first session

    @property
    def is_met(self) -> bool | None:
        if not self.limit:
            return None
        kind, limit = self.limit.split()
        return self.value <= float(limit) if kind == "<=" else self.value >= float(limit)


@dataclass(frozen=True)
class Part:
    """A benchmark as a process: its command on a GPU and, for a dry run, on a CPU, and what is read from the file it writes."""

    seconds: float  # that it may take, by default
    command: Sequence[str]  # after python; {output} is a JSON file
    dry: Sequence[str]
    read: Callable[[str, dict], list[Number]]  # (name of the part, content of the file)
    needs: str = ""  # a package


def read_step(name: str, result: dict) -> list[Number]:
    """Return seconds of a step without the reading, which is another signal, the reading's, the replay's MFU, and the largest peak."""
    rows, before = {row["phase"]: row for row in result["phases"]}, BEFORE[name]
    seconds = sum(row["seconds"] for phase, row in rows.items() if phase not in ("step", "C reading"))
    return [
        Number("seconds of a step", seconds, f"<= {LIMITS['step']}", before.get("step")),
        Number("seconds of its rollouts", rows["B"]["seconds"]),
        Number("seconds of its replay", rows["C replay"]["seconds"]),
        Number("MFU of the replay", rows["C replay"]["MFU"], f">= {LIMITS['MFU']}", before.get("MFU")),
        Number("seconds of reading its images", rows["C reading"]["seconds"], f"<= {LIMITS['reading']}"),
        Number("largest peak, GiB", rows["step"]["GiB"] or 0.0, f"<= {LIMITS['GiB']}", before.get("GiB")),
    ]


def read_decode(name: str, result: dict) -> list[Number]:
    """Return how many times as fast as stock generate the last of our ways is, its ms a step, and the largest peak."""
    stock, ours = result["sides"][0], result["sides"][-1]
    return [
        Number("stock generate / ours", stock["seconds"] / ours["seconds"], f">= {LIMITS['faster']}", BEFORE[name]["faster"]),
        Number("ms a step, ours", ours["ms a step"]),
        Number("same greedy tokens as stock", ours["same greedy tokens"]),
        Number("nats where they first differ", ours["gap"]),
        Number("largest peak, GiB", max(side["GiB"] or 0.0 for side in result["sides"]), f"<= {LIMITS['GiB']}"),
    ]


def read_tests(_: str, result: dict) -> list[Number]:
    """Return how many tests passed, failed and were skipped."""
    return [
        Number("tests that fail", result["failed"], "<= 0"), Number("tests that pass", result["passed"], ">= 1"),
        Number("tests that are skipped", result["skipped"]),
    ]  # fmt: skip


def read_share(_: str, result: dict) -> list[Number]:
    """Return steps per second of one run and of several at once."""
    return [Number(f"steps a second of {row['runs']:.0f} run(s)", row["steps/s"]) for row in result["rows"]] + [
        Number("gain of running together", result["rows"][-1]["gain"])
    ]


_STEP, _DECODE = "benchmarks/paper_step.py", "benchmarks/decode.py"
_INTERNVL = ["--supervisor", "OpenGVLab/InternVL3_5-8B-HF"]
_TESTS = ["benchmarks/gpu_suite.py", "--tests"]
_WRITE, _TINY = ["--output", "{output}"], ["--tiny", "--cpu"]
PARTS = {
    "step-qwen": Part(105, [_STEP, "--warm-up", "64", *_WRITE], [_STEP, "--warm-up", "8", *_TINY, *_WRITE], read_step),
    "decode": Part(85, [_DECODE, "--answer", "200", "--skip", "growing,fixed", *_WRITE], [_DECODE, *_TINY, *_WRITE], read_decode),
    "tests": Part(190, [*_TESTS, "{output}"], [*_TESTS, "{output}", "--dry-run"], read_tests, needs="pytest"),
    "step-internvl": Part(
        90, [_STEP, *_INTERNVL, "--warm-up", "64", *_WRITE], [_STEP, *_INTERNVL, "--repeats", "0", *_TINY, *_WRITE], read_step
    ),
    "share": Part(
        70, ["benchmarks/miniature_run.py", "share", "--runs", "1,4", *_WRITE],
        ["benchmarks/miniature_run.py", "share", "--runs", "2", "--steps", "3", "--cpu", *_WRITE], read_share,
    ),
}  # fmt: skip


def run_tests(output: Path, dry: bool) -> int:
    """Run tests/gpu with pytest and write how many passed; a file is there from the first test on, so that a cut leaves numbers."""
    environment = os.environ | {"SAGA_GPU_TESTS": "cpu" if dry else "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed: list[str] = []
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        print(line, end="", flush=True)
        if outcome := re.match(r"(tests/gpu/.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            kind = {"ERROR": "failed"}.get(outcome[2], outcome[2].lower())
            counts[kind] += 1
            failed += [outcome[1]] * (kind == "failed")
            write_json(output, counts | {"failures": failed})
    if process.wait() and not counts["failed"]:  # nothing could even be collected
        write_json(output, counts | {"failed": 1, "failures": [f"pytest ended with {process.returncode}"]})
    return process.returncode


def run_part(name: str, part: Part, dry: bool, seconds: float, work: Path) -> dict:
    """Run a part for at most so many seconds and return its record: outcome, seconds, result, the last lines of its output."""
    if part.needs and find_spec(part.needs) is None:
        return {"outcome": "skipped", "why": f"{part.needs} is not there", "seconds": 0.0}
    output, log = work / f"{name}.json", work / f"{name}.log"
    command = [sys.executable, *(word.replace("{output}", str(output)) for word in (part.dry if dry else part.command))]
    started, outcome, why = time.perf_counter(), "done", ""
    with open(log, "wb") as file:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )  # fmt: skip
        try:
            if code := process.wait(seconds):
                outcome, why = "failed", f"it ended with {code}"
        except subprocess.TimeoutExpired:
            outcome, why = "cut", f"it took more than {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children too
            process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    record = {"outcome": outcome, "why": why, "seconds": round(time.perf_counter() - started, 1), "output": lines[-TAIL:]}
    return record | ({"result": read_json(output)} if output.is_file() else {})


def numbers_of(records: Mapping[str, dict]) -> dict[str, list[Number]]:
    """Return the numbers of each part that left a result."""
    return {name: PARTS[name].read(name, record["result"]) for name, record in records.items() if "result" in record}


def describe(records: Mapping[str, dict], dry: bool = False) -> str:
    """Return the table: a row for each number, and one for each part that did not end well. A toy's numbers meet no bar."""
    rows, numbers = [], numbers_of(records)
    for name, record in records.items():
        for number in numbers.get(name, []):
            met = "" if number.is_met is None else "toy" if dry else "yes" if number.is_met else "NO"
            before = "" if number.before is None else f"{number.before:g}"
            rows.append((name, number.what, f"{number.value:.3g}", number.limit, met, before))
        if record["outcome"] != "done":
            rows.append((name, f"{record['outcome']}: {record['why']}", "", "", "NO", ""))
    return pd.DataFrame(rows, columns=["part", "what", "number", "bar", "met", "H100 before"]).to_string(index=False)


def machine(dry: bool) -> dict[str, object]:
    """Return what the numbers were measured on and with."""
    on_gpu = torch.cuda.is_available() and not dry
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else "CPU, at toy size", "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(), "code": exact_code_digest(),
        "date": time.strftime("%Y-%m-%d"), "stood in for": missing(),
    }  # fmt: skip


def run_suite(names: Sequence[str], seconds: float, dry: bool, output: Path) -> dict[str, dict]:
    """Run parts one after another within `seconds`; write and return their records."""
    records: dict[str, dict] = {}
    facts, ends = machine(dry), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="saga-gpu-") as work:
        for place, name in enumerate(names):
            part, left = PARTS[name], ends - time.monotonic()
            later = sum(PARTS[other].seconds for other in names[place + 1 :])
            if left < part.seconds:
                records[name] = {"outcome": "skipped", "why": f"it needs {part.seconds:.0f} s, {left:.0f} are left", "seconds": 0.0}
            else:
                print(f"== {name}", flush=True)
                records[name] = run_part(name, part, dry, max(part.seconds, left - later), Path(work))
            record = records[name]
            print(f"{name} {record['outcome']} after {record['seconds']:.0f} s", record["why"], flush=True)
            if record["outcome"] not in ("done", "skipped"):
                print("\n".join(record["output"]), flush=True)
            bars = {other: [number._asdict() | {"met": number.is_met} for number in found] for other, found in numbers_of(records).items()}
            write_json(output, facts | {"seconds": round(seconds - (ends - time.monotonic()), 1), "numbers": bars, "parts": records})
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite and return 0, or 1 if a part failed, was cut or left out; missed bars are no failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="every part at toy size on a CPU that computes as a GPU would")
    parser.add_argument("--minutes", type=float, help="all parts together; default 9, in a dry run 30")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order; default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-suite-CARD.json, in a dry run a temporary file")
    parser.add_argument("--tests", type=Path, metavar="FILE", help="only tests/gpu, with the counts written to FILE")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU was found; --dry-run runs every part at toy size on the CPU")
    if options.tests:
        return run_tests(options.tests, options.dry_run)
    card = re.sub(r"\W+", "-", "dry run" if options.dry_run else torch.cuda.get_device_name()).strip("-").lower()
    folder = Path(tempfile.gettempdir()) if options.dry_run else BENCHMARKS / "results"
    output = options.output or folder / f"gpu-suite-{card}.json"
    minutes = options.minutes or (30 if options.dry_run else 9)
    records = run_suite(names, 60 * minutes, options.dry_run, output)
    print(describe(records, options.dry_run))
    print(f"written: {output}")
    return int(any(record["outcome"] != "done" for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())
