"""The options of the command line that send runs to a cluster, checked before anything is submitted."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json
from saga_lib.common.paths import REPOSITORY
from saga_study.paths import cluster_folder, data_root, results_root
from saga_study.runs.slurm import Cluster, check_cluster, to_minutes
from saga_study.runs.status import tasks_alive

ENGINES = ("local", "slurm")
OWN = ("partition", "gpus_per_node", "max_parallel", "time", "account")  # options that only a cluster has


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command line's parser."""
    add = parser.add_argument
    add("--cluster", metavar="slurm", help="train on a SLURM cluster, one task a run (docs/cluster.md); a study that has begun there "
        "goes on there, unless --cluster local")
    add("--partition", metavar="NAME", help="cluster: where its jobs run (default: the cluster's own default)")
    add("--gpus-per-node", metavar="N", help="cluster: GPUs of a task (default: one for profile paper, else none)")
    add("--max-parallel", metavar="N", help="cluster: tasks at a time (default: as many as the cluster starts)")
    add("--time", metavar="MINUTES", help="cluster: how long a task may take before its run goes on in another, also as 8:00:00 "
        "or 1-12:00:00 (default: what the partition allows, a day at most)")
    add("--account", metavar="NAME", help="cluster: which account pays")
    add("--status", action="store_true", help="with --resume: print the state of every run, then stop")
    add("--cancel", action="store_true", help="with --resume: cancel the study's jobs on the cluster, then stop")


def chosen_cluster(options: argparse.Namespace, profile: str, study: str | None, cpu: bool = False) -> Cluster | None:
    """Return where runs are sent to, None for this machine.

    Options that are left out are those that the study, if it goes on, was submitted with. Raises `SagaError` for values that make no sense.
    """
    given = {name: value for name in OWN if (value := getattr(options, name)) is not None}
    if options.cluster and options.cluster not in ENGINES:
        raise unknown_name("--cluster", options.cluster, ENGINES)
    had = _submitted_with(study) if study else None
    if options.cluster == "local" or not (options.cluster or had):
        if given:
            raise SagaError(f"--{next(iter(given)).replace('_', '-')} is for runs on a cluster: add --cluster slurm, or leave it out")
        if study and had and (alive := tasks_alive(study)):
            raise SagaError(f"study {study} has {len(alive)} jobs on the cluster: leave --cluster local out, or first end them by --cancel")
        return None
    per_run = int(options.gpus_per_run)
    cluster = had or Cluster(gpus_per_node=per_run * (profile == "paper" and not cpu))
    for name, value in given.items():
        if name == "time":
            minutes = to_minutes(value)
            if not minutes:
                raise SagaError(f"--time takes minutes such as 480, or a time such as 8:00:00 or 1-12:00:00, got {value!r}")
            cluster = replace(cluster, minutes=minutes)
        elif name in ("partition", "account"):
            if not value or value.startswith("-") or not value.isprintable():
                raise SagaError(f"--{name} takes a name, got {value!r}")
            cluster = replace(cluster, **{name: value})
        else:
            least = 1 if name == "max_parallel" else 0
            if not value.isdecimal() or int(value) < least:
                raise SagaError(f"--{name.replace('_', '-')} takes a number of at least {least}, got {value!r}")
            cluster = replace(cluster, **{name: int(value)})
    if per_run > max(1, cluster.gpus_per_node) and profile == "paper" and not cpu:
        raise SagaError(f"--gpus-per-run {per_run} needs as many in a node: add --gpus-per-node {per_run}, or more")
    return cluster


def _submitted_with(study: str) -> Cluster | None:
    """Return what a study was submitted with, None if it has no jobs on a cluster."""
    path = cluster_folder(study) / "options.json"
    if not path.is_file():
        return None
    content = read_json(path)
    return Cluster(**{field.name: content[field.name] for field in fields(Cluster) if field.name in content})


def checked(cluster: Cluster) -> Cluster:
    """Return a cluster with what it leaves open filled in; raises `SagaError` if it would not take our jobs, or not see our folders."""
    return check_cluster(cluster, [results_root(), data_root(), REPOSITORY, Path(sys.prefix)])
