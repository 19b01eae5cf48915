"""A table's cells with the runs that fill them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.design.minutes import expected_minutes
from saga_study.design.tables import DATASETS, WITH_FULL, methods_of, seeds_of, table_runs, why_not
from saga_study.methods import Profile, describe
from saga_study.paths import BY_HAND
from saga_study.runs.store import load_finished, load_run, train_or_load


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a method on a benchmark with its settings, and its runs, one for every seed."""

    config: RunConfig  # of its runs, with seed 0
    runs: tuple[Run, ...] = ()
    absent: str = ""  # why there are no runs


def table_cells(
    table: str, profile: Profile | str, study: str, datasets: Sequence[str] = (), methods: Sequence[str] = (),
    seeds: Mapping[str, Sequence[int]] | None = None, full: bool = False,
) -> list[Cell]:  # fmt: skip
    """Return the cells of a whole table with their runs; planned runs that the study does not have yet are trained first.

    A cell that belongs to --full, or that nothing can fill yet, has no runs and says why.
    """
    from saga_study.teaching import half_taught

    profile = Profile.of(profile)
    seeds = {name: (seeds or {}).get(name) or seeds_of(profile.name, name, full) for name in tuple(datasets) or DATASETS[profile.name]}
    planned = set(table_runs(table, profile, datasets, methods, seeds, full))
    half_taught.make_missing({run.supervisor for run in planned})
    listed = [name for name in methods_of(table, profile.name) if not methods or name in methods]
    by_cell: dict[RunConfig, list[RunConfig]] = {}
    for run in table_runs(table, profile, datasets, listed, seeds, ready_only=False):
        by_cell.setdefault(replace(run, seed=0), []).append(run)
    cells = []
    for config, runs in by_cell.items():
        found = tuple(train_or_load(run, study) for run in runs if run in planned)
        cells.append(Cell(config, found, "" if found else why_not(table, config, profile) or WITH_FULL))
    return cells


def finished_table(table: str, profile: Profile | str, study: str, datasets: Iterable[str] = ()) -> list[Run]:
    """Return the runs of a table on validation classes if a study has finished them all, otherwise none; trains nothing."""
    wanted = table_runs(table, profile, datasets)
    if len(load_finished(study, wanted)) < len(wanted):  # known without rendering any benchmark
        return []
    found = [load_run(study, config) for config in wanted]  # None for runs of other images or supervisors than today's
    return found if None not in found else []


def runs_with_weights(configs: Sequence[RunConfig], study: str, train: bool = True) -> list[Run]:
    """Return runs of a study with their encoders; those without are trained after a line that says how long it takes.

    A record that came with the repository has no weights: such a run is trained again in the study by-hand, and the record stays as it
    is. With `train` off, a `SagaError` says instead which runs have none, how long they take and how to get them.
    """
    known = {config: load_run(study, config) for config in configs}
    without = [config for config, run in known.items() if run is None or not run.has_encoder()]
    lacking = [c for c in without if (own := load_run(BY_HAND, c)) is None or not own.has_encoder()]
    names, minutes = ", ".join(map(describe, lacking)), sum(map(expected_minutes, lacking))
    if lacking and not train:
        raise SagaError(
            f"the weights of {names} are not on this machine (records of runs are kept in git without them): set TRAIN = True to "
            f"train them here, about {minutes:.0f} minutes, or copy the folders encoder/ of these runs from where they were trained"
        )
    if lacking:
        print(f"not on this machine and trained now, about {minutes:.0f} minutes in all: {names}")
    return [train_or_load(config, study, need_encoder=True) for config in configs]
