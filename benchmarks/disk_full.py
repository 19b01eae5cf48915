"""What a full disk or a folder that cannot be written leaves: one readable line, nothing half-written, and all of it once there is room.

Everything that the two packages write is written into a small disk in memory (tmpfs): first with room, to see how much it needs, then
with the disk full but for a part of that, then read-only, and at last with room again. Each time a file must be as it was before, or as
it is in the end, and the error one line that names what could not be written. With --study, a smoke study (benchmarks/kill.py) fills its
disk at each stage, ends, and is resumed once there is room.

    python benchmarks/disk_full.py [--only index,checkpoint] [--study] [--work FOLDER] [--output FILE]

It needs a Linux on which this user may mount (root); elsewhere it says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import kill

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json

DISK_MIB = 96
ROOM = (0.0, 0.3, 0.6, 0.9)  # of what a writer needs
STAGES = ("rendering", "training, checkpoints", "notebook", "report")  # at which a study's disk is filled
PAGE = 4096  # bytes; the blocks of a tmpfs
SAYS = ("No space left on device", "Read-only file system")


class Disk:
    """A tmpfs, its folder `work` for what is tried, and a file that takes up its free space."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self._ballast = folder, folder / "work", folder / "ballast"

    def free(self) -> int:
        left = os.statvfs(self.folder)
        return left.f_bavail * left.f_frsize

    def leave(self, size: int) -> None:
        """Fill the disk but for `size` bytes."""
        self.make_room()
        taken = max(0, self.free() - size) // PAGE * PAGE
        with open(self._ballast, "wb") as ballast:
            if taken:
                os.posix_fallocate(ballast.fileno(), 0, taken)

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def set_read_only(self, is_read_only: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if is_read_only else 'rw'}", str(self.folder)], check=True)

    def content(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.work)): path.read_bytes() for path in self.work.rglob("*") if path.is_file()}


def why_not() -> str:
    """Return why no disk can be mounted here, or ""."""
    if not sys.platform.startswith("linux") or not shutil.which("mount"):
        return "a tmpfs is a thing of Linux"
    return "" if os.geteuid() == 0 else "only root may mount a tmpfs"


@contextmanager
def small_disk(mebibytes: int = DISK_MIB) -> Iterator[Disk]:
    """Mount a tmpfs in a temporary folder. Raises `SagaError` where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="saga-disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "saga", str(folder)], capture_output=True, text=True)
    try:
        if mounted.returncode:
            raise SagaError(f"no tmpfs can be mounted: {mounted.stderr.strip() or mounted.stdout.strip()}; run this as root of a machine")
        disk = Disk(folder)
        disk.work.mkdir()
        yield disk
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


# ------------------------------------------------------------------------------------------------------- writers


@cache
def _encoder():
    from saga_lib.encoder import Encoder
    from saga_lib.families.loading import load_supervisor
    from saga_study.methods import make_config
    from saga_study.resolving import supervisor_source

    config = make_config("smoke", "miniature_birds", "pf", 0)
    return Encoder(load_supervisor(supervisor_source(config), config.image_size)[0], "mean", 0)


def _checkpoint(folder: Path) -> None:
    import torch

    from saga_lib.checkpoints import save_checkpoint

    torch.manual_seed(0)
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        save_checkpoint(folder / "checkpoint", {"model": model}, optimizer, {"step": step})


def _log(folder: Path) -> None:
    from saga_lib.checkpoints import RunLog

    folder.mkdir(exist_ok=True)
    log = RunLog(folder, 0)
    for step in range(1, 200):
        log.write({"step": step, "seconds": step / 7, "loss": 1 / step}, [{"step": step, "part": "verdict", "norm": step / 3}])


def _adapters(folder: Path) -> None:
    import copy

    from saga_lib.adapters import add_adapters, save_adapters

    tower = copy.deepcopy(_encoder().tower)
    add_adapters(tower, 8, 16, 0)
    save_adapters(tower, folder / "adapters")


def _record(folder: Path) -> None:
    """A finished run's folder, packed."""
    from saga_study.runs.packing import pack_logs

    run = folder / "a study" / "runs" / "0123456789ab"
    rng = random.Random(0)
    steps = [{"step": step, "loss": rng.random(), "seconds": step / 7} for step in range(1, 3000)]
    if not (run / "metrics.json.xz").is_file():
        from saga_lib.common.files import write_text

        write_text(run / "metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    write_json(run / "evaluation.json", {"hits_at_1": "01" * 9000, "num_queries": 18000})
    pack_logs("a study")


def _context():
    from saga_study.methods import Profile
    from saga_study.notebook import NotebookContext

    return NotebookContext("a study", Profile("smoke"), "04")


def _tables(_: Path) -> None:
    import pandas as pd

    _context().save_table("04_table", pd.DataFrame({"row": range(500), "value": [number / 3 for number in range(500)]}))


def _figures(_: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([number % 7 for number in range(600)])
    _context().save_figure("04_figure", figure)


def _page(_: Path) -> None:
    _context().save_page("04_page", "<p>" * 20000)


def _index(folder: Path) -> None:
    import numpy as np

    from saga_lib.common.paths import REPOSITORY
    from saga_study.deploy.index import Index

    images = sorted((REPOSITORY / "docs").rglob("*.png"))[:2] or [Path(__file__)] * 2
    rows = np.random.default_rng(0).normal(size=(500, 32)).astype("float32")
    entries = [str(images[number % 2].with_name(f"{number:04d}.png")) for number in range(len(rows))]
    Index.from_embeddings(rows / np.linalg.norm(rows, axis=1, keepdims=True), entries).save(folder / "index")


def _rendering(folder: Path) -> None:
    from saga_study.miniature.world import build_benchmark

    build_benchmark("miniature_birds", folder / "data", 1)


def _example(folder: Path) -> None:
    from saga_study.own_images.folder import example_folder

    example_folder(folder / "data")


def _vocabulary(folder: Path) -> None:
    from saga_lib.vocabulary import load_vocabulary
    from saga_study.own_images.vocabulary_files import save_vocabulary

    save_vocabulary(load_vocabulary("birds"), folder / "vocabularies" / "mine.yaml")


def _supervisor(folder: Path) -> None:
    from saga_study.teaching.checkpoints import Recipe, build_checkpoint

    build_checkpoint(Recipe(width=48, vision_depth=2, text_depth=2), folder / "supervisor")


def _notebook(folder: Path) -> None:
    """A notebook in a process of its own, whose log, kernel and result are on the disk."""
    import nbformat

    from saga_study.runs.children import Child
    from saga_study.runs.processes import child_environment

    source = Path(tempfile.gettempdir()) / f"saga-disk-{os.getpid()}" / "01_small.ipynb"
    if not source.is_file():
        source.parent.mkdir(exist_ok=True)
        cell = nbformat.v4.new_code_cell('STUDY: str = "by-hand"', metadata={"tags": ["parameters"]}, id="first")
        more = nbformat.v4.new_code_cell("print('x' * 40000)", id="second")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell, more]), source)
    scratch = folder / ".executing" / "1"
    request = {
        "source": str(source), "target": str(folder / "notebooks" / source.name), "parameters": {"STUDY": "by-hand"}, "inputs": "x",
        "scratch": str(scratch), "parent": os.getpid(),
    }  # fmt: skip
    command = ["saga_study.study.papermill", str(scratch / "request.json")]
    child = Child("notebook 01_small", command, request, scratch / "output.log", child_environment("smoke"))
    try:
        child.process.wait(300)
        child.check()
    finally:
        shutil.rmtree(folder / ".executing", ignore_errors=True)  # as the study does


def _manifest(folder: Path) -> None:
    from saga_study.study.manifest import reserve_folder, write_manifest

    manifest = {"study": "a new study", "notes": ["x" * 100] * 300}
    if not (folder / "a new study").is_dir():
        reserve_folder(manifest)
    write_manifest(manifest)


def _lock(folder: Path) -> None:
    from saga_study.processes import only_one_process

    with only_one_process(folder / "a run" / ".lock", "a run"):
        pass


def _exported(folder: Path) -> None:
    from saga_study.deploy.export import export_encoder

    export_encoder(_encoder(), folder / "exports" / "encoder.pt2")


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": _checkpoint, "log": _log, "encoder": lambda folder: _encoder().save_pretrained(folder / "encoder"),
    "adapters": _adapters, "record": _record, "tables": _tables, "figures": _figures, "page": _page, "index": _index,
    "rendering": _rendering, "example": _example, "vocabulary": _vocabulary, "supervisor": _supervisor, "notebook": _notebook,
    "manifest": _manifest, "lock": _lock, "exported": _exported,
}  # fmt: skip
GROWS = ("metrics.jsonl", "audit.jsonl")  # logs, whose last line the next start cuts
DIFFERS = (".ipynb", ".pt2", "recipe.json")  # files that hold times: whole or absent is all that can be said
NEEDS_NOTHING = ("lock",)  # an empty file takes no space on a tmpfs, so it may succeed on a full one


def try_writer(name: str, disk: Disk) -> dict:
    """Return how often a writer was kept from writing, and the faults in what it said and left."""
    write, faults, refused = WRITERS[name], [], 0
    os.environ |= {"SAGA_RESULTS": str(disk.work), "SAGA_DATA": str(disk.work / "data")}
    shutil.rmtree(disk.work)
    disk.work.mkdir()
    free = disk.free()
    write(disk.work)
    needed, final = free - disk.free(), disk.content()
    lines = set()
    for room in (*ROOM, None):  # None: read-only
        for again in (False, True):  # over what is there already, too
            if not again:
                shutil.rmtree(disk.work)
                disk.work.mkdir()
            before = disk.content()
            disk.leave(int(needed * (room or 0)) if room is not None else needed * 3)
            if room is None:
                disk.set_read_only(True)
            what = f"{'read-only' if room is None else f'{room:.0%} of the room'}{', written before' if again else ''}"
            try:
                write(disk.work)
            except SagaError as error:
                refused += 1
                lines.add(str(error).replace(str(disk.work), "DISK"))
                if "\n" in str(error) or not any(reason in str(error) for reason in SAYS) or str(disk.work) not in str(error):
                    faults.append(f"{what}: says {error}")
            except Exception as error:  # noqa: BLE001  (that is what is looked for)
                faults.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            finally:
                if room is None:
                    disk.set_read_only(False)
            faults += [f"{what}: {path} is half-written" for path in half_written(before, disk.content(), final)]
            disk.make_room()
            write(disk.work)
            if wrong := [path for path in half_written({}, disk.content(), final) or sorted({*final} - {*disk.content()})]:
                faults.append(f"{what}: with room again, {', '.join(wrong)} differ")
    if not refused:
        faults.append("was never refused")
    return {"needs_bytes": needed, "refused": refused, "faults": faults, "lines": sorted(lines)[:3]}


def half_written(before: dict[str, bytes], after: dict[str, bytes], final: dict[str, bytes]) -> list[str]:
    """Return the files that are neither as they were before nor as they are in the end."""
    wrong = []
    for path, content in after.items():
        if content in (before.get(path), final.get(path)):
            continue
        name = Path(path).name
        if name in GROWS and path in final and final[path].startswith(content):
            continue
        if path in final and name.endswith(DIFFERS) and len(content) >= 0.9 * len(final[path]):
            continue
        if name.startswith("state-") and name.endswith(".safetensors") and "state-2.safetensors" not in content.decode("latin-1"):
            continue  # the tensors of the step before, whole: they are written aside as all others
        if name == "counters.json" and json.loads(content)["step"] == 1:
            continue
        wrong.append(path)
    return wrong


# -------------------------------------------------------------------------------------------------------- a study


def try_study(stage: str, work: Path) -> dict:
    """Fill the disk of a smoke study when it reaches a stage, then resume it with room; return what came of it."""
    tree = kill.copy_code(work / "tree")
    alone, _ = kill.undisturbed(work, tree)
    faults: list[str] = []
    with small_disk() as disk:
        place = kill.Place(work / f"disk {stage}", tree)
        place.results, place.data = disk.work / "results", disk.work / "data"
        leader = place.start(*kill.ARGUMENTS)
        deadline = time.monotonic() + kill.LIMIT_SECONDS
        while place.stage() != stage and leader.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        disk.leave(0)
        code, lines = leader.wait(kill.LIMIT_SECONDS), place.said()
        row = {"stage": stage, "code": code, "last_line": lines[-1].replace(str(disk.work), "DISK") if lines else ""}
        if code != 2:
            faults.append(f"exit code {code}, not 2")
        place.seconds_until_gone()
        faults += [f"left behind: {name}" for name in place.leftovers() if Path(name).name.startswith(".") or "partial" in name]
        for path in [*place.results.rglob("*.json"), *place.results.rglob("*.ipynb")]:
            try:
                json.loads(path.read_text())
            except ValueError:
                faults.append(f"half-written: {path.name}")
        disk.make_room()
        resume = ("--resume", "LATEST") if place.studies() else ()
        arguments = kill.without_set() if resume else kill.ARGUMENTS[1:]
        code = place.start(kill.ARGUMENTS[0], *resume, *arguments, name="resumed").wait(kill.LIMIT_SECONDS)
        if code:
            faults.append(f"resuming ended with {code}: {(place.said('resumed') or [''])[-1]}")
        faults += [f"differs: {name}" for name in kill.differences(place.studies()[-1], alone)]
        faults += [f"left behind: {name}" for name in place.leftovers()]
    return row | {"faults": faults}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"out of {', '.join(WRITERS)}; with --study, stages")
    parser.add_argument("--study", action="store_true", help=f"a smoke study whose disk is filled at each of: {', '.join(STAGES)}")
    parser.add_argument("--work", type=Path, help="with --study: the folder of benchmarks/kill.py, whose undisturbed pass is taken")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    rows = {}
    if options.study:
        work = (options.work or Path(tempfile.mkdtemp(prefix="saga-disk-study-"))).absolute()
        for stage in options.only or STAGES:
            rows[stage] = try_study(stage, work)
            print(f"{stage}: {rows[stage]['faults'] or 'nothing lost'}; {rows[stage]['last_line']}", flush=True)
    else:
        for name in options.only or WRITERS:
            with small_disk() as disk:
                rows[name] = try_writer(name, disk)
            print(f"{name}: {rows[name]['refused']} times refused; {rows[name]['faults'] or 'no fault'}", flush=True)
    good = sum(not row["faults"] for row in rows.values())
    print(f"{good} of {len(rows)} without a fault")
    if options.output:
        write_json(options.output, {"without_fault": f"{good} of {len(rows)}", "rows": rows})
    return int(good < len(rows))


if __name__ == "__main__":
    sys.exit(main())
