"""What is decided on validation classes before test classes are scored: settings, benchmarks, and when SAGA helps.

Five questions, none of which looks at a test class. *Search*: which settings does each method get, every method with the
same number of trials? *Lengths*: would another number of steps favour another method? *Sensitivity*: how much hangs on each of SAGA's
settings? *Gates*: on which benchmarks can the question be asked fairly? *When*: how does the answer change with the number of train
classes and the distance from what the supervisor knows?
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from saga_lib.comparisons import Cell, seeds_in_words
from saga_lib.config import METHOD_LABELS, SHIPPED, RunConfig, make_config, with_seed
from saga_lib.errors import SagaError
from saga_lib.files import read_json, write_text
from saga_lib.miniature.world import benchmark_spec, benchmark_variant, is_miniature
from saga_lib.paths import REPOSITORY, TUNING_LOG, study_folder
from saga_lib.runs import Run, finished_runs
from saga_lib.tables import NOTHING, hits_of, metric

VALIDATION = {"evaluate_on": "validation", "audit_every": 0}

# The search: as many trials for one method as for another, each a set of overrides of `make_config` that names everything
# the search varies (defaults follow the search, not the other way round). On one benchmark; the others take what it chose, as
# the paper has one set of hyperparameters for its four.
SEARCH_DATASETS = ("miniature_birds",)
SEARCH_SEEDS = (0, 1, 2)  # the first one chose, before any test class was scored; by the others alone one sees how much was its luck
_RATES = tuple({"lr_tower": tower, "lr_pooler": pooler} for tower in (1e-4, 3e-4, 1e-3) for pooler in (1e-4, 1e-3))
_MIDDLE = _RATES[2]  # signals ride on Potential Field at these rates
SEARCH: dict[str, tuple[dict[str, object], ...]] = {
    "pf": _RATES,
    "pa": _RATES,
    "ms": _RATES,
    "infonce": _RATES,
    "saga_pf": tuple(
        _MIDDLE | {"lambda_lm": lm, "lambda_kl": kl, "hard_pairs": hard}
        for lm, kl, hard in ((0.03, 0.01, 0.5), (0.1, 0.01, 0.5), (0.3, 0.01, 0.5), (0.1, 0.1, 0.5), (0.1, 0.01, 0.0), (0.1, 0.01, 1.0))
    ),
    "oracle": tuple(
        _MIDDLE | {"lambda_lm": lm, "contributing_pairs": pairs}
        for lm, pairs in ((0.03, 16), (0.1, 16), (0.3, 16), (1.0, 16), (0.1, 8), (0.1, 32))
    ),
}

# Lengths: the chosen settings at other numbers of steps, the same for every method. All tables train all methods for equally many steps,
# as the paper does for equally many epochs; here each may have the length that suits it best.
LENGTHS = (0.5, 1, 2)  # times the profile's steps
LENGTH_METHODS = {"miniature_birds": ("pf", "pa", "ms", "infonce", "saga_pf"), "miniature_aves": ("pf", "saga_pf")}
LENGTH_SEEDS = (0, 1, 2)

# Sensitivity: SAGA with one setting changed at a time, the others as the profile has them. Any field of `RunConfig` may stand here;
# supervisors share the profile's tower, so that the reward alone differs. Trials of the search that coincide are the same runs.
HALF_TAUGHT_STEPS = (880, 900, 925, 1000, 1500, 2500)  # saga_lib.miniature.half_taught; pairs are compared from step 875 on
HALF_TAUGHT_MINUTES = 16.0  # of one core, to make all of them where they lack
SENSITIVITY_METHOD = "saga_pf"
SENSITIVITY_SEEDS = {"smoke": (0,), "miniature": (0, 1, 2), "paper": (0,)}  # with --full; else the first
SENSITIVITY_DATASET = {"smoke": "miniature_birds", "miniature": "miniature_birds", "paper": "cub200"}
SENSITIVITY: dict[str, dict[str, tuple]] = {
    "smoke": {
        "group_size": (2,), "contributing_pairs": (1,), "temperature": (1.0,), "lambda_lm": (1.0,), "lambda_kl": (0.0,),
        "attention_layer": (1,), "supervisor": (f"{SHIPPED}birds_prompts",),
    },
    "miniature": {
        "group_size": (4, 16), "contributing_pairs": (4, 8),  # 32 pairs are drawn, of which rarely more than 16 contribute
        "temperature": (0.4, 1.0), "lambda_lm": (0.03, 0.05, 0.2, 0.3, 1.0), "lambda_kl": (0.0, 0.01, 0.05, 0.2, 1.0),
        "attention_layer": (1, 2),
        "supervisor": tuple(f"{SHIPPED}birds_after_{steps:04d}" for steps in HALF_TAUGHT_STEPS),
    },
    "paper": {  # the paper names 0.5-2 for the weights
        "group_size": (4, 16), "contributing_pairs": (4, 16), "temperature": (0.4, 1.0), "lambda_lm": (0.5, 2.0),
        "lambda_kl": (0.5, 2.0), "attention_layer": (17, 34),
    },
}  # fmt: skip
SETTING_LABELS = {
    "group_size": "G, rollouts of a pair", "contributing_pairs": "K, contributing pairs of a step", "temperature": "sampling temperature",
    "lambda_lm": "λ_lm, weight of L_GRPO", "lambda_kl": "λ_kl, weight of L_KL", "attention_layer": "ℓ, aligned layer (from 0)",
    "supervisor": "supervisor, by steps taught",
}  # fmt: skip

# The rule for a benchmark, written down before its test classes are scored (`gate`). R@1 in percent, on validation classes.
PRETRAINED_RANGE = (30.0, 85.0)  # below, the tower sees nothing; above, there is nothing left to learn
PF_GAIN = 2.0  # points of tuned PF over the pre-trained tower: metric learning learns something here
SATURATION = 0.25  # PF's gradient at the tower, last tenth of the steps over the first: it has taken what the labels give it
ORACLE_ROOM = 1.0  # points of the oracle over tuned PF: where the truth gains nothing, no reward can be seen to gain
GATE_METHODS = ("pre-trained", "pf", "oracle")
GATE_SEEDS = (0, 1, 2)  # with --full; else the first
GATE_RULES = {
    "learnable": f"the pre-trained tower's R@1 lies between {PRETRAINED_RANGE[0]:g} and {PRETRAINED_RANGE[1]:g} %",
    "PF learns": f"tuned PF is at least {PF_GAIN:g} points above the pre-trained tower",
    "PF is done": f"PF's gradient at the tower falls below {SATURATION:.0%} from the first tenth of its steps to the last",
    "oracle has room": f"the oracle is at least {ORACLE_ROOM:g} point above tuned PF",
}

# When does it help? A grid of variants of one benchmark.
WHEN_DATASET = "miniature_birds"
WHEN_GRID = {"train_classes": (12, 24, 48), "shift": (0.6, 0.8, 1.0)}
WHEN_METHODS = ("pf", "saga_pf", "oracle")
WHEN_SEEDS = (0, 1, 2)


# ---------------------------------------------------------------------------------------------- which runs


def trials(profile: str, datasets: Sequence[str] = ()) -> list[RunConfig]:
    """Return the runs of the search: every method, trial and seed, on validation classes, whichever datasets a study has.

    Raises `SagaError` if two trials of a method are the same run, which would make its budget smaller than it looks.
    """
    runs = [
        _trial(profile, dataset, method, number, seed)
        for method in SEARCH for number in range(len(SEARCH[method])) for dataset in SEARCH_DATASETS for seed in SEARCH_SEEDS
    ]  # fmt: skip
    for one, other in itertools.combinations(runs, 2):
        if one == other:
            raise SagaError(f"two trials of {one.method} are the same run; change one of them in saga_lib.tuning.SEARCH")
    return runs


def _trial(profile: str, dataset: str, method: str, number: int, seed: int) -> RunConfig:
    return make_config(profile, dataset, method, seed, **VALIDATION | SEARCH[method][number])


def gate_runs(profile: str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs that the rule for benchmarks looks at, on validation classes; without randomness one run is that of every seed."""
    runs = [make_config(profile, d, method, seed, **VALIDATION) for d in datasets for method in GATE_METHODS for seed in GATE_SEEDS]
    return list(dict.fromkeys(runs))


def length_runs(profile: str, datasets: Sequence[str] = ()) -> list[RunConfig]:
    """Return the runs at other numbers of steps, whichever datasets a study has."""
    return [
        _lengthened(make_config(profile, dataset, method, seed, **VALIDATION), factor)
        for dataset, methods in LENGTH_METHODS.items() for method in methods for factor in LENGTHS for seed in LENGTH_SEEDS
    ]  # fmt: skip


def _lengthened(config: RunConfig, factor: float) -> RunConfig:
    return replace(config, steps=max(1, round(factor * config.steps)))


def when_runs(profile: str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs of the grid over train classes and shift, whichever datasets a study has otherwise."""
    grid = [dict(zip(WHEN_GRID, values, strict=True)) for values in itertools.product(*WHEN_GRID.values())]
    names = [benchmark_variant(WHEN_DATASET, **fields) for fields in grid]
    return [make_config(profile, name, method, seed, **VALIDATION) for name in names for method in WHEN_METHODS for seed in WHEN_SEEDS]


def sensitivity_runs(profile: str, settings: Mapping[str, Sequence] | None = None, seeds: Sequence[int] = (0,)) -> list[RunConfig]:
    """Return PF, SAGA as the profile has it, and SAGA with each value of some settings, on validation classes, with each seed.

    settings: values by setting, out of `SENSITIVITY`; None: all of it; empty: no run at all.
    """
    settings = SENSITIVITY[profile] if settings is None else settings
    if not settings:
        return []
    runs = [make_config(profile, SENSITIVITY_DATASET[profile], "pf", 0, **VALIDATION), _varied(profile)]
    runs += [_varied(profile, **{name: value}) for name, values in settings.items() for value in values]
    return [with_seed(run, seed) for run in dict.fromkeys(runs) for seed in seeds]


def _varied(profile: str, **settings: object) -> RunConfig:
    return make_config(profile, SENSITIVITY_DATASET[profile], SENSITIVITY_METHOD, 0, **VALIDATION, **settings)


RUNS = {"search": trials, "lengths": length_runs, "gates": gate_runs, "when": when_runs}  # by table of saga_lib.study.TABLE_RUNS


def _check_validation(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.config.evaluate_on != "validation":
            raise SagaError(f"run {run.key} ({run.config.method} on {run.config.dataset}) was scored on {run.config.evaluate_on} "
                            "classes; choices are made on validation classes only")  # fmt: skip


# ---------------------------------------------------------------------------------------------- the search


def search_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per method and trial: its settings (JSON) and what it has on validation classes, over `SEARCH_SEEDS`.

    Columns: R@1, R@4 (%) and NMI per dataset (mean over seeds); mean R@1 (over datasets and seeds), spread (its standard deviation over
    seeds), deciding R@1 (of the first seed alone), other R@1 (of the others); chosen, the best deciding R@1 of a method, of equal ones the
    first; best, the best other R@1 likewise; and of chosen trials behind, behind low, behind high (points of R@1 from the best to the
    chosen by the other seeds, 95 % interval over queries and seeds; NaN where they are the same). Raises `SagaError` for runs that are no
    trials of today's `SEARCH` or not on validation classes, and for a trial that lacks a dataset or seed.
    """
    from saga_lib.retrieval import pooled_bootstrap

    _check_validation(runs)
    found = {run.config: run for run in runs}
    datasets, profile = list(dict.fromkeys(run.config.dataset for run in runs)), runs[0].config.profile
    rows, of_trial = [], {}
    for method in dict.fromkeys(run.config.method for run in runs):
        for number, settings in enumerate(SEARCH.get(method, ())):
            of_trial[method, number + 1] = trial = {
                dataset: [_found(found, _trial(profile, dataset, method, number, seed), number + 1) for seed in SEARCH_SEEDS]
                for dataset in datasets
            }
            row = {"method": method, "trial": number + 1, "settings": json.dumps(settings)}
            for dataset in datasets:
                row |= {f"{name} {dataset}": round(_mean(trial[dataset], name), 6) for name in ("R@1", "R@4", "NMI")}
            recalls = pd.DataFrame({dataset: [metric(run, "R@1") for run in trial[dataset]] for dataset in datasets}).mean(axis=1)
            row |= {"mean R@1": recalls.mean(), "spread": recalls.std(), "seeds": len(recalls)}
            row |= {"deciding R@1": recalls[0], "other R@1": recalls[1:].mean()}
            rows.append({name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()})
    used = {run.config for trial in of_trial.values() for of_dataset in trial.values() for run in of_dataset}
    if strange := [run for config, run in found.items() if config not in used]:
        raise SagaError(f"run {strange[0].key} ({strange[0].config.method}) is no trial of saga_lib.tuning.SEARCH; leave it out")
    table = pd.DataFrame(rows)
    for mark, column in (("chosen", "deciding R@1"), ("best", "other R@1")):
        table[mark] = table.index.isin(table.groupby("method")[column].idxmax())  # of equal ones the first
    table = table.assign(**dict.fromkeys(_BEHIND, float("nan")))
    for row in table[table["chosen"] & ~table["best"]].itertuples():
        best = table[table["best"] & (table["method"] == row.method)]["trial"].item()
        sides = [of_trial[row.method, trial] for trial in (row.trial, best)]
        behind = pooled_bootstrap([tuple(hits_of(side[dataset][1:]) for side in sides) for dataset in datasets])
        table.loc[row.Index, list(_BEHIND)] = [round(100 * value, 6) for value in behind.values()]
    return table


_BEHIND = ("behind", "behind low", "behind high")


def _found(found: Mapping[RunConfig, Run], config: RunConfig, trial: int) -> Run:
    if config not in found:
        raise SagaError(f"trial {trial} of {config.method} lacks a run on {config.dataset} with seed {config.seed}; "
                        "finish the study (--resume STUDY --full)")  # fmt: skip
    return found[config]


def display_search(table: pd.DataFrame) -> pd.DataFrame:
    """Return a search table as people read it: settings in words, R@1 over all seeds and of the seed that chose, what was chosen."""
    datasets = [name for name in table if name.startswith("R@1 ")]
    shown = pd.DataFrame({"method": table["method"].map(lambda name: METHOD_LABELS.get(name, name)), "trial": table["trial"]})
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
    """Return one sentence per method: what was chosen, on how equal a budget, and what the seeds that did not choose say of it."""
    sentences = []
    for method, rows in table.groupby("method", sort=False):
        chosen, best = rows[rows["chosen"]].iloc[0], rows[rows["best"]].iloc[0]
        text = f"{METHOD_LABELS.get(method, method)}: trial {chosen['trial']} of {len(rows)} was chosen by seed {SEARCH_SEEDS[0]} "
        text += f"(R@1 {chosen['deciding R@1']:.1f} %); the {len(SEARCH_SEEDS) - 1} seeds that did not choose give it "
        text += f"{chosen['other R@1']:.1f} %, "
        if chosen["trial"] == best["trial"]:
            text += "more than any other trial."
        else:
            text += f"and most to trial {best['trial']}, {best['other R@1']:.1f} %: "
            text += f"the chosen one is {_told(chosen, *_BEHIND)} points from it."
        sentences.append(text)
    return sentences


def search_of(runs: Sequence[Run]) -> tuple[pd.DataFrame, str]:
    """Return the search table of some runs and where it comes from; without runs, that of the committed log, else an empty one."""
    if runs:
        return search_table(runs), f"The search of this study: {len(runs)} runs."
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
    found = finished_runs(study, wanted)
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
            told = ", ".join(f"{name} {getattr(used, name)} instead of {getattr(chosen, name)}" for name in names)
            lines.append(f"{row.method} uses {told}; the log chose trial {row.trial}")
    return lines


# ----------------------------------------------------------------------------------------------- the lengths


def length_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per dataset, method and number of steps, in the order of `length_runs`, with what SAGA and the other losses add to PF.

    Columns: dataset, method, steps, seeds, R@1 (%, mean over seeds), spread (its standard deviation), best (of the method's lengths on
    the dataset, of equal ones the shortest), gain, gain low, gain high (points of R@1 to PF at the same steps, 95 % interval over queries
    and seeds), and of the best length: own gain, own gain low, own gain high (to PF at the length that is best for PF).
    """
    _check_validation(runs)
    cells: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.config.dataset, run.config.method, run.config.steps), []).append(run)
    rows = []
    for (dataset, method, steps), found in cells.items():
        recalls = pd.Series([metric(run, "R@1") for run in found])
        row = {"dataset": dataset, "method": method, "steps": steps, "seeds": len(found)}
        rows.append(row | {"R@1": recalls.mean().round(6), "spread": recalls.std()})
    table = pd.DataFrame(rows)
    table["best"] = table.index.isin(table.groupby(["dataset", "method"])["R@1"].idxmax())
    own = tuple(f"own {name}" for name in _GAIN)
    table = table.assign(**dict.fromkeys((*_GAIN, *own), float("nan")))
    best = {row.dataset: row.steps for row in table[table["best"] & (table["method"] == "pf")].itertuples()}
    for row in table[table["method"] != "pf"].itertuples():
        found = cells[row.dataset, row.method, row.steps]
        table.loc[row.Index, list(_GAIN)] = list(_points(found, cells[row.dataset, "pf", row.steps]).values())
        if row.best:
            table.loc[row.Index, list(own)] = list(_points(found, cells[row.dataset, "pf", best[row.dataset]]).values())
    return table


def display_lengths(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the lengths as text: R@1 (%) over steps, the best length of each method marked, and gains to PF (points)."""
    ours, rows = f"ours ({profile}), validation classes", []
    for row in table.to_dict("records"):
        spread = f" ± {row['spread']:.1f}" if row["spread"] == row["spread"] else ""
        rows.append({
            "benchmark": row["dataset"], "method": METHOD_LABELS[row["method"]], "steps": row["steps"],
            f"R@1 % {ours}": f"{row['R@1']:.1f}{spread}", "": "best length" if row["best"] else "",
            f"R@1 − PF at as many steps, points [95 %] {ours}": _told(row, *_GAIN) if row["gain"] == row["gain"] else NOTHING,
            f"R@1 − PF at PF's best length, points [95 %] {ours}":
                _told(row, *(f"own {name}" for name in _GAIN)) if row["own gain"] == row["own gain"] else NOTHING,
            "seeds": row["seeds"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def length_conclusions(table: pd.DataFrame, profile: str) -> list[str]:
    """Return a sentence per benchmark and method: its best length and, there and at the profile's steps, the gain to PF."""
    sentences = []
    for (dataset, method), rows in table.groupby(["dataset", "method"], sort=False):
        best, usual = rows[rows["best"]].iloc[0], make_config(profile, dataset, method, 0).steps
        said = f"{dataset}, {METHOD_LABELS[method]}: best at {best['steps']} steps, {best['R@1']:.1f} %"
        at_usual = rows[rows["steps"] == usual].iloc[0]
        if best["steps"] != usual:
            said += f" ({at_usual['R@1']:.1f} % at the profile's {usual})"
        if method != "pf":
            said += f"; each at its own best length {_told(best, *(f'own {name}' for name in _GAIN))} points to PF"
            said += f", both at {usual} steps {_told(at_usual, *_GAIN)}"
        sentences.append(f"{said}.")
    return [*sentences, f"{seeds_in_words(table['seeds']).capitalize()}, validation classes; the best of {len(LENGTHS)} lengths flatters."]


# ------------------------------------------------------------------------------------------- the sensitivity


def sensitivity_table(cells: Sequence[Cell], profile: str) -> pd.DataFrame:
    """Return a row per setting and value, the profile's among them, and one for PF: what SAGA with it has, and its change.

    Columns: setting, value, is_profile, R@1, MAP@R (%), difference, low, high (points of R@1 to the profile's setting, 95 % interval
    over queries and, of several, seeds), MAP@R difference (points; kept per run only, hence without interval), gain, gain low, gain
    high (points of R@1 to PF), right verdicts (% of the rollouts in training), seeds, absent, runs (keys).
    """
    found = {cell.config: cell for cell in cells}
    _check_validation([run for cell in cells for run in cell.runs])
    centre = found[_varied(profile)]
    baseline = next(cell for cell in cells if cell.config.method == "pf")
    rows = [{"setting": "PF", "value": NOTHING, "is_profile": False} | _change(baseline, centre, baseline)]
    for name, values in SENSITIVITY[profile].items():
        own = getattr(centre.config, name)
        for value in sorted({*values, own}, key=lambda value: (value == own and isinstance(value, str), value)):  # a name: last
            cell = centre if value == own else found[_varied(profile, **{name: value})]
            rows.append({"setting": name, "value": value, "is_profile": value == own} | _change(cell, centre, baseline))
    return pd.DataFrame(rows)


def _change(cell: Cell, centre: Cell, baseline: Cell) -> dict[str, object]:
    row = dict.fromkeys(("R@1", "MAP@R", "difference", "low", "high", "MAP@R difference", *_GAIN, "right verdicts"), float("nan"))
    if not cell.runs or not centre.runs:
        return row | {"seeds": 0, "absent": cell.absent or centre.absent, "runs": ""}
    row |= {name: _mean(cell.runs, name) for name in ("R@1", "MAP@R")} | _points(cell.runs, centre.runs)
    row["MAP@R difference"] = row["MAP@R"] - _mean(centre.runs, "MAP@R")
    if baseline.runs and cell is not baseline:
        row |= dict(zip(_GAIN, _points(cell.runs, baseline.runs).values(), strict=True))
    right = [float(run.metrics["verdict_accuracy"].mean()) for run in cell.runs if "verdict_accuracy" in run.metrics]
    row["right verdicts"] = 100 * sum(right) / len(right) if right else float("nan")
    return row | {"seeds": len(cell.runs), "absent": "", "runs": " ".join(run.key for run in cell.runs)}


_GAIN = ("gain", "gain low", "gain high")


def _mean(runs: Sequence[Run], name: str) -> float:
    return sum(metric(run, name) for run in runs) / len(runs)


def _points(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
    """Return difference, low and high of R@1 in points, over queries and the seeds that both have."""
    from saga_lib.retrieval import paired_bootstrap

    seeds = {run.config.seed for run in runs} & {run.config.seed for run in others}
    pair = (hits_of([run for run in side if run.config.seed in seeds]) for side in (runs, others))
    return {name: 100 * value for name, value in paired_bootstrap(*pair).items()}


def display_sensitivity(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the sensitivity as text: setting, value, R@1 and MAP@R (%), their change (points), the gain to PF, right verdicts (%)."""
    ours, rows = f"ours ({profile}), validation classes", []
    for row in table.to_dict("records"):
        known, is_centre = row["seeds"] > 0, row["is_profile"]
        map_told, right = f"{row['MAP@R difference']:+.1f}".replace("-", "−"), row["right verdicts"]
        rows.append({
            "setting": "PF, without SAGA" if row["setting"] == "PF" else SETTING_LABELS.get(row["setting"], row["setting"]),
            "value": shown_value(row["value"]) + (" (profile)" if is_centre else ""),
            f"R@1 % (seeds) {ours}": f"{row['R@1']:.1f} ({row['seeds']})" if known else row["absent"],
            f"change of R@1 in points [95 %] {ours}": _told(row, "difference", "low", "high") if known and not is_centre else NOTHING,
            f"R@1 − PF in points [95 %] {ours}": _told(row, *_GAIN) if row["gain"] == row["gain"] else NOTHING,
            f"MAP@R % {ours}": f"{row['MAP@R']:.1f}" if known else NOTHING,
            f"change of MAP@R in points {ours}": map_told if known and not is_centre else NOTHING,
            f"right verdicts in training % {ours}": f"{right:.0f}" if right == right else NOTHING,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _told(row: Mapping[str, object], value: str, low: str, high: str) -> str:
    return f"{row[value]:+.1f} [{row[low]:+.1f}, {row[high]:+.1f}]".replace("-", "−")


def shown_value(value: object) -> str:
    """Return a setting's value as tables and figures show it; of a supervisor what tells it from the profile's."""
    if isinstance(value, int | float):
        return f"{value:g}"
    name = Path(str(value)).name
    return name.rpartition("_after_")[2].lstrip("0") if "_after_" in name else {"miniature": "shipped"}.get(name, name)


def sensitivity_conclusions(table: pd.DataFrame) -> list[str]:
    """Return, read off the intervals, one sentence per setting on whether R@1 moves with it, and how large the movement is beside PF's."""
    varied = table[(table["setting"] != "PF") & ~table["is_profile"]]
    sentences = []
    for name, rows in varied.groupby("setting", sort=False):
        known, label = [row for row in rows.itertuples() if row.seeds], SETTING_LABELS.get(name, name)
        told = "; ".join(
            f"{shown_value(row.value)} changes R@1 by {row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")
            + {1: ", better", -1: ", worse", 0: ", not told apart"}[int(row.low > 0) - int(row.high < 0)]
            for row in known
        )
        absent = [f"{shown_value(row.value)} {row.absent}" for row in rows.itertuples() if not row.seeds]
        sentences.append(f"{label}: {told or 'nothing measured'}" + (f" ({', '.join(absent)})" if absent else "") + ".")
    known = varied[varied["seeds"] > 0]
    if len(known):
        moved, pf = int(((known["low"] > 0) | (known["high"] < 0)).sum()), table[table["setting"] == "PF"].iloc[0]
        told = f"PF without SAGA: {pf['difference']:+.1f} [{pf['low']:+.1f}, {pf['high']:+.1f}].".replace("-", "−")
        lowest, highest = (f"{value:+.1f}".replace("-", "−") for value in (known["difference"].min(), known["difference"].max()))
        sentences.append(f"{moved} of {len(known)} changes are told apart from 0; lowest {lowest}, highest {highest} points. {told}")
        sentences += _supervisor_conclusions(table[table["seeds"] > 0])  # the shipped one beside the others
        said = seeds_in_words(known["seeds"]).capitalize()
        only = "queries only, not another seed's luck" if known["seeds"].min() == 1 else "queries and seeds"
        sentences.append(f"{said}, validation classes: the intervals cover the choice of {only}.")
    return sentences


def _supervisor_conclusions(known: pd.DataFrame) -> list[str]:
    """Return a sentence on what SAGA adds to PF with each supervisor, from the one that is right least often."""
    rows = known[known["setting"] == "supervisor"].sort_values("right verdicts").to_dict("records")
    rows = [row for row in rows if row["gain"] == row["gain"] and row["right verdicts"] == row["right verdicts"]]
    told = [f"{row['right verdicts']:.0f} % right {_told(row, *_GAIN)}" for row in rows]
    return [f"What SAGA adds to PF as its supervisor's verdicts in training get better: {'; '.join(told)}."] if told else []


# ----------------------------------------------------------------------------------------------- the gates


def gate(runs: Sequence[Run]) -> dict[str, object]:
    """Return a benchmark's row of the gates: the numbers, each of `GATE_RULES` passed or failed in words, and the verdict.

    runs: of each of `GATE_METHODS` on the same benchmark, on validation classes, with the same seeds; the pre-trained tower has one run,
    which is that of every seed. R@1 in percent, differences in points, all means over seeds; by them the rules are decided. Of several
    seeds `seeds that agree` says how many have the same verdict by themselves.
    """
    _check_validation(runs)
    by_method = {method: {run.config.seed: run for run in runs if run.config.method == method} for method in GATE_METHODS}
    seeds = sorted({seed for method in GATE_METHODS[1:] for seed in by_method[method]})
    if missing := [method for method in GATE_METHODS if not by_method[method]]:
        raise SagaError(f"the gates of {runs[0].config.dataset if runs else 'a benchmark'} need a run of {', '.join(missing)}")
    if missing := [(method, seed) for method in GATE_METHODS[1:] for seed in seeds if seed not in by_method[method]]:
        raise SagaError(f"the gates of {runs[0].config.dataset} need a run of {missing[0][0]} with seed {missing[0][1]}")
    untrained, *trained = by_method.values()
    before = next(iter(untrained.values()))
    numbers = pd.DataFrame([_gate_numbers(before, *(of_method[seed] for of_method in trained)) for seed in seeds])
    mean = dict(numbers.mean())
    passed, gain, room = _gates_passed(mean), mean["PF R@1"] - mean["pre-trained R@1"], mean["oracle R@1"] - mean["PF R@1"]
    words = {
        "learnable": f"{mean['pre-trained R@1']:.1f} %", "PF learns": f"{gain:+.1f} points",
        "PF is done": f"{mean['PF gradient left']:.0%} of its gradient left", "oracle has room": f"{room:+.1f} points",
    }  # fmt: skip
    agree = sum(all(_gates_passed(row).values()) == all(passed.values()) for row in numbers.to_dict("records"))
    row = {"benchmark": runs[0].config.dataset} | mean
    row |= {name: f"{'passed' if passed[name] else 'failed'}: {told}".replace("-", "−") for name, told in words.items()}
    return row | {"verdict": "admitted" if all(passed.values()) else "not admitted", "seeds": len(seeds), "seeds that agree": agree}


def _gate_numbers(before: Run, pf: Run, oracle: Run) -> dict[str, float]:
    values = {f"{name} R@1": metric(run, "R@1") for name, run in (("pre-trained", before), ("PF", pf), ("oracle", oracle))}
    return values | {"PF gradient left": gradient_left(pf)}


def _gates_passed(numbers: Mapping[str, float]) -> dict[str, bool]:
    """Return which of `GATE_RULES` some numbers pass."""
    before, pf, oracle, left = (numbers[name] for name in ("pre-trained R@1", "PF R@1", "oracle R@1", "PF gradient left"))
    (low, high), gain, room = PRETRAINED_RANGE, round(pf - before, 6), round(oracle - pf, 6)
    checks = (low <= before <= high, gain >= PF_GAIN, left < SATURATION, room >= ORACLE_ROOM)
    return dict(zip(GATE_RULES, map(bool, checks), strict=True))


def gradient_left(run: Run) -> float:
    """Return the mean norm of the DML gradient at the tower over the last tenth of a run's steps, as a fraction of the first's.

    A run without any gradient never learnt: infinity.
    """
    norms = run.metrics["grad_dml"].to_numpy()
    tenth = max(1, round(len(norms) / 10))
    first, last = norms[:tenth].mean(), norms[-tenth:].mean()
    return float(last / first) if first > 0 else float("inf")


def gate_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row of `gate` per benchmark."""
    datasets = dict.fromkeys(run.config.dataset for run in runs)
    rows = [gate([run for run in runs if run.config.dataset == dataset]) for dataset in datasets]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["benchmark", *GATE_RULES, "verdict", *_GATE_SEEDS])


_GATE_SEEDS = ("seeds", "seeds that agree")


def display_gates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the gates as text: the words of every rule, the verdict, and how many of the seeds have it by themselves."""
    shown = table[["benchmark", *GATE_RULES, "verdict"]].copy()
    agree, seeds = (table[name].astype(str) for name in ("seeds that agree", "seeds"))
    shown["seeds with the same verdict"] = agree + " of " + seeds
    return shown


def gate_conclusions(table: pd.DataFrame) -> list[str]:
    """Return one sentence per benchmark: whether it is admitted, else which rules it fails."""
    sentences = []
    for row in table.to_dict("records"):
        failed = [f"{name} ({row[name].removeprefix('failed: ')})" for name in GATE_RULES if row[name].startswith("failed")]
        text = f"{row['benchmark']}: {row['verdict']}" + (f"; it fails {', '.join(failed)}" if failed else "")
        if row["seeds"] > 1:
            alike = f"all {row['seeds']}" if row["seeds that agree"] == row["seeds"] else f"{row['seeds that agree']} of {row['seeds']}"
            text += f"; {alike} seeds say so by themselves"
        sentences.append(f"{text}.")
    if len(table) and table["seeds"].min() == 1:
        sentences.append("Of one seed, a benchmark that passes or fails by less than about two points could fall either way.")
    return sentences


def version_table(datasets: Sequence[str]) -> pd.DataFrame:
    """Return each benchmark's checksum and what defines the miniature ones: frozen once test classes are scored."""
    from saga_lib.datasets import load_benchmark

    rows = []
    for name in datasets:
        rows.append(row := {"benchmark": name, "checksum": load_benchmark(name).checksum})
        if not is_miniature(name):
            continue
        spec = benchmark_spec(name)
        row |= {"version": spec.version}
        row["train / validation / test classes"] = f"{spec.train_classes} / {spec.validation_classes} / {spec.test_classes}"
        row |= {"images per class": spec.images_per_class, "families (train, others)": f"{spec.train_family_size}, {spec.family_size}"}
        row |= {"nuisance": spec.nuisance, "shift": spec.shift}
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------- when it helps


def when_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per variant: train classes, shift, PF's R@1 (%), what SAGA and the oracle add (points, 95 % interval), seeds.

    Intervals are over queries and, of several, seeds.
    """
    _check_validation(runs)
    by_dataset: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_dataset.setdefault(run.config.dataset, {}).setdefault(run.config.method, []).append(run)
    rows = []
    for dataset, methods in by_dataset.items():
        spec = benchmark_spec(dataset)
        row = {name: getattr(spec, name) for name in WHEN_GRID} | {"pf": _mean(methods["pf"], "R@1")}
        for method in WHEN_METHODS[1:]:
            row |= {f"{method} {name}": value for name, value in _points(methods[method], methods["pf"]).items()}
        rows.append(row | {"seeds": len(methods["pf"])})
    return pd.DataFrame(rows)


def when_conclusions(table: pd.DataFrame) -> list[str]:
    """Return a sentence per method: in how many cells it is above and below PF, and where it gains and loses most."""
    sentences = []
    for method in WHEN_METHODS[1:]:
        above, below = (table[f"{method} low"] > 0).sum(), (table[f"{method} high"] < 0).sum()
        most, least = (table.loc[getattr(table[f"{method} difference"], pick)()] for pick in ("idxmax", "idxmin"))
        sentences.append(
            f"{METHOD_LABELS[method]}: above PF in {above} of {len(table)} cells, below in {below}, not told apart in the others; "
            f"most {_cell(most, method)}, least {_cell(least, method)}."
        )
    said = seeds_in_words(table["seeds"]).capitalize()
    return [*sentences, f"{said} each, validation classes; {len(table)} cells are as many looks at the same question."]


def _cell(row: pd.Series, method: str) -> str:
    points = f"{row[f'{method} difference']:+.1f}".replace("-", "−")
    return f"{points} points at {row['train_classes']:g} train classes and shift {row['shift']:g}"


if __name__ == "__main__":  # python -m saga_lib.tuning STUDY: renew the committed log of the search
    try:
        print(f"wrote {write_log(sys.argv[1])}")
    except (SagaError, IndexError) as error:
        sys.exit(f"error: {error if isinstance(error, SagaError) else 'name a study'}")
