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
from saga_study.design.trials import DECIDING_SEEDS, SEARCH, SEARCH_SEEDS, check_validation, trial_run, trials
from saga_study.findings.samples import bootstrap_points, clustered_hits, map_points, mean_metric, metric
from saga_study.findings.words import Interval, label, seeds_in_words
from saga_study.methods import METHODS, Profile, make_config
from saga_study.paths import TUNING_LOG, study_folder
from saga_study.runs.store import load_finished, load_run

SCORED = ("R@1", "MAP@R")  # their mean, the score, chooses: R@1 alone saturates
STAGES = {  # of the search, by a method's signal: metric losses first, then what is added to the better of a loss's two rows
    "": "1: metric loss", "anchor": "1: metric loss + anchor", "grpo": "2: SAGA", "contrast": "2: reading contrast", "oracle": "2: oracle",
    "distilled": "2: readings distilled",
}  # fmt: skip
_KNOWN = ("method", "stage", "trial", "settings", *(f"mean {name}" for name in (*SCORED, "score")), "spread", "seeds")
_KNOWN += (*(f"deciding {name}" for name in (*SCORED, "score")), "chosen")

# ------------------------------------------------------------------------------------------------- its table


def search_table(runs: Sequence[Run], profile: Profile | str | None = None) -> pd.DataFrame:
    """Return one row per method and trial: its settings (JSON) and its results on validation classes, over `SEARCH_SEEDS`.

    `profile` is that of the runs; give it where --set chose settings in place of its own.

    Columns: stage (of `STAGES`); R@1, R@4, MAP@R (%) and NMI per dataset (mean over seeds). Over datasets: mean R@1, mean MAP@R and mean
    score (the mean of both, in points), spread (the score's standard deviation over seeds), the same three as "deciding" (of
    `DECIDING_SEEDS`) and chosen, the best deciding score of a method, of equal ones (to a hundredth of a point) the first. Where there are
    runs of the seeds after those, which only judge: the three as "other"; best, the best other score; and of chosen trials behind (points
    of the score from the best to the chosen by these seeds), with its parts behind R@1 and behind MAP@R and their 95 % intervals (over
    queries or classes, and seeds; NaN where both are the same). Raises `SagaError` for runs that are no trials of today's `SEARCH` or not
    on validation classes, and for a trial that lacks a dataset or seed.
    """
    check_validation(runs)
    found = {run.config: run for run in runs}
    datasets, profile = list(dict.fromkeys(run.config.dataset for run in runs)), profile or runs[0].config.profile
    judging = [seed for seed in SEARCH_SEEDS if seed not in DECIDING_SEEDS and seed in {run.config.seed for run in runs}]
    rows, of_trial = [], {}
    for method in dict.fromkeys(run.config.method for run in runs):
        for number, settings in enumerate(SEARCH.get(method, ())):
            of_trial[method, number + 1] = trial = {
                (dataset, seed): _found(found, trial_run(profile, dataset, method, number, seed), number + 1)
                for dataset in datasets for seed in (*DECIDING_SEEDS, *judging)
            }  # fmt: skip
            row = {"method": method, "stage": STAGES[METHODS[method].signal], "trial": number + 1, "settings": json.dumps(settings)}
            row |= _levels(trial, judging)
            rows.append({name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()})
    used = {run.config for trial in of_trial.values() for run in trial.values()}
    if strange := [run for config, run in found.items() if config not in used]:
        raise SagaError(f"run {strange[0].key} ({strange[0].config.method}) is no trial of saga_study.design.trials.SEARCH; leave it out")
    table = pd.DataFrame(rows)
    for mark, column in (("chosen", "deciding score"), ("best", "other score")):
        if column in table:
            best = table[column].round(2).groupby(table["method"]).idxmax()  # of equal ones, to a hundredth of a point, the first
            table[mark] = table.index.isin(best)
    return _with_distances(table, of_trial, judging) if judging else table


def _levels(trial: Mapping[tuple[str, int], Run], judging: Sequence[int]) -> dict[str, object]:
    """Return the results of one trial, by (dataset, seed), as columns of the table."""
    datasets, row = list(dict.fromkeys(dataset for dataset, _ in trial)), {}
    for dataset in datasets:
        own = [run for (name, _), run in trial.items() if name == dataset]
        row |= {f"{name} {dataset}": mean_metric(own, name) for name in ("R@1", "R@4", "MAP@R", "NMI")}
    by_run = pd.DataFrame([{"seed": seed} | {name: metric(run, name) for name in SCORED} for (_, seed), run in trial.items()])
    levels = by_run.groupby("seed").mean()
    levels["score"] = levels.mean(axis=1)
    row |= {f"mean {name}": levels[name].mean() for name in levels} | {"spread": levels["score"].std(), "seeds": len(levels)}
    row |= {f"deciding {name}": levels.loc[list(DECIDING_SEEDS), name].mean() for name in levels}
    return row | ({f"other {name}": levels.loc[judging, name].mean() for name in levels} if judging else {})


def _with_distances(table: pd.DataFrame, of_trial: Mapping[tuple, Mapping], judging: Sequence[int]) -> pd.DataFrame:
    """Return the table with the columns behind, of trials that were chosen but are not best by the seeds that judge."""
    table = table.assign(behind=float("nan"), **{name: float("nan") for part in SCORED for name in Interval().columns(f"behind {part}")})
    for row in table[table["chosen"] & ~table["best"]].itertuples():
        best = table[table["best"] & (table["method"] == row.method)].iloc[0]
        sides = [of_trial[row.method, trial] for trial in (row.trial, best["trial"])]
        datasets = dict.fromkeys(dataset for dataset, _ in sides[0])
        pairs = [[[side[dataset, seed] for seed in judging] for side in sides] for dataset in datasets]
        parts = {"R@1": bootstrap_points([tuple(map(clustered_hits, pair)) for pair in pairs])}
        parts["MAP@R"] = map_points([(*pair, None) for pair in pairs])
        behind = {"behind": table.loc[row.Index, "other score"] - best["other score"]}
        for name, interval in parts.items():
            behind |= interval.columns(f"behind {name}")
        table.loc[row.Index, list(behind)] = [round(value, 6) for value in behind.values()]
    return table


def _found(found: Mapping[RunConfig, Run], config: RunConfig, trial: int) -> Run:
    if config not in found:
        raise SagaError(f"trial {trial} of {config.method} lacks a run on {config.dataset} with seed {config.seed}; "
                        "finish the study (--resume STUDY --full)")  # fmt: skip
    return found[config]


# ------------------------------------------------------------------------------------------- for people to read


def _settings_in_words(text: str) -> str:
    """Return a trial's settings, from JSON, as names and values; options of the metric loss stand among them."""
    settings = json.loads(text)
    settings |= settings.pop("dml_options", {})
    return ", ".join(f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}" for name, value in settings.items())


def _deciding_seeds(joint: str = ", ") -> str:
    return f"seed{'s' if len(DECIDING_SEEDS) > 1 else ''} {joint.join(map(str, DECIDING_SEEDS))}"


def _judging_seeds(table: pd.DataFrame) -> str:
    """Return how many seeds judge what others chose, such as "1 other seed"; "" where none does."""
    count = int(table["seeds"].max()) - len(DECIDING_SEEDS) if "other score" in table else 0
    return f"{count} other seed{'s' if count > 1 else ''}" if count else ""


def display_search(table: pd.DataFrame) -> pd.DataFrame:
    """Return a search table as people read it: settings in words, results over all seeds, the score that chose, what was chosen."""
    shown = pd.DataFrame({"stage": table["stage"], "method": table["method"].map(label), "trial": table["trial"]})
    shown["settings"] = table["settings"].map(_settings_in_words)
    seeds, judges = seeds_in_words(table["seeds"]), _judging_seeds(table)
    for name in SCORED:
        shown[f"{name} % (validation), {seeds}"] = table[f"mean {name}"].map("{:.1f}".format)
    spreads = table["spread"].map(lambda value: f" ± {value:.1f}" if value == value else "")
    shown[f"score, mean of both, {seeds}"] = table["mean score"].map("{:.1f}".format) + spreads
    if judges:
        shown[f"score, {_deciding_seeds()}"] = table["deciding score"].map("{:.1f}".format)
        shown[f"score, {judges}"] = table["other score"].map("{:.1f}".format)
    shown[f"by {_deciding_seeds()}"] = table["chosen"].map({True: "chosen", False: ""})
    return shown.assign(**{f"by {judges}": table["best"].map({True: "best", False: ""})}) if judges else shown


def search_conclusions(table: pd.DataFrame) -> list[str]:
    """Return how many trials there were, then a sentence per method: the chosen one and its result on the seeds that did not choose."""
    if table.empty:
        return []
    trials_of = table.groupby("stage", sort=False)["method"].agg(lambda names: " to ".join(map(str, sorted(set(names.value_counts())))))
    sentences = [f"Trials of a method: {'; '.join(f'{stage} {count}' for stage, count in trials_of.items())}."]
    judges = _judging_seeds(table)
    for method, rows in table.groupby("method", sort=False):
        chosen = rows[rows["chosen"]].iloc[0]
        text = f"{label(method)}: trial {chosen['trial']} of {len(rows)} was chosen by {_deciding_seeds(' and ')}, score "
        text += _score(chosen, "deciding")
        if judges:
            best = rows[rows["best"]].iloc[0]
            text += f"; {judges} that did not choose give{'s' if judges.startswith('1 ') else ''} it {_score(chosen, 'other')}, "
            text += "and no other trial more" if chosen["trial"] == best["trial"] else _behind_in_words(chosen, best)
        sentences.append(f"{text}.")
    return sentences if judges else [*sentences, "No other seed has judged these choices yet: the scores that chose them flatter them."]


def _score(row: pd.Series, seeds: str) -> str:
    return f"{row[f'{seeds} score']:.1f} (R@1 {row[f'{seeds} R@1']:.1f} %, MAP@R {row[f'{seeds} MAP@R']:.1f} %)"


def _behind_in_words(chosen: pd.Series, best: pd.Series) -> str:
    parts = " and ".join(f"{Interval.of(chosen, f'behind {name}').text()} of {name}" for name in SCORED)
    return f"and most to trial {best['trial']}, {best['other score']:.1f}: the chosen one is {parts} points from it"


# --------------------------------------------------------------------------------------------------- its log


def _whole_seeds(wanted: Sequence[RunConfig], found: Mapping[RunConfig, object]) -> list[int]:
    """Return the seeds of which a study has every trial: the first stages of a search come with the deciding seeds alone."""
    return [seed for seed in SEARCH_SEEDS if all(config in found for config in wanted if config.seed == seed)]


def finished_trials(study: str, profile: Profile | str) -> list[Run]:
    """Return the trials of a search that a study has finished, of each seed all or none, and none without the deciding seeds."""
    profile = Profile.of(profile)
    wanted = trials(profile) if profile.name != "paper" else []
    whole = _whole_seeds(wanted, load_finished(study, wanted)) if wanted else []  # known without rendering any benchmark
    if not {*DECIDING_SEEDS} <= {*whole}:
        return []
    found = [load_run(study, config) for config in wanted if config.seed in whole]  # None for runs of other images than today's
    return found if None not in found else []


def search_of(runs: Sequence[Run], profile: Profile | str | None = None) -> tuple[pd.DataFrame, str]:
    """Return the search table of some runs and where it comes from; without runs, that of the committed log, else an empty one."""
    if runs:
        return search_table(runs, profile), f"The search of this study: {len(runs)} runs."
    log, name = read_log(), TUNING_LOG.relative_to(REPOSITORY)
    if log is not None and {*_KNOWN} <= {*log}:
        return log, f"The committed log of the search ({name}); its runs are not in this study."
    lacks = f"the committed log ({name}) is of an earlier search, which chose by another rule" if log is not None else "there is no log"
    empty = pd.DataFrame(columns=_KNOWN)
    return empty, f"No search: its runs are not in this study (go on with it by ./run_all.sh --resume STUDY --full), and {lacks}."


def write_log(study: str) -> Path:
    """Write the search of a finished miniature study to the committed log and return its path; seeds that judge may be lacking."""
    manifest = read_json(study_folder(study) / "manifest.json")
    if manifest["profile"] != "miniature":
        raise SagaError(f"study {study} is of profile {manifest['profile']}; the log holds the search of profile miniature")
    wanted = trials("miniature")
    found = load_finished(study, wanted)
    whole = _whole_seeds(wanted, found)
    if not {*DECIDING_SEEDS} <= {*whole}:
        raise SagaError(f"study {study} has {len(found)} of {len(wanted)} trials; finish it with ./run_all.sh --resume {study} --full")
    table = search_table([found[config] for config in wanted if config.seed in whole])
    write_text(TUNING_LOG, table.to_csv(index=False, lineterminator="\n"))
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
