"""A server that imports torch and transformers once and forks the worker processes of a queue: each starts without these imports.

`multiprocessing` has such a server too, but its children outlive a parent that was killed, and its socket's folder stays behind.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from signal import SIGKILL, SIGTERM

from saga_lib.common.paths import REPOSITORY
from saga_study.runs.children import child_exit_code
from saga_study.runs.worker import train_requested

# What a worker imports on its way, for the most part when it is needed; none of it may start a thread, which a fork would lose.
MODULES = (
    "saga_lib.training", "saga_lib.families.qwen3_vl", "saga_lib.families.internvl", "saga_study.audit", "pandas",
    "pytorch_metric_learning.samplers", "pytorch_metric_learning.utils.accuracy_calculator",
    "transformers.models.auto.processing_auto", "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.internvl.modeling_internvl",
)  # fmt: skip
POLL_SECONDS = 0.05


class ForkServer:
    """The parent's end: `fork` asks for a worker. The server and its workers end with the process that started it."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Prepare it; it and its workers have this environment."""
        self.environment, self.process = environment, None
        self.workers: list[Forked] = []
        self._unread = b""

    def fork(self, request: Path, log: Path) -> Forked:
        """Ask for a worker that trains what a request file describes; all that it prints is added to `log`.

        So is what the server prints, which the first worker starts, as long as it cannot fork. Raises `OSError` if it cannot start.
        """
        if self.process is None:
            with open(log, "ab") as complaints:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "saga_study.runs", "--serve", str(os.getpid())], cwd=REPOSITORY, env=self.environment,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True,
                )  # fmt: skip
            os.set_blocking(self.process.stdout.fileno(), False)
        self.workers.append(Forked(self))
        with suppress(BrokenPipeError):  # then the worker's `poll` says that the server has ended
            self.process.stdin.write(json.dumps([str(request), str(log)]).encode() + b"\n")
            self.process.stdin.flush()
        return self.workers[-1]

    def read(self) -> None:
        """Take in what the server has said of its workers: their process numbers, their exit codes, or nothing any more."""
        said = self.process.stdout.read()
        *lines, self._unread = (self._unread + (said or b"")).split(b"\n")
        for number, pid, code in map(json.loads, lines):
            self.workers[number].pid, self.workers[number].returncode = pid, code
        if said == b"":  # it has ended, and so do its workers
            code = self.process.wait()
            for worker in self.workers:
                if worker.returncode is None:
                    worker.returncode = code or -SIGKILL

    def close(self) -> None:
        """End the server, and with it what is left of its workers."""
        if self.process is None:
            return
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


class Forked:
    """A worker process of a server, with what `subprocess.Popen` offers; `pid` is None until it runs."""

    def __init__(self, server: ForkServer) -> None:
        self.server, self.pid, self.returncode = server, None, None

    def poll(self) -> int | None:
        """Return the exit code, below zero of a signal; None while it runs."""
        if self.returncode is None:
            self.server.read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(POLL_SECONDS)
        return self.returncode

    def terminate(self) -> None:
        self._send(SIGTERM)

    def kill(self) -> None:
        self._send(SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid or self.server.process.pid, number)  # before it runs, its server is all that there is


def serve_forks(parent: int) -> int:
    """Be the server: fork a worker for each line on stdin, say on stdout how it went, end with the parent."""
    for module in MODULES:
        import_module(module)
    server, workers, requests, unread = os.getpid(), {}, 0, b""
    while os.getppid() == parent:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    return _work(*map(Path, json.loads(line)), server)
                workers[pid] = requests
                _say(requests, pid, None)
                requests += 1
        for pid in list(workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _say(workers.pop(pid), pid, os.waitstatus_to_exitcode(status))
    return 0  # the workers notice


def _say(number: int, pid: int, code: int | None) -> None:
    with suppress(BrokenPipeError):
        os.write(1, json.dumps([number, pid, code]).encode() + b"\n")


def _work(request: Path, log: Path, server: int) -> int:
    """Be a worker, in a session of its own: Ctrl-C reaches only the study, which then stops its workers in order."""
    os.setsid()
    for path, flags, numbers in ((os.devnull, os.O_RDONLY, (0,)), (log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2))):
        opened = os.open(path, flags, 0o666)
        for number in numbers:
            os.dup2(opened, number)
        os.close(opened)
    return child_exit_code(lambda: train_requested(request, server))
