"""Workers that a server forks: the numbers of any other process, and nobody outlives anybody."""

import io
import os
import signal
import subprocess
import sys

import psutil
import pytest
from test_runs import is_alive, make, wait_for

from saga_lib.common.paths import REPOSITORY
from saga_lib.records import Run
from saga_study.paths import is_complete
from saga_study.processes import lock_holder
from saga_study.runs import fork_server
from saga_study.runs.children import RunFailed
from saga_study.runs.queue import run_queue
from saga_study.runs.reproduce import reproduce
from saga_study.runs.store import run_folder

MEASURED = ("second", "started", "peak_gib")  # in the names of a log's columns that no two runs have in common


def test_what_the_server_imports_starts_no_thread_and_asks_for_no_gpu():
    code = (
        "import os; from importlib import import_module; from saga_study.runs.fork_server import MODULES\n"
        "for module in MODULES: import_module(module)\n"
        "import torch; print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["1", "False"], "a fork would lose the threads"
    assert said.stderr == "", "it would be in the first worker's log"


def test_a_forked_worker_computes_what_any_process_does(results, tmp_path):
    configs = [make("pf"), make("saga_pf")]
    run = run_queue(configs, "s", workers=1, display=io.StringIO())[1]
    assert reproduce(run.folder, tmp_path / "again") == []
    again = Run(tmp_path / "again", run.config).metrics
    numbers = [column for column in run.metrics if not any(word in column for word in MEASURED)]
    assert len(numbers) > 20
    assert run.metrics[numbers].equals(again[numbers])


@pytest.mark.parametrize("victim", ["server", "worker"])
def test_a_server_or_worker_that_is_killed_ends_the_queue_in_one_line(faked, monkeypatch, victim):
    faked(pf="slow", pa="slow")
    configs, killed = [make("pf"), make("pa")], []

    class Server(fork_server.ForkServer):
        def read(self):
            super().read()
            if not killed and all((run_folder("s", config) / "metrics.jsonl").is_file() for config in configs):
                killed.extend(worker.pid for worker in self.workers)
                os.kill(self.process.pid if victim == "server" else killed[0], signal.SIGKILL)

    monkeypatch.setattr("saga_study.runs.local.ForkServer", Server)
    with pytest.raises(RunFailed, match="seed 0.* was killed by SIGKILL"):
        run_queue(configs, "s", workers=2, display=io.StringIO())
    wait_for(lambda: not any(map(is_alive, killed)))
    assert not any(is_complete(run_folder("s", config)) for config in configs)
    faked()
    assert all(is_complete(run.folder) for run in run_queue(configs, "s", workers=2, display=io.StringIO()))


def test_a_queue_of_forked_workers_that_is_killed_leaves_no_process(faked):
    faked(pf="slow", pa="slow")
    configs = [make("pf"), make("pa")]
    code = f"""
from saga_lib.config import RunConfig
from saga_study.runs.queue import run_queue
run_queue([RunConfig.from_dict(c) for c in {[c.to_dict() for c in configs]!r}], "s", workers=2)
"""
    queue = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    folders = [run_folder("s", config) for config in configs]
    wait_for(lambda: all((folder / "metrics.jsonl").is_file() for folder in folders))
    workers = [int(lock_holder(folder / ".lock")) for folder in folders]
    [server] = {psutil.Process(worker).ppid() for worker in workers}
    assert psutil.Process(server).ppid() == queue.pid
    queue.kill()
    queue.wait()
    wait_for(lambda: not any(map(is_alive, [server, *workers])))
    assert not any(is_complete(folder) for folder in folders)


def test_a_server_that_cannot_import_says_so(faked, monkeypatch, tmp_path):
    (tmp_path / "site" / "broken_module.py").write_text("raise ImportError('libnothing.so is missing')")
    customize = tmp_path / "site" / "sitecustomize.py"
    customize.write_text(customize.read_text().replace("MODULES = ()", "MODULES = ('broken_module',)"))
    with pytest.raises(RunFailed, match="ImportError: libnothing.so is missing"):
        run_queue([make("pf"), make("pa")], "s", workers=2, display=io.StringIO())
