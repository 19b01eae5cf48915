"""Set up a SLURM cluster of one node on this machine, as root, in a folder of its own: `python start_slurm.py FOLDER [start|stop]`.

It is for tests: munge, slurmctld and slurmd of Debian's packages `slurm-wlm` and `munge` (apt-get install -y --no-install-recommends
slurm-wlm munge). Commands such as sbatch find the cluster by SLURM_CONF=FOLDER/slurm.conf. The node has two CPUs, whatever the machine has.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = (*DAEMONS, "sbatch", "srun", "sinfo", "squeue", "scontrol", "scancel")
SECONDS = 30  # until the node is idle

# Two CPUs: runs side by side. Fresh credentials expire soon, for a requeued job waits until they have.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=2
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=60 State=UP
"""


def why_not() -> str:
    """Return why there can be no cluster here, "" if there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    absent = [name for name in COMMANDS if shutil.which(name, path=_path()) is None]
    return f"SLURM is not installed ({', '.join(absent)}): apt-get install -y --no-install-recommends slurm-wlm munge" if absent else ""


def start(folder: Path) -> dict[str, str]:
    """Start the cluster with all its files in `folder`; return the environment variables that commands need.

    Raises `RuntimeError` with the logs if its node does not come up.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(2)))
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    commands = [
        ["munged", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", f"--pid-file={folder}/munged.pid",
         f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-c"],
        ["slurmd"],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(command, env=os.environ | environment, check=True, stdin=subprocess.DEVNULL, cwd=folder)
    deadline = time.monotonic() + SECONDS
    while _run(["sinfo", "--noheader", "--format=%T"], environment) != "idle":
        if time.monotonic() > deadline:
            stop(folder)
            raise RuntimeError("\n".join(log.read_text()[-2000:] for log in sorted(folder.glob("*.log"))))
        time.sleep(0.2)
    return environment


def stop(folder: Path) -> None:
    """Stop the cluster of a folder and the jobs it has."""
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    _run(["scancel", "--full", "--signal=KILL", "--user=root"], environment)
    for name in reversed(DAEMONS):
        try:
            process = int((folder / f"{name}.pid").read_text())
            os.kill(process, signal.SIGTERM)
        except (OSError, ValueError):  # it has not come up, or has ended
            continue
        deadline = time.monotonic() + SECONDS
        while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where daemons are


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


if __name__ == "__main__":
    where, what = Path(sys.argv[1]).absolute(), sys.argv[2] if len(sys.argv) > 2 else "start"
    if what == "stop":
        stop(where)
    elif reason := why_not():
        sys.exit(f"error: {reason}")
    else:
        print(f"export SLURM_CONF={start(where)['SLURM_CONF']}")
