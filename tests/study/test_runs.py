"""Run folders, locks and the queue, with training that takes no time."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from waiting import wait_for

from saga_lib import records
from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_lib.records import Run, content_key
from saga_study import resolving
from saga_study.methods import make_config
from saga_study.paths import BY_HAND, is_complete, study_folder
from saga_study.processes import lock_holder, only_one_process
from saga_study.runs import full_devices, packing, processes, store, worker
from saga_study.runs.__main__ import main
from saga_study.runs.children import RunFailed
from saga_study.runs.jobs import Job
from saga_study.runs.progress import ProgressLine
from saga_study.runs.queue import run_queue
from saga_study.runs.remaining import ENOUGH, Remaining, remaining
from saga_study.runs.store import load_run, run_folder, train_or_load
from saga_study.runs.worker import worker_request

INPUTS = {"benchmark": "a", "supervisor": "b"}


def make(method="pf", seed=0):
    return make_config("smoke", "miniature_birds", method, seed)


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# ---------------------------------------------------------------------------------------------------- keys


def test_key_is_the_same_in_another_process():
    code = (
        "from saga_lib.records import content_key; from saga_study.methods import make_config; "
        f"print(content_key(make_config('smoke', 'miniature_birds', 'pf', 0), {INPUTS}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert content_key(make(), INPUTS) == other
    assert len(other) == 12


def test_key_does_not_depend_on_the_order_of_options():
    one = make_config("smoke", "miniature_birds", "pf", 0, dml_options={"alpha": 1, "delta": 2})
    other = make_config("smoke", "miniature_birds", "pf", 0, dml_options={"delta": 2, "alpha": 1})
    assert content_key(one, INPUTS) == content_key(other, INPUTS)


def test_key_changes_with_seed_settings_inputs_and_code(monkeypatch):
    keys = [
        content_key(make(), INPUTS),
        content_key(make(seed=1), INPUTS),
        content_key(make("pa"), INPUTS),
        content_key(make_config("smoke", "miniature_birds", "pf", 0, steps=4), INPUTS),
        content_key(make(), INPUTS | {"benchmark": "other"}),
    ]
    monkeypatch.setattr(records, "code_digest", lambda: "other")
    keys.append(content_key(make(), INPUTS))
    assert len(set(keys)) == len(keys)


# ------------------------------------------------------------------------------------------------- one run


def test_train_or_load_trains_once(faked, monkeypatch):
    assert load_run("s", make()) is None
    run = train_or_load(make(), "s")
    assert run.folder == run_folder("s", make()) and run.key == run.folder.name
    assert run.metrics["step"].tolist() == [1, 2, 3]
    assert run.evaluation["recall"]["1"] == 0.75
    assert run.hits.tolist() == [True, True, False, True]
    monkeypatch.setattr(sys.modules["saga_lib.training"], "train", None)  # would fail if called again
    assert train_or_load(make(), "s").folder == run.folder


def test_unfinished_run_is_no_run(faked):
    folder = run_folder("s", make())
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert load_run("s", make()) is None


def test_run_without_steps_has_empty_metrics(faked):
    run = train_or_load(make("pre-trained"), "s")
    (run.folder / "metrics.jsonl").unlink()
    assert load_run("s", make("pre-trained")).metrics.empty


@pytest.mark.parametrize("hits", ["1", "0", "0000", "00010", "1101", "01101001", "0" * 9 + "1" * 8, "01" * 960])
def test_packed_hits_are_read_as_they_were_and_nothing_else_changes(hits, faked):
    run = train_or_load(make(), "s")
    evaluation = {"recall": {"1": 1 / 3}, "hits_at_1": hits, "num_queries": len(hits), "nmi": 0.1234567890123456}
    (run.folder / "evaluation.json").write_text(json.dumps(evaluation))
    before = Run(run.folder, make()).hits
    packing.pack_logs("s")
    packed = json.loads((run.folder / "evaluation.json").read_text())
    assert len(packed["hits_at_1"]) == len("hex:") + -(-len(hits) // 4) and packed | {"hits_at_1": hits} == evaluation
    assert records.plain_hits(packed) == hits and (Run(run.folder, make()).hits == before).all() and len(before) == len(hits)
    content = (run.folder / "evaluation.json").read_bytes()
    packing.pack_logs("s")
    assert (run.folder / "evaluation.json").read_bytes() == content


def test_hits_that_are_not_of_as_many_queries_stay_as_they_are(faked):
    run = train_or_load(make(), "s")
    content = json.dumps({"hits_at_1": "110", "num_queries": 4})
    (run.folder / "evaluation.json").write_text(content)
    packing.pack_logs("s")
    assert (run.folder / "evaluation.json").read_text() == content


@pytest.mark.parametrize("values", [[0.0], [1.0, 0.00001, 0.99999], [round(n / 499, 5) for n in range(500)]])
def test_packed_map_at_r_by_class_is_read_as_it_was(values, faked):
    run = train_or_load(make(), "s")
    evaluation = {"recall": {"1": 1.0}, "hits_at_1": "1", "num_queries": 1, "map_at_r_by_class": values}
    (run.folder / "evaluation.json").write_text(json.dumps(evaluation))
    packing.pack_logs("s")
    content = (run.folder / "evaluation.json").read_text()
    packed = json.loads(content)
    assert len(packed["map_at_r_by_class"]) == len("base64:") + 4 * len(values)
    assert packing.plain_by_class(packed) == values == packing.plain_by_class(evaluation) and packing.plain_by_class({}) is None
    packing.pack_logs("s")
    assert (run.folder / "evaluation.json").read_text() == content


@pytest.mark.parametrize("values", [[0.123456], [1.5], [-0.1], []])
def test_map_at_r_by_class_of_other_digits_stays_as_it_is(values, faked):
    run = train_or_load(make(), "s")
    content = json.dumps({"hits_at_1": "hex:8", "num_queries": 1, "map_at_r_by_class": values})
    (run.folder / "evaluation.json").write_text(content)
    packing.pack_logs("s")
    assert (run.folder / "evaluation.json").read_text() == content


def test_packed_logs_read_the_same_and_pack_to_the_same_bytes(faked):
    run = train_or_load(make(), "s")
    log = run.folder / "metrics.jsonl"
    numbers = {"seconds": 98.7654321, "seconds_a": 12.3456789, "grad_dml": 0.0316852, "grad_total": 1.0096852}
    more = numbers | {"step": 9, "loss_dml": 1.0316852, "deep": {"lists": [0.000123456, 7, "x"]}}
    log.write_text(log.read_text() + json.dumps(more) + "\n")
    before, text = load_run("s", make()).metrics, log.read_bytes()
    unfinished = log.parent.parent / "unfinished" / "metrics.jsonl"
    unfinished.parent.mkdir()
    unfinished.write_text('{"step": 1}\n')
    packing.pack_logs("s")
    packed = log.with_name("metrics.json.xz")
    assert not log.exists() and packed.is_file() and unfinished.is_file()
    after = load_run("s", make()).metrics
    last = after.iloc[-1]
    assert len(before) and before.columns.equals(after.columns) and before["step"].equals(after["step"])
    assert last["seconds"] == 98.8 and last["seconds_a"] == 12.35 and last["grad_dml"] == 0.032 and last["grad_total"] == 1.01
    assert last["loss_dml"] == 1.03 and last["deep"] == {"lists": [0.000123, 7, "x"]}
    content = packed.read_bytes()
    log.write_bytes(text)
    packing.pack_logs("s")
    assert packed.read_bytes() == content
    packed.write_bytes(content[:-9])
    with pytest.raises(SagaError, match=r"metrics\.json\.xz is damaged"):
        _ = load_run("s", make()).metrics


def test_weights_that_are_not_kept_are_trained_again_elsewhere(faked):
    run = train_or_load(make(), "s")
    (run.folder / "encoder" / "model.safetensors").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    with pytest.raises(SagaError, match="need_encoder=True"):
        run.encoder()
    again = train_or_load(make(), "s", need_encoder=True)
    assert again.folder == run_folder(BY_HAND, make()) and again.has_encoder()
    assert before == {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    (again.folder / "encoder" / "model.safetensors").unlink()
    assert train_or_load(make(), BY_HAND, need_encoder=True).has_encoder()


# ---------------------------------------------------------------------------------------------------- locks


def test_two_processes_cannot_train_the_same_run(faked, capsys):
    faked(pf="slow")
    folder = run_folder("s", make())
    worker = start_worker(make(), folder)
    try:
        wait_for((folder / "metrics.jsonl").is_file)
        with pytest.raises(SagaError, match=f"process {worker.pid}"):
            store.train_alone(resolving.resolve(make()), folder)
        with ThreadPoolExecutor() as threads:
            waits = threads.submit(train_or_load, make(), "s")  # as notebooks that are executed side by side do
            with pytest.raises(TimeoutError):
                waits.result(1)
            assert re.search(rf"trained by process {worker.pid}: +67%.* 2/3 ", capsys.readouterr().err), "how far it is"
            (folder / "go-on").touch()
            assert worker.wait(20) == 0
            finished_at = (folder / "evaluation.json").stat().st_mtime_ns
            assert waits.result(20).hits.sum() == 3
            assert (folder / "evaluation.json").stat().st_mtime_ns == finished_at, "it took what the other trained"
    finally:
        worker.kill()
    assert not (folder / ".lock").exists()
    assert train_or_load(make(), "s").hits.sum() == 3


def test_lock_of_a_dead_process_does_not_block(tmp_path):
    path = tmp_path / "lock"
    code = f"""
import os, pathlib
from saga_study.processes import only_one_process
with only_one_process(pathlib.Path({str(path)!r}), "x"):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.exists()
    with only_one_process(path, "x"):
        assert lock_holder(path) == str(os.getpid())
    assert not path.exists()


def start_worker(config, folder, parent=None):
    request = study_folder("requests") / f"{folder.name}.json"
    request.parent.mkdir(parents=True, exist_ok=True)
    request.write_text(json.dumps(worker_request(config, folder, parent)))
    return subprocess.Popen([sys.executable, "-m", "saga_study.runs", str(request)], stderr=subprocess.DEVNULL)


def test_worker_refuses_a_run_queued_by_other_code(faked):
    folder = study_folder("s") / "runs" / "0123456789ab"
    assert start_worker(make(), folder).wait(20) == 2
    assert not folder.exists()


def test_worker_stops_when_its_parent_is_killed(faked):
    faked(pf="slow")
    folder = run_folder("s", make())
    code = f"""
import sys, time
from saga_lib.config import RunConfig
from saga_study.runs.queue import run_queue
run_queue([RunConfig.from_dict({make().to_dict()!r})], "s", workers=1)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for((folder / "metrics.jsonl").is_file)
    worker = int(lock_holder(folder / ".lock"))
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(worker))
    assert not is_complete(folder)


# ---------------------------------------------------------------------------------------------------- queue


def test_queue_trains_the_missing_runs_longest_first(faked):
    configs = [make("pa"), make("saga_pf"), make("pf"), make("pf")]
    train_or_load(make("pf"), "s")
    out = io.StringIO()
    trained = run_queue(
        configs, "s", workers=1, expected_minutes=lambda config: 5 if config.method == "saga_pf" else 1, display=out
    )
    assert [run.config.method for run in trained] == ["pa", "saga_pf", "pf"]
    assert all(is_complete(run.folder) for run in trained)
    assert trained[1].metrics["started"].max() < trained[0].metrics["started"].min()
    assert out.getvalue().startswith("2 of 3 runs to train, 1 at a time; by the plan ")
    assert "3/3 miniature_birds pa seed 0 took" in out.getvalue()
    assert not list(study_folder("s").rglob("*.log"))
    again = io.StringIO()
    run_queue(configs, "s", display=again)
    assert again.getvalue() == ""


def test_queue_begins_with_what_it_is_asked_to(faked):
    configs, minutes = [make("pa"), make("saga_pf"), make("pf")], {"pa": 1, "saga_pf": 5, "pf": 3}
    trained = run_queue(configs, "s", 1, lambda config: minutes[config.method], io.StringIO(), first=configs[:1])
    starts = {run.config.method: run.metrics["started"].min() for run in trained}
    assert sorted(starts, key=starts.get) == ["pa", "saga_pf", "pf"]


def test_queue_works_in_parallel_and_in_child_environments(faked):
    configs = [make("pa"), make("pf")]
    faked(pa="slow", pf="slow")
    folders = [run_folder("s", config) for config in configs]
    code = f"""
from saga_lib.config import RunConfig
from saga_study.runs.queue import run_queue
run_queue([RunConfig.from_dict(c) for c in {[c.to_dict() for c in configs]!r}], "s", workers=2)
"""
    queue = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: all((folder / "metrics.jsonl").is_file() for folder in folders))  # both at once
    environment = psutil.Process(int(lock_holder(folders[0] / ".lock"))).environ()
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")} == {"1"}
    for folder in folders:
        (folder / "go-on").touch()
    assert "2/2" in queue.communicate(timeout=20)[1]
    assert queue.returncode == 0


def test_crash_stops_the_queue_with_the_last_error_line(faked):
    faked(saga_pf="crash", pf="slow")
    slow, crashing = make("pf"), make("saga_pf")
    line = "saga_pf seed 0.* failed: ZeroDivisionError: the loss divided by nothing"
    with pytest.raises(RunFailed, match=line) as caught:
        run_queue([slow, crashing, make("pa")], "s", workers=2, display=io.StringIO())
    assert "Traceback" in caught.value.log
    assert (run_folder("s", crashing) / "worker.log").is_file()
    assert not (run_folder("s", slow) / ".lock").exists()  # the other worker has ended, and cleanly
    assert not any(is_complete(run_folder("s", config)) for config in (slow, crashing))


@pytest.mark.parametrize(
    ("behaviour", "line"), [("mend", "x.png cannot be read"), ("disk-full", "No space left on device; free some space")]
)
def test_what_the_user_can_mend_stays_one_line(faked, behaviour, line):
    faked(pf=behaviour)
    with pytest.raises(SagaError, match=line) as caught:
        run_queue([make()], "s", workers=1, display=io.StringIO())
    assert "\n" not in str(caught.value)
    assert not [path for path in study_folder("s").rglob(".*") if path.is_file()], "a temporary file stayed behind"


def test_a_full_gpu_is_one_line_with_what_to_lower(faked, monkeypatch, tmp_path, capsys):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nmore of it")

    import torch

    monkeypatch.setattr(worker, "train_alone", fill)
    for supervisor, line in (
        ("Qwen/Qwen3-VL-8B-Instruct", "the plan expected 43 of its 80 GiB, which is too low, or others use this GPU; lower, in this"),
        ("someone/else", "lower tower_images, replay_rows, pairs_per_wave or"),
    ):
        config = make_config("paper", "cub200", "saga_pf", 0, supervisor=supervisor)
        request = tmp_path / "request.json"
        write_json(request, worker_request(config, run_folder(BY_HAND, config)))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
        assert main([str(request)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: the GPU's memory is full (CUDA out of memory. Tried to allocate 9.00 GiB.); ")
        assert line in said and said.endswith("start a new study with --set, e.g. --set replay_rows=1\n") and said.count("\n") == 1
    config = make_config("paper", "cub200", "saga_pf", 0, supervisor="Qwen/Qwen3-VL-8B-Instruct", tower_images=0)
    assert "; does not fit in 80 GiB: about 9" in (said := f"; {full_devices._what_to_lower(config)}") and "tower_images 16" in said


def test_workers_share_the_machine(monkeypatch):
    monkeypatch.setattr(processes, "count_cores", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=6 * 2**30))
    assert processes.worker_slots("miniature", None) == [None] * 4
    assert processes.worker_slots("miniature", 3) == [None] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert processes.worker_slots("paper", None) == ["2", "5"]
    assert processes.child_environment("paper", gpu="5")["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as --cpu leaves it
    assert processes.worker_slots("paper", 2) == [None] * 2 and processes.child_environment("paper")["OMP_NUM_THREADS"] == "1"


def job(expected, started=0.0, spent=0.0, step=0, steps=100, first=1, first_seen=0.0):
    seen = {"step": step, "steps": steps, "first_step": first, "first_seen": first_seen} if step else {}
    return Job(make(), None, expected, started=started, spent=spent, **seen)


def test_time_left_begins_with_the_plan_and_ends_with_the_median_pace():
    plan = remaining([job(60)] * 4, [], [], 2, now=0.0)
    assert plan.least == pytest.approx(0.8 * 120) and plan.most == pytest.approx(1.4 * 120), "a range around the plan"
    starting = remaining([job(60)] * 4, [job(60, started=0.0)], [], 2, now=300.0)
    assert starting.most < 400, "a slow start-up says nothing of the pace"
    young = remaining([job(60)] * 4, [job(60, step=9, first_seen=100.0)], [], 2, now=180.0)
    assert young.most == pytest.approx(starting.most, abs=60), "nor do the steps of a run that is not a tenth done"
    paces = [1.0, 1.1, 0.9, 1.0, 30.0]  # one of them waited for another
    late = remaining([job(60)] * 4, [], [job(60, spent=60 * pace) for pace in paces], 1, now=0.0)
    assert len(paces) == ENOUGH and late.least == late.most == pytest.approx(240), "one slow run does not decide"
    few = remaining([job(60)], [], [job(60, spent=30.0)], 1, now=99.0)
    assert few.least < 30 < few.most


def test_time_left_of_a_run_at_work_is_that_of_its_own_steps():
    half = job(60, started=0.0, step=51, first=1, first_seen=20.0)  # 50 steps in 50 s, after 20 s of start-up
    left = remaining([], [half], [], 1, now=70.0)
    assert left.least == left.most == pytest.approx(49) and half.pace(70.0) == pytest.approx(100 / 60)
    assert half.seconds_left(70.0) == pytest.approx(49) and job(60, step=100).pace(5.0) is None
    resumed = job(60, step=60, first=50, first_seen=10.0)
    assert resumed.seconds_left(30.0) == pytest.approx(2 * 40), "steps before the checkpoint took this process no time"


def test_time_left_is_told_as_a_range_while_little_is_known():
    assert Remaining(700, 1300).text() == "12 to 22 min left" and Remaining(50, 300).text() == "50 s to 5 min left"
    assert Remaining(7200, 7205).text() == "about 2.0 h left"


def test_progress_is_one_line_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("saga_study.runs.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    for stream, expected in ((Terminal(), 9), (io.StringIO(), 0)):
        clock.now = 0.0
        line = ProgressLine(stream)
        for _ in range(19):
            clock.now += 0.5
            line.update("x" * 300)
        line.close()
        assert stream.getvalue().count("x" * 20) > 0 if expected else stream.getvalue() == ""
        assert stream.getvalue().count("\r") == (expected + 1 if expected else 0)
        assert "\n" not in stream.getvalue()
    clock.now += 30
    line.update("still here")
    assert stream.getvalue() == "still here\n"
