"""Run folders: find them, read them, train what is missing, alone or as a queue of worker processes.

A run lives in `<study>/runs/<key>/`, where the key is its content address: the same settings, inputs and code
always lead to the same folder, so that nothing is computed twice and nothing old is mistaken for new. It is
complete if and only if `evaluation.json` exists.

The queue takes a plain list of run configs. A cluster scheduler would plug in here: submit
`python -m saga_lib.runs request.json` (see `worker_request`) once per missing run, wait, load.
"""

from __future__ import annotations

import errno
import heapq
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from saga_lib.config import (
    METHODS,
    OWN_IMAGES,
    REVISIONS,
    SAME_NUMBERS,
    RunConfig,
    code_digest,
    content_key,
    exact_code_digest,
    make_config,
)
from saga_lib.errors import SagaError
from saga_lib.files import read_json, write_atomically, write_json
from saga_lib.paths import BY_HAND, REPOSITORY, data_root, study_folder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from saga_lib.encoder import Encoder

POLL_SECONDS = 0.25  # how often the queue looks at its workers
PLAIN_LINE_SECONDS = 20  # how often progress is printed where no terminal rewrites its line
PATIENCE_SECONDS = 10  # between asking a worker to stop and killing it
TIMINGS = ("seconds",)  # of evaluation.json
CLOCKED = ("seconds", "tokens_per_second", "peak_gib")  # beginnings of the names of what no two trainings share
WORKER_GIB = 1.5  # memory to reserve for a miniature worker, which needs about 1


class RunFailed(Exception):
    """A worker died of something the user cannot mend by a setting; `log` holds all it said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


# ------------------------------------------------------------------------------------------------ one run


@dataclass(frozen=True)
class Run:
    """A complete run: its settings and what it left in its folder, read when asked for."""

    folder: Path
    config: RunConfig

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step, as training logged it; empty for a run without training."""
        import pandas as pd

        return pd.DataFrame(self._read_log("metrics"))

    @cached_property
    def audit(self) -> pd.DataFrame:
        """The rows of `saga_lib.audit.audit_step` on all audited steps; empty for a run without audit."""
        import pandas as pd

        steps = [pd.DataFrame(columns) for columns in self._read_log("audit")]
        return pd.concat(steps, ignore_index=True) if steps else pd.DataFrame()

    def _read_log(self, name: str) -> list[dict] | dict[str, list]:
        """Return a log as training writes it, a dict a step, or as `pack_logs` leaves it."""
        path = next((path for path in (self.folder / f"{name}.jsonl", self.folder / f"{name}.json.xz") if path.is_file()), None)
        if path is None:
            return []
        try:
            if path.suffix == ".xz":
                with lzma.open(path, "rt", encoding="utf-8") as packed:
                    return json.load(packed)
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (json.JSONDecodeError, UnicodeDecodeError, EOFError, lzma.LZMAError) as error:
            raise SagaError(f"{path} is damaged ({error}); delete {self.folder} and run again") from None

    @cached_property
    def evaluation(self) -> dict:
        """Recall, MAP@R, NMI and per-query hits on the test split."""
        return read_json(self.folder / "evaluation.json")

    @cached_property
    def hits(self) -> np.ndarray:
        """(Q,) bool: whether the nearest neighbour of each test query is of its class."""
        import numpy as np

        return np.array([hit == "1" for hit in plain_hits(self.evaluation)])

    def has_encoder(self) -> bool:
        """Return whether the weights are on this machine; a study's committed record leaves them out."""
        return (self.folder / "encoder" / "model.safetensors").is_file()

    def encoder(self) -> Encoder:
        """Load the trained encoder; a `SagaError` tells how to get weights that are not kept."""
        if not self.has_encoder():
            raise SagaError(
                f"the weights of run {self.key} ({describe(self.config)}) are not kept in {self.folder}; "
                "train_or_load(config, study, need_encoder=True) trains them again"
            )
        from saga_lib.encoder import Encoder

        return Encoder.from_pretrained(self.folder / "encoder")


def describe(config: RunConfig) -> str:
    """Return the short name of a run that people read: dataset (of your own images: their folder), method, seed, and unusual settings."""
    name = f"{Path(config.data_dir).stem if config.data_dir else config.dataset} {config.method} seed {config.seed}"
    if config.dataset == OWN_IMAGES or config.method not in METHODS:
        return name
    usual = make_config(config.profile, config.dataset, config.method, config.seed).to_dict()
    changed = {key: value for key, value in config.to_dict().items() if key != "audit_every" and value != usual.get(key)}
    if config.revision == REVISIONS.get(config.supervisor):
        changed.pop("revision", None)  # goes with the supervisor
    return ", ".join([name, *(f"{key} {value}" for key, value in changed.items())])


def run_folder(study: str, config: RunConfig) -> Path:
    """Return where a run of a study lives, whether or not it exists yet.

    The benchmark is rendered if it is missing, because its checksum is part of the address.
    """
    return study_folder(study) / "runs" / _key(config)


def _key(config: RunConfig) -> str:
    from saga_lib.training import run_inputs

    return content_key(config, run_inputs(config))


def is_complete(folder: Path) -> bool:
    """Return whether a run folder holds a finished run; evaluation.json is written last, and atomically."""
    return (folder / "evaluation.json").is_file()


HEX = "hex:"  # what `hits_at_1` starts with where `pack_logs` has been


def plain_hits(evaluation: Mapping[str, object]) -> str:
    """Return `hits_at_1` of an `evaluation.json`, packed or not: "1" for each query whose nearest neighbour is of its class, else "0"."""
    hits = str(evaluation["hits_at_1"])
    if not hits.startswith(HEX):
        return hits
    digits = hits.removeprefix(HEX)
    return f"{int(digits, 16):0{4 * len(digits)}b}"[: int(evaluation["num_queries"])]


def _packed_hits(evaluation: dict[str, object]) -> dict[str, object]:
    hits = plain_hits(evaluation)
    if not hits or len(hits) != evaluation.get("num_queries"):
        return evaluation
    digits = -(-len(hits) // 4)
    return evaluation | {"hits_at_1": HEX + f"{int(hits.ljust(4 * digits, '0'), 2):0{digits}x}"}


def pack_logs(study: str) -> None:
    """Make the records of a study's finished runs small, without loss of any result; `Run` reads both kinds.

    Step logs shrink to a twentieth:

    `metrics.jsonl` becomes `metrics.json.xz`, a list of every step's values by name (null where a step has none), `audit.jsonl` becomes
    `audit.json.xz`, a list of its lines. Numbers keep three significant digits, times hundredths of a second, enough for curves and
    means; results are in `evaluation.json`, which keeps every digit and has `hits_at_1` in hexadecimal, four queries a digit
    (`plain_hits`). Only whole files take the place of others, and the same log always becomes the same bytes.
    """
    for record in study_folder(study).glob("runs/*/evaluation.json"):
        evaluation = read_json(record)
        if (packed := _packed_hits(evaluation)) != evaluation:
            write_json(record, packed)
        for name in ("metrics", "audit"):
            log, packed = record.parent / f"{name}.jsonl", record.parent / f"{name}.json.xz"
            if log.is_file():
                steps = [_rounded(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
                columns = {key: [step.get(key) for step in steps] for key in dict.fromkeys(key for step in steps for key in step)}
                text = json.dumps(steps if name == "audit" else columns)
                content = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
                write_atomically(packed, lambda temporary, content=content: temporary.write_bytes(content))
                log.unlink()


def _rounded(value: object, name: str = "") -> object:
    if isinstance(value, dict):
        return {key: _rounded(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each, name) for each in value]
    if not isinstance(value, float):
        return value
    return round(value, 2) if name.startswith("seconds") else float(f"{value:.3g}")


def load_run(study: str, config: RunConfig) -> Run | None:
    """Return a finished run of a study, or None."""
    folder = run_folder(study, config)
    return Run(folder, config) if is_complete(folder) else None


def finished_runs(study: str, configs: Sequence[RunConfig]) -> dict[RunConfig, Run]:
    """Return those of some runs that a study has finished, by what their folders say: nothing is rendered or trained for it."""
    found: dict[str, Path] = {}
    for path in study_folder(study).glob("runs/*/evaluation.json"):
        record = read_json(path.parent / "config.json")
        if record.get("code") == code_digest():
            found[json.dumps(record["config"], sort_keys=True)] = path.parent
    keys = {config: json.dumps(config.to_dict(), sort_keys=True) for config in configs}
    return {config: Run(found[key], config) for config, key in keys.items() if key in found}


def train_or_load(config: RunConfig, study: str = BY_HAND, need_encoder: bool = False) -> Run:
    """Return a run of a study, trained here and now (with a progress bar) if the study lacks it.

    `need_encoder` asks for weights too. A finished record without weights is never touched: they are trained
    again in the by-hand study, and that run is returned. If another process trains the run, this one waits for it.
    """
    run = load_run(study, config)
    if run and (run.has_encoder() or not need_encoder):
        return run
    if run and study != BY_HAND:
        return train_or_load(config, BY_HAND, need_encoder=True)
    folder = run_folder(study, config)
    from tqdm.auto import tqdm

    with tqdm(desc=describe(config), unit="step", leave=False) as bar:

        def report(metrics: dict) -> None:
            bar.set_description(describe(config), refresh=False)  # it may have been waiting for another process until now
            bar.total = metrics.get("steps")
            bar.update(metrics["step"] - bar.n)

        def follow(holder: str) -> None:
            """Show how far the process has come that trains it instead."""
            bar.set_description(f"{describe(config)}, trained by process {holder}")
            log = folder / "metrics.jsonl"
            if log.is_file() and (lines := log.read_bytes().splitlines(keepends=True)) and lines[0].endswith(b"\n"):
                bar.total = json.loads(lines[0]).get("steps")
                bar.update(len(lines) - bar.n)

        train_alone(config, folder, report, need_encoder, follow)
    return Run(folder, config)


def train_alone(
    config: RunConfig, folder: Path, report: Callable[[dict], None] | None = None, need_encoder: bool = False,
    waiting: Callable[[str], object] | None = None,
) -> None:  # fmt: skip
    """Train a run unless it is complete (and has weights, if need be), making sure that no other process works in its folder.

    While one does, this waits for it, calling `waiting` with its number now and then; without `waiting` it raises `SagaError`.
    """
    from saga_lib.training import train

    with only_one_process(folder / ".lock", f"run {folder.name} ({describe(config)})", waiting):
        run = Run(folder, config)  # another process may have finished it since we looked
        if is_complete(folder) and need_encoder and not run.has_encoder():
            (folder / "evaluation.json").unlink()  # what is trained again counts as incomplete until it is done
        if not is_complete(folder):
            train(config, folder, report)


@contextmanager
def only_one_process(path: Path, what: str, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock file that names this process; while another living process holds it, wait, or without `waiting` raise `SagaError`.

    `waiting` is called with the other's number five times a second.

    The operating system drops the lock when its holder dies, however that happens, so that the file which a
    killed process leaves behind never blocks anybody.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closed below; closing gives the lock up)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                if waiting is not None:
                    waiting(holder)
                    time.sleep(0.2)
                    continue
                raise SagaError(f"{what} is being worked on by process {holder}; wait for it or stop it") from None
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
            lock.close()  # its last holder removed the file between our open and our lock: try again
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except OSError as error:
        raise SagaError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is given up: whoever waits notices and makes a new file
        lock.close()


def reproduce(folder: Path, again: Path) -> list[str]:
    """Train a finished run once more from its `config.json`, into the folder `again`; return what differs, a line each.

    Compared are the inputs' checksums, the code and every number of `evaluation.json` but the time. Nothing in `folder`
    changes. Raises `SagaError` if it holds no finished run.
    """
    from saga_lib.training import run_inputs, train

    if not is_complete(folder):
        raise SagaError(f"{folder} holds no finished run (no evaluation.json); name a folder such as results/STUDY/runs/KEY")
    record, before = read_json(folder / "config.json"), read_json(folder / "evaluation.json")
    config = RunConfig.from_dict(record["config"])
    now = run_inputs(config) | {"code": code_digest()}
    then = record["inputs"] | {"code": record["code"]}
    lines = [f"{name}: {then.get(name)} then, {now.get(name)} now" for name in now if now[name] != then.get(name)]
    train(config, again)
    after = read_json(again / "evaluation.json")
    before, after = (evaluation | {"hits_at_1": plain_hits(evaluation)} for evaluation in (before, after))
    for name in dict.fromkeys([*before, *after]):
        if name not in TIMINGS and before.get(name) != after.get(name):
            lines.append(f"{name}: {_short(before.get(name))} then, {_short(after.get(name))} now")
    return lines


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:40]}… ({len(text)} characters)"


def check(folder: Path) -> int:
    """Say whether a run can be reproduced here, number by number; the exit code is 0 if it can, else 1."""
    from saga_lib.notebooks import use_one_thread

    folder = Path(folder).absolute()
    if read_json(folder / "config.json")["config"]["profile"] != "paper":
        use_one_thread()  # as when it was trained: the number of threads is part of the order of summation
    with tempfile.TemporaryDirectory(prefix="saga-check-") as again:
        differences = reproduce(folder, Path(again))
    for line in differences:
        print(line)
    print(f"run {folder.name}: " + (f"{len(differences)} differences" if differences else "reproduced, every number identical"))
    return int(bool(differences))


_FIRST_STEPS = """
import sys
from pathlib import Path
from saga_lib.config import RunConfig
from saga_lib.files import read_json
from saga_lib.training import train

class Enough(Exception):
    pass

def report(metrics):
    if metrics["step"] == int(sys.argv[3]):
        raise Enough

try:
    train(RunConfig.from_dict(read_json(Path(sys.argv[1]))), Path(sys.argv[2]), report)
except Enough:
    pass
"""  # in words that code of any commit understands


def show_same_numbers(study: str, commit: str = "", steps: int = 20) -> int:
    """Show that this code computes what the one that made a study did, and if so let its runs keep their addresses.

    The code of `commit` (default: the one in the study's manifest) and this one both train, here and now, `steps` steps of one of
    the study's finished runs of each method (its dataset changing from method to method), and both evaluate one without
    training. If all numbers are identical, `config.SAME_NUMBERS` says so from then on; else nothing changes. The exit code
    is 0 if they are, else 1. Shown is what this machine computes: a study on GPUs has to show it there. Raises `SagaError` if
    the commit is not to be had or not the code of the study.
    """
    manifest = read_json(study_folder(study) / "manifest.json")
    made_by, exact = manifest["code"], exact_code_digest()
    if made_by == code_digest():
        print(f"study {study} was made by code {made_by}, which this is or is known to equal: nothing to show")
        return 0
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="saga-same-") as scratch:
        before = _checked_out(commit or manifest["commit"], Path(scratch) / "before", made_by)
        for path, config in _one_of_each_method(study_folder(study), made_by).items():
            request, trees = Path(scratch) / f"{path.name}.json", {"before": before, "now": REPOSITORY}
            write_json(request, read_json(path / "config.json")["config"])
            rows = [_first_steps(tree, request, Path(scratch) / name / path.name, steps) for name, tree in trees.items()]
            lines = _differences(*rows)
            trained = config.steps or config.epochs
            shown[path.name] = f"{describe(config)}: {f'{min(steps, config.steps or steps)} steps' if trained else 'evaluation'}"
            print("\n".join([f"{shown[path.name]} {'differ' if lines else 'identical'}", *lines]), flush=True)
            if lines:
                print(f"this code computes other numbers than code {made_by}: runs of study {study} stay apart from its own")
                return 1
    if exact_code_digest() != exact:
        raise SagaError("the code changed while it was compared; start again")
    known = read_json(SAME_NUMBERS) if SAME_NUMBERS.is_file() else []
    write_json(SAME_NUMBERS, [*known, {"code": exact, "same_as": made_by, "shown_on": study, "by": shown}])
    code_digest.cache_clear()
    print(f"{len(shown)} runs, every number identical: code {exact} counts as {made_by} ({SAME_NUMBERS.name})")
    return 0


def _checked_out(commit: str, folder: Path, code: str) -> Path:
    """Unpack the library of a commit below a folder and return it; it must be the code that a study was made by."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "--format=tar", commit, "saga_lib"], cwd=REPOSITORY, capture_output=True)
    if archive.returncode:
        raise SagaError(f"commit {commit} is not in this repository: {archive.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    told = [sys.executable, "-c", "from saga_lib.config import code_digest; print(code_digest())"]
    asked = subprocess.run(told, cwd=folder, env=_environment_of(folder), capture_output=True, text=True)
    if asked.returncode:
        raise SagaError(f"the code of commit {commit} does not run here: {asked.stderr.strip().splitlines()[-1]}")
    if (own := asked.stdout.strip()) != code:
        raise SagaError(f"the code of commit {commit} is {own}, that of the study {code}; name another commit behind the study")
    return folder


def _environment_of(tree: Path) -> dict[str, str]:
    return child_environment("miniature") | {"PYTHONPATH": str(tree), "SAGA_DATA": str(data_root())}


def _first_steps(tree: Path, request: Path, folder: Path, steps: int) -> list[dict]:
    """Return what a tree's code makes of a run: the metrics of its first steps, then its evaluation, empty unless it ended."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_STEPS, str(request), str(folder), str(steps)], cwd=tree, env=_environment_of(tree),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed(f"the code in {tree} failed: {done.stderr.strip().splitlines()[-1]}", done.stderr)
    logs = [folder / name for name in ("metrics.jsonl", "audit.jsonl")]
    lines = [line for log in logs if log.is_file() for line in log.read_text(encoding="utf-8").splitlines()]
    return [*map(json.loads, lines), read_json(folder / "evaluation.json") if is_complete(folder) else {}]


def _differences(before: Sequence[dict], now: Sequence[dict]) -> list[str]:
    """Return what differs in the first of two sequences of records that do, a line each; times and memory may."""
    for first, second in zip(before, now, strict=True):
        names = [name for name in {**first, **second} if not name.startswith(CLOCKED) and first.get(name) != second.get(name)]
        if names:
            place = f"step {first['step']}, " if "step" in first else ""
            return [f"{place}{name}: {_short(first.get(name))} before, {_short(second.get(name))} now" for name in names]
    return []


def _one_of_each_method(study: Path, code: str) -> dict[Path, RunConfig]:
    """Return a finished run of each method, the first seed; datasets take turns, so that each has its share."""
    found: dict[str, list[tuple[Path, RunConfig]]] = {}
    for path in sorted(study.glob("runs/*/evaluation.json")):
        record = read_json(path.parent / "config.json")
        config = RunConfig.from_dict(record["config"])
        own = record.get("exact_code", code) == code == record["code"]  # not of code that only counts as the study's
        if own and not config.vocabulary:  # which may be a file that the commit lacks
            found.setdefault(config.method, []).append((path.parent, config))
    if not found:
        raise SagaError(f"study {study.name} has no finished run of its code {code} to compare with")
    chosen: dict[Path, RunConfig] = {}
    for number, method in enumerate(sorted(found)):
        of_one = sorted(found[method], key=lambda run: (run[1].seed, run[1].dataset, run[0].name))
        datasets = sorted({config.dataset for _, config in of_one})
        wanted = datasets[number % len(datasets)]
        path, config = next(run for run in of_one if run[1].dataset == wanted)
        chosen[path] = config
    return chosen


# ------------------------------------------------------------------------------------------ worker process


def worker_request(config: RunConfig, folder: Path, parent: int | None = None) -> dict:
    """Return what a worker process needs to know, ready for JSON; it stops when its `parent`, if any, is gone."""
    return {"config": config.to_dict(), "folder": str(folder), "parent": parent}


def on_cpu(profile: str) -> bool:
    """Return whether a profile's runs compute on the CPU: all but the paper's, and these too where GPUs are hidden (`--cpu`)."""
    return profile != "paper" or os.environ.get("CUDA_VISIBLE_DEVICES") == ""


def child_environment(profile: str, threads: int = 1, gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a child process: its share of the machine, and no network where none is needed."""
    environment = dict(os.environ)
    if profile != "paper":
        environment |= {"HF_HUB_OFFLINE": "1"}
    if on_cpu(profile):
        # Two processes with two OpenMP threads each slow each other down several times on two cores, and a
        # fixed number of threads keeps the order of summation, hence the numbers, the same on every machine.
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return environment


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP stop this process the way Ctrl-C does, so that everything is cleaned up."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


def stop_with(parent: int) -> None:
    """Stop this process soon after its parent is gone, even if that was killed and could not say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Train the run that a request file describes, or train again to compare: a run (`--check RUN_FOLDER`), or some of a
    study's whose code was another (`--same-numbers STUDY [COMMIT]`).

    The last line on stderr says what went wrong, if anything.
    """
    stop_on_signals()
    config, folder = None, Path(tempfile.gettempdir())  # where the comparisons write
    try:
        if arguments[:1] == ["--check"]:
            if len(arguments) != 2:
                raise SagaError("--check takes one run folder, such as results/STUDY/runs/KEY")
            return check(Path(arguments[1]))
        if arguments[:1] == ["--same-numbers"]:
            if len(arguments) not in (2, 3) or not (study_folder(arguments[1]) / "manifest.json").is_file():
                raise SagaError("--same-numbers takes a study by its id, such as 20261124-001557-miniature-02fee24, and perhaps a commit")
            return show_same_numbers(*arguments[1:])
        request = read_json(Path(arguments[0]))
        if request["parent"]:
            stop_with(request["parent"])
        config, folder = RunConfig.from_dict(request["config"]), Path(request["folder"])
        if _key(config) != folder.name:
            raise SagaError("code or data changed after this run was queued; start the command again")
        train_alone(config, folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (SagaError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {folder}: {error.strerror}; free some space, then resume", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not even have been imported
            raise
        told = _out_of_memory(config, str(error)) if config else f"the GPU's memory is full ({str(error).splitlines()[0]})"
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def _out_of_memory(config: RunConfig, reason: str) -> str:
    """Return what to lower, mildest first, for a run that a GPU could not hold."""
    from saga_lib import planner

    try:
        import torch

        gpu_memory = torch.cuda.get_device_properties(0).total_memory / planner.GIB
        expected = planner.peak(planner.estimate(config).expected)
        lower = planner.advice(config, min(gpu_memory, expected - 1))
        if expected <= gpu_memory:
            told = f"the plan expected {expected:.0f} of its {gpu_memory:.0f} GiB, which is too low, or others use this GPU"
            lower = "; ".join([told, *lower.split("; ")[1:]])
    except (SagaError, RuntimeError, AssertionError):  # shapes that are not known
        lower = "lower tower_images, replay_rows, pairs_per_wave or max_micro_batches, or take a smaller supervisor"
    return f"the GPU's memory is full ({reason.strip().splitlines()[0]}); {lower}; start a new study with --set, e.g. --set replay_rows=1"


# --------------------------------------------------------------------------------------------------- queue


def run_queue(
    configs: Sequence[RunConfig],
    study: str = BY_HAND,
    workers: int | None = None,
    expected_minutes: Callable[[RunConfig], float] | None = None,
    display: TextIO | None = None,
) -> list[Run]:
    """Train the missing runs of a study in parallel processes, longest expected first; return all of them.

    `workers` defaults to one per core as far as memory goes; profile paper, one per GPU unless these are hidden. Progress
    goes to `display` (stderr). The first worker that fails stops the queue: `SagaError` if the user can mend it, else
    `RunFailed`. Whatever stops it, finished runs and checkpoints stay, and the next call goes on from them.
    """
    folders = {config: run_folder(study, config) for config in configs}
    missing = {folder: config for config, folder in folders.items() if not is_complete(folder)}
    if missing:
        queue = [_Job(config, folder, (expected_minutes or _alike)(config) * 60) for folder, config in missing.items()]
        queue.sort(key=lambda job: -job.expected_seconds)
        slots = _worker_slots(queue[0].config.profile, workers)[: len(queue)]
        _work_off(queue, slots, num_known=len(set(folders.values())) - len(queue), display=display)
    return [Run(folder, config) for config, folder in folders.items()]


def _alike(_config: RunConfig) -> float:
    return 1.0


def count_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many miniature workers this machine carries: one per core, fewer if memory is short."""
    import psutil

    return max(1, min(count_cores(), int(psutil.virtual_memory().available / 2**30 / WORKER_GIB)))


def _worker_slots(profile: str, workers: int | None) -> list[str | None]:
    """Return one entry per worker process: the GPU it gets, or None."""
    if on_cpu(profile):
        return [None] * (workers or default_workers())
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not gpus:
        raise SagaError("profile paper needs a CUDA GPU, none was found")
    return [gpus[i % len(gpus)] for i in range(workers or len(gpus))]


@dataclass
class _Job:
    """One missing run in the queue and, once started, the process that trains it."""

    config: RunConfig
    folder: Path
    expected_seconds: float
    slot: str | None = None
    process: subprocess.Popen | None = None
    started: float = 0.0
    first_step: int | None = None  # the first we saw; > 1 when a checkpoint was resumed
    step: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds, once finished

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start(self, slot: str | None, requests: Path) -> None:
        self.slot, self.started = slot, time.monotonic()
        request = requests / f"{self.folder.name}.json"
        write_json(request, worker_request(self.config, self.folder, os.getpid()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.log, "wb") as log:
                # In a session of its own, Ctrl-C reaches the queue only, which then stops its workers in order.
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "saga_lib.runs", str(request)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                    env=child_environment(self.config.profile, gpu=slot),
                )  # fmt: skip
        except OSError as error:
            raise SagaError(f"cannot start {describe(self.config)}: {error.strerror or error}") from error

    def read_progress(self) -> None:
        """Read the last whole line of the run's metrics."""
        try:
            with open(self.folder / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
            last = json.loads(lines[-1])
        except (OSError, IndexError, ValueError):  # not there yet, or being cut by a resumed run
            return
        self.step, self.steps = last["step"], last.get("steps") or self.config.steps
        if self.first_step is None:
            self.first_step = self.step

    def stage(self) -> str:
        if not self.step:
            return "starting"
        return f"step {self.step}/{self.steps}" if self.step < self.steps else "evaluating"

    def seconds_left(self, now: float) -> float | None:
        """Return the time to go by the pace of this run, None while it is unknown."""
        done = self.step - (self.first_step or 0)
        return (now - self.started) / done * (self.steps - self.step) if done > 0 else None

    def check(self) -> None:
        """Raise what a finished process died of."""
        code, text = self.process.returncode, self.log.read_text(encoding="utf-8", errors="replace")
        said = [line for line in text.splitlines() if line.strip()]
        if code == 0 and is_complete(self.folder):
            self.log.unlink(missing_ok=True)
            return
        where = f"run {self.folder.name} ({describe(self.config)})"
        if code == 2 and said and said[-1].startswith("error: "):
            raise SagaError(f"{where}: {said[-1].removeprefix('error: ')}")
        if code == 0:
            reason = "ended without evaluation.json"
        elif code < 0:
            hint = "; if memory ran out, use fewer --workers" if code == -signal.SIGKILL else ""
            reason = f"was killed by {signal.Signals(-code).name}{hint}"
        else:
            reason = f"failed: {said[-1] if said else f'exit code {code}'}"
        raise RunFailed(f"{where} {reason} (all it said: {self.log})", text)


def _work_off(queue: list[_Job], slots: list[str | None], num_known: int, display: TextIO | None) -> None:
    """Keep every slot busy until the queue is empty or a worker fails."""
    waiting, active, done = list(queue), [], []
    total = num_known + len(queue)
    line = ProgressLine(display)
    line.note(f"{len(queue)} of {total} runs to train, {len(slots)} at a time")
    requests = Path(tempfile.mkdtemp(prefix="saga-requests-"))
    try:
        while waiting or active:
            free = list(slots)
            for job in active:
                free.remove(job.slot)
            while free and waiting:
                active.append(waiting.pop(0))
                active[-1].start(free.pop(0), requests)
            time.sleep(POLL_SECONDS)
            for job in [job for job in active if job.process.poll() is not None]:
                active.remove(job)
                job.check()
                job.spent = time.monotonic() - job.started
                done.append(job)
                line.note(f"{num_known + len(done)}/{total} {describe(job.config)} took {show_duration(job.spent)}")
            line.update(_progress_text(waiting, active, done, num_known, total, len(slots)))
    finally:
        line.close()
        _stop([job.process for job in active if job.process])
        shutil.rmtree(requests, ignore_errors=True)


def _progress_text(
    waiting: list[_Job], active: list[_Job], done: list[_Job], num_known: int, total: int, num_slots: int
) -> str:
    now = time.monotonic()
    for job in active:
        job.read_progress()
    left = time_left(waiting, active, done, num_slots, now)
    running = ", ".join(f"{describe(job.config)} {job.stage()}" for job in active)
    text = f"runs {num_known + len(done)}/{total}"
    text += f", about {show_duration(left)} left" if left is not None else ""
    return text + (f" | {running}" if running else "")


def time_left(
    waiting: Sequence[_Job], active: Sequence[_Job], done: Sequence[_Job], num_slots: int, now: float
) -> float | None:
    """Estimate the seconds until the queue is empty; None before anything has been observed.

    Expectations are corrected by how fast this machine has been so far, then the waiting runs are dealt to
    whichever worker is free first, as the queue itself will do.
    """
    measured = [(job, job.seconds_left(now)) for job in active]
    seen = [(now - job.started + left, job.expected_seconds) for job, left in measured if left is not None]
    seen += [(job.spent, job.expected_seconds) for job in done]
    if not seen:
        return None
    pace = sum(real for real, _ in seen) / max(1e-9, sum(expected for _, expected in seen))
    busy = [
        left if left is not None else max(0.0, job.expected_seconds * pace - (now - job.started))
        for job, left in measured
    ]
    loads = busy + [0.0] * (num_slots - len(busy))
    heapq.heapify(loads)
    for job in waiting:
        heapq.heappush(loads, heapq.heappop(loads) + job.expected_seconds * pace)
    return max(loads)


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ask processes to stop, wait for a moment, then kill what is left."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------ progress


class ProgressLine:
    """One line that is rewritten on a terminal, and printed now and then where there is none."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.rewrites = self.stream.isatty()
        self._shown_at, self._is_open = time.monotonic(), False

    def update(self, text: str) -> None:
        """Show where we are; cheap enough to be called often."""
        pause = 1.0 if self.rewrites else PLAIN_LINE_SECONDS
        if time.monotonic() - self._shown_at < pause:
            return
        self._shown_at = time.monotonic()
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=self.stream, flush=True)
            self._is_open = True
        else:
            print(text, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.close()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the line away."""
        if self._is_open:
            print("\r\033[K", end="", file=self.stream, flush=True)
            self._is_open = False


def show_duration(seconds: float) -> str:
    """Return a duration as people say it: 45 s, 12 min, 3.5 h.

    >>> show_duration(45), show_duration(700), show_duration(12600)
    ('45 s', '12 min', '3.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
