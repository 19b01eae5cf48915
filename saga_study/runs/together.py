"""One run on several processes of this machine, each with a GPU: started and watched by torch's own launcher, as torchrun does it."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_lib.records import ResolvedRun
from saga_study.processes import stop_with
from saga_study.runs.children import RunFailed, last_line


def can_share(config: RunConfig, ranks: int) -> bool:
    """Return whether a run can be shared out over so many GPUs."""
    return not (config.batch_size % ranks or config.pairs_per_wave % ranks)


def check_ranks(config: RunConfig, ranks: int) -> None:
    """Raise `SagaError` if a run cannot be shared out over so many GPUs."""
    for name in ("batch_size", "pairs_per_wave"):
        if (value := getattr(config, name)) % ranks:
            most = max(count for count in range(1, ranks) if can_share(config, count))
            raise SagaError(f"--gpus-per-run {ranks} does not divide {name} = {value}; {most} would, or --set another {name}")


def train_together(resolved: ResolvedRun, folder: Path, report: object = None, *, ranks: int) -> None:
    """Train a run in its folder as `saga_lib.training.train` does, shared out over `ranks` processes, which report nothing.

    The first that fails ends the others. Raises `SagaError` if the user can mend it, else `RunFailed`, with what that one has said.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs:
        launch = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=folder.name, max_restarts=0, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="127.0.0.1", logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(launch, _train)(resolved.config.to_dict(), str(folder))
        except SignalException as error:
            raise KeyboardInterrupt(signal.Signals(error.sigval).name) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            said = failure.message["message"] if isinstance(failure.message, dict) else failure.message
            if said.startswith("SagaError: "):
                raise SagaError(last_line(said.removeprefix("SagaError: "))) from None
            how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"failed: {last_line(said)}"
            raise RunFailed(f"process {rank} of the run's {ranks} {how}; once started again, it goes on from its checkpoint") from None


def _train(config: dict, folder: str) -> None:
    """What each of the processes does."""
    from saga_lib.training import train
    from saga_study.resolving import resolve
    from saga_study.runs.full_devices import full_devices_explained

    stop_with(os.getppid())  # the launcher may be killed before it can stop them
    run = RunConfig.from_dict(config)
    with full_devices_explained(Path(folder), run):
        train(resolve(run), Path(folder))
