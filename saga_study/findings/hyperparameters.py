"""The search for settings on validation classes: its table, its log, its conclusions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_text
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.commands import CommandLine, exit_code
from saga_study.design.trials import SEARCH, SEARCH_SEEDS, check_validation, trial_run, trials
from saga_study.findings.samples import bootstrap_points, hits_of, mean_metric, metric
from saga_study.findings.words import Interval, label, seeds_in_words
from saga_study.methods import Profile, make_config
from saga_study.paths import TUNING_LOG, study_folder
from saga_study.runs.store import load_finished

_BEHIND = tuple(Interval().columns("behind"))


def search_table(runs: Sequence[Run], profile: Profile | str | None = None) -> pd.DataFrame:
    """Return one row per method and trial: its settings (JSON) and its results on validation classes, over `SEARCH_SEEDS`.

    `profile` is that of the runs; give it where --set chose settings in place of its own.

    Columns: R@1, R@4 (%) and NMI per dataset (mean over seeds); mean R@1 (over datasets and seeds), spread (its standard deviation over
    seeds), deciding R@1 (of the first seed alone), other R@1 (of the others); chosen, the best deciding R@1 of a method, of equal ones the
    first; best, the best other R@1 likewise; and of chosen trials behind, behind low, behind high (points of R@1 from the best to the
    chosen by the other seeds, 95 % interval over queries and seeds; NaN where they are the same). Raises `SagaError` for runs that are no
    trials of today's `SEARCH` or not on validation classes, and for a trial that lacks a dataset or seed.
    """
    check_validation(runs)
    found = {run.config: run for run in runs}
    datasets, profile = list(dict.fromkeys(run.config.dataset for run in runs)), profile or runs[0].config.profile
    rows, of_trial = [], {}
    for method in dict.fromkeys(run.config.method for run in runs):
        for number, settings in enumerate(SEARCH.get(method, ())):
            of_trial[method, number + 1] = trial = {
                dataset: [_found(found, trial_run(profile, dataset, method, number, seed), number + 1) for seed in SEARCH_SEEDS]
                for dataset in datasets
            }
            row = {"method": method, "trial": number + 1, "settings": json.dumps(settings)}
            for dataset in datasets:
                row |= {f"{name} {dataset}": round(mean_metric(trial[dataset], name), 6) for name in ("R@1", "R@4", "NMI")}
            recalls = pd.DataFrame({dataset: [metric(run, "R@1") for run in trial[dataset]] for dataset in datasets}).mean(axis=1)
            row |= {"mean R@1": recalls.mean(), "spread": recalls.std(), "seeds": len(recalls)}
            row |= {"deciding R@1": recalls[0], "other R@1": recalls[1:].mean()}
            rows.append({name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()})
    used = {run.config for trial in of_trial.values() for of_dataset in trial.values() for run in of_dataset}
    if strange := [run for config, run in found.items() if config not in used]:
        raise SagaError(f"run {strange[0].key} ({strange[0].config.method}) is no trial of saga_study.design.trials.SEARCH; leave it out")
    table = pd.DataFrame(rows)
    for mark, column in (("chosen", "deciding R@1"), ("best", "other R@1")):
        table[mark] = table.index.isin(table.groupby("method")[column].idxmax())  # of equal ones the first
    table = table.assign(**Interval().columns("behind"))
    for row in table[table["chosen"] & ~table["best"]].itertuples():
        best = table[table["best"] & (table["method"] == row.method)]["trial"].item()
        sides = [of_trial[row.method, trial] for trial in (row.trial, best)]
        behind = bootstrap_points([tuple(hits_of(side[dataset][1:]) for side in sides) for dataset in datasets])
        table.loc[row.Index, list(_BEHIND)] = [round(value, 6) for value in behind]
    return table


def _found(found: Mapping[RunConfig, Run], config: RunConfig, trial: int) -> Run:
    if config not in found:
        raise SagaError(f"trial {trial} of {config.method} lacks a run on {config.dataset} with seed {config.seed}; "
                        "finish the study (--resume STUDY --full)")  # fmt: skip
    return found[config]


def display_search(table: pd.DataFrame) -> pd.DataFrame:
    """Return a search table as people read it: settings in words, R@1 over all seeds and of the seed that chose, what was chosen."""
    datasets = [name for name in table if name.startswith("R@1 ")]
    shown = pd.DataFrame({"method": table["method"].map(label), "trial": table["trial"]})
    shown["settings"] = table["settings"].map(lambda text: ", ".join(f"{name} {value}" for name, value in json.loads(text).items()))
    for name in datasets if len(datasets) > 1 else ():
        shown[f"{name} % (validation)"] = table[name].map("{:.1f}".format)
    spreads = table["spread"].map(lambda value: f" ± {value:.1f}" if value == value else "")
    name = f"{'mean R@1' if len(datasets) > 1 else (*datasets, 'R@1')[0]} % (validation)"
    first, others = str(SEARCH_SEEDS[0]), ", ".join(map(str, SEARCH_SEEDS[1:]))
    shown[f"{name}, {seeds_in_words(table['seeds'])}"] = table["mean R@1"].map("{:.1f}".format) + spreads
    shown[f"{name}, seed {first}"] = table["deciding R@1"].map("{:.1f}".format)
    shown[f"{name}, seeds {others}"] = table["other R@1"].map("{:.1f}".format)
    shown[f"by seed {first}"] = table["chosen"].map({True: "chosen", False: ""})
    shown[f"by seeds {others}"] = table["best"].map({True: "best", False: ""})
    return shown


def search_conclusions(table: pd.DataFrame) -> list[str]:
    """Return one sentence per method: the chosen trial, of how many, and its result on the seeds that did not choose it."""
    sentences = []
    for method, rows in table.groupby("method", sort=False):
        chosen, best = rows[rows["chosen"]].iloc[0], rows[rows["best"]].iloc[0]
        text = f"{label(method)}: trial {chosen['trial']} of {len(rows)} was chosen by seed {SEARCH_SEEDS[0]} "
        text += f"(R@1 {chosen['deciding R@1']:.1f} %); the {len(SEARCH_SEEDS) - 1} seeds that did not choose give it "
        text += f"{chosen['other R@1']:.1f} %, "
        if chosen["trial"] == best["trial"]:
            text += "more than any other trial."
        else:
            text += f"and most to trial {best['trial']}, {best['other R@1']:.1f} %: "
            text += f"the chosen one is {Interval.of(chosen, 'behind').text()} points from it."
        sentences.append(text)
    return sentences


def search_of(runs: Sequence[Run], profile: Profile | str | None = None) -> tuple[pd.DataFrame, str]:
    """Return the search table of some runs and where it comes from; without runs, that of the committed log, else an empty one."""
    if runs:
        return search_table(runs, profile), f"The search of this study: {len(runs)} runs."
    if (log := read_log()) is not None:
        return log, f"The committed log of the search ({TUNING_LOG.relative_to(REPOSITORY)}); its runs are not in this study."
    columns = ("method", "trial", "settings", "mean R@1", "spread", "seeds", "deciding R@1", "other R@1", "chosen", "best", *_BEHIND)
    empty = pd.DataFrame(columns=columns)
    return empty, "No search: neither are its runs in this study (go on with it by ./run_all.sh --resume STUDY --full) nor is there a log."


def write_log(study: str) -> Path:
    """Write the search of a finished miniature study to the committed log and return its path."""
    manifest = read_json(study_folder(study) / "manifest.json")
    if manifest["profile"] != "miniature":
        raise SagaError(f"study {study} is of profile {manifest['profile']}; the log holds the search of profile miniature")
    wanted = trials("miniature")
    found = load_finished(study, wanted)
    if len(found) < len(wanted):
        raise SagaError(f"study {study} has {len(found)} of {len(wanted)} trials; finish it with ./run_all.sh --resume {study} --full")
    write_text(TUNING_LOG, search_table([found[config] for config in wanted]).to_csv(index=False, lineterminator="\n"))
    return TUNING_LOG


def read_log() -> pd.DataFrame | None:
    """Return the committed log of the search, None as long as there is none."""
    return pd.read_csv(TUNING_LOG) if TUNING_LOG.is_file() else None


def unlike_log(log: pd.DataFrame) -> list[str]:
    """Return, a line each, where the settings that `make_config` gives a method are not those of its chosen trial in a log."""
    dataset = next(name for name in log if name.startswith("R@1 ")).removeprefix("R@1 ")
    lines = []
    for row in log[log["chosen"]].itertuples():
        used = make_config("miniature", dataset, row.method, 0)
        chosen = make_config("miniature", dataset, row.method, 0, **json.loads(row.settings))
        if used != chosen:
            names = [name for name in {**used.to_dict(), **chosen.to_dict()} if getattr(used, name) != getattr(chosen, name)]
            differs = ", ".join(f"{name} {getattr(used, name)} instead of {getattr(chosen, name)}" for name in names)
            lines.append(f"{row.method} uses {differs}; the log chose trial {row.trial}")
    return lines


def _main() -> None:
    parser = CommandLine(prog="python -m saga_study.findings.hyperparameters")
    parser.add_argument("study", help="a study by its id")
    study = parser.parse_args().study
    print(f"wrote {write_log(study)}")


if __name__ == "__main__":  # python -m saga_study.findings.hyperparameters STUDY: renew the committed log of the search
    sys.exit(exit_code(_main))
