"""Child processes that do one piece of work each: started with a request file, watched, stopped, and how they report errors."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError, cannot_write
from saga_lib.common.files import write_json
from saga_lib.common.paths import REPOSITORY
from saga_study.commands import MENDABLE, exit_code

PATIENCE_SECONDS = 10  # between asking a child to stop and killing it


class RunFailed(Exception):
    """A child process failed in a way that no setting mends; `log` holds its whole output."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def last_line(text: str) -> str:
    """Return the last line of an output that is not empty, which says what was wrong; "" if there is none.

    What Python says of semaphores that a killed process left does not count: it comes after everything else.
    """
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip() and "resource_tracker" not in line), "")


def child_exit_code(
    work: Callable[[], int | None], describe: Callable[[Exception], str] = lambda _: traceback.format_exc().rstrip()
) -> int:
    """Do the work of a child process and return its exit code; after an error, the last line on stderr says what it was.

    As `exit_code`, and 1 after any other error than the user's, which `describe` puts into words. SIGTERM counts as Ctrl-C.
    """
    try:
        return exit_code(work)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return MENDABLE
    except Exception as error:  # noqa: BLE001  (whatever it is, the parent process shows it)
        print(describe(error), file=sys.stderr)
        return 1


class Child:
    """A process that runs a module of this repository on a request file; all that it prints goes to `log`."""

    def __init__(
        self, what: str, command: Sequence[str], request: dict, log: Path, environment: dict[str, str], fork: Callable | None = None
    ) -> None:
        """Start it. `what` names its work in messages; `command` is a module and the path of the request file to write.

        `fork` (`fork_server.ForkServer.fork`) starts it in place of a new Python. Raises `SagaError` if it cannot be started.
        """
        self.what, self.log, self.started = what, log, time.monotonic()
        write_json(Path(command[-1]), request)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as output:
                # In a session of its own, Ctrl-C reaches only the parent, which then stops its children in order.
                self.process = fork(Path(command[-1]), log) if fork else subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, env=environment,
                )  # fmt: skip
        except OSError as error:
            raise SagaError(f"cannot start {what}: {cannot_write(log, error)}") from error

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def check(self) -> None:
        """Raise the error that an ended process had, if any: `SagaError` if the user can mend it, else `RunFailed`."""
        code = self.process.returncode
        if code == 0:
            return
        output = self.log.read_text(encoding="utf-8", errors="replace")
        if not output.strip():
            self._check_log()
        last = last_line(output) or f"exit code {code}"
        if code == MENDABLE and last.startswith("error: "):
            raise SagaError(f"{self.what}: {last.removeprefix('error: ')}")
        reason = f"failed: {last}"
        if code < 0:
            hint = "; if memory ran out, use fewer --workers" if code == -signal.SIGKILL else ""
            reason = f"was killed by {signal.Signals(-code).name}{hint}"
        raise RunFailed(f"{self.what} {reason}", output)

    def _check_log(self) -> None:
        """Raise `SagaError` if the child could not even write why it failed, because this process cannot either."""
        try:
            with open(self.log, "ab") as output:
                output.write(b"\n" * 4096)
        except OSError as error:
            raise SagaError(f"{self.what}: {cannot_write(self.log, error)}") from error


def stop(children: Sequence[Child]) -> None:
    """Ask processes to stop, wait for a moment, then kill those that are left."""
    for child in children:
        if not child.has_ended():
            child.process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
