"""Whether a benchmark can show an effect, and where SAGA helps: both on validation classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.design.trials import GATE_METHODS, WHEN_GRID, WHEN_METHODS, check_validation
from saga_study.findings.samples import group_runs, mean_metric, metric, paired_points
from saga_study.findings.words import label, seeds_in_words, signed
from saga_study.miniature.world import benchmark_spec, is_miniature

# The rule for a benchmark, written down before its test classes are scored (`gate`). R@1 in percent, on validation classes.
PRETRAINED_RANGE = (30.0, 85.0)  # below, the tower sees nothing; above, there is nothing left to learn
PF_GAIN = 2.0  # points of tuned PF over the pre-trained tower: metric learning learns something here
SATURATION = 0.25  # PF's gradient at the tower, last tenth of the steps over the first: it has taken what the labels give it
ORACLE_ROOM = 1.0  # points of the oracle over tuned PF: where the truth gains nothing, no reward can be seen to gain
GATE_RULES = {
    "learnable": f"the pre-trained tower's R@1 lies between {PRETRAINED_RANGE[0]:g} and {PRETRAINED_RANGE[1]:g} %",
    "PF learns": f"tuned PF is at least {PF_GAIN:g} points above the pre-trained tower",
    "PF is done": f"PF's gradient at the tower falls below {SATURATION:.0%} from the first tenth of its steps to the last",
    "oracle has room": f"the oracle is at least {ORACLE_ROOM:g} point above tuned PF",
}


# ----------------------------------------------------------------------------------------------- the gates


def gate(runs: Sequence[Run]) -> dict[str, object]:
    """Return a benchmark's row of the gates: the numbers, each of `GATE_RULES` passed or failed in words, and the verdict.

    runs: of each of `GATE_METHODS` on one benchmark, on validation classes, with the same seeds; the pre-trained tower has one run for
    all seeds. R@1 is in percent, differences in points. Means over seeds decide the rules; `seeds that agree` counts the seeds that
    give the same verdict by themselves.
    """
    check_validation(runs)
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
    measured = {
        "learnable": f"{mean['pre-trained R@1']:.1f} %", "PF learns": f"{signed(gain)} points",
        "PF is done": f"{mean['PF gradient left']:.0%} of its gradient left", "oracle has room": f"{signed(room)} points",
    }  # fmt: skip
    agree = sum(all(_gates_passed(row).values()) == all(passed.values()) for row in numbers.to_dict("records"))
    row = {"benchmark": runs[0].config.dataset} | mean
    row |= {name: f"{'passed' if passed[name] else 'failed'}: {text}" for name, text in measured.items()}
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
    rows = [gate([run for group in by_method.values() for run in group]) for by_method in group_runs(runs).values()]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["benchmark", *GATE_RULES, "verdict", "seeds", "seeds that agree"])


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
            text += f"; {alike} seeds give this verdict by themselves"
        sentences.append(f"{text}.")
    if len(table) and table["seeds"].min() == 1:
        sentences.append("Of one seed, a benchmark that passes or fails by less than about two points could fall either way.")
    return sentences


def version_table(datasets: Sequence[str]) -> pd.DataFrame:
    """Return each benchmark's checksum and what defines the miniature ones: frozen once test classes are scored."""
    from saga_study.datasets.loading import load_benchmark

    rows = []
    for name in datasets:
        rows.append(row := {"benchmark": name, "checksum": load_benchmark(name).checksum})
        if not is_miniature(name):
            continue
        spec = benchmark_spec(name)
        row |= {"version": spec.version}
        row["train / validation / test classes"] = f"{spec.train_classes} / {spec.validation_classes} / {spec.test_classes}"
        row["images per class (train, others)"] = f"{spec.images_per_class}, {spec.gallery_images_per_class}"
        row["families (train, others)"] = f"{spec.train_family_size}, {spec.family_size}"
        row |= {"nuisance": spec.nuisance, "shift": spec.shift, "habitat": spec.habitat}
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------- when it helps


def when_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per variant: train classes, shift, PF's R@1 (%), what SAGA and the oracle add (points, 95 % interval), seeds.

    Intervals are over queries and, of several, seeds.
    """
    check_validation(runs)
    rows = []
    for dataset, methods in group_runs(runs).items():
        spec = benchmark_spec(dataset)
        row = {name: getattr(spec, name) for name in WHEN_GRID} | {"pf": mean_metric(methods["pf"], "R@1")}
        for method in WHEN_METHODS[1:]:
            row |= {f"{method} {name}": value for name, value in paired_points(methods[method], methods["pf"])._asdict().items()}
        rows.append(row | {"seeds": len(methods["pf"])})
    return pd.DataFrame(rows)


def when_conclusions(table: pd.DataFrame) -> list[str]:
    """Return a sentence per method: in how many cells it is above and below PF, and where it gains and loses most."""
    sentences = []
    for method in WHEN_METHODS[1:]:
        above, below = (table[f"{method} low"] > 0).sum(), (table[f"{method} high"] < 0).sum()
        most, least = (table.loc[getattr(table[f"{method} difference"], pick)()] for pick in ("idxmax", "idxmin"))
        sentences.append(
            f"{label(method)}: above PF in {above} of {len(table)} cells, below in {below}, not distinguishable in the others; "
            f"most {_cell(most, method)}, least {_cell(least, method)}."
        )
    seeds = seeds_in_words(table["seeds"]).capitalize()
    return [*sentences, f"{seeds} each, validation classes; of {len(table)} intervals about one in twenty excludes 0 by chance."]


def _cell(row: pd.Series, method: str) -> str:
    return f"{signed(row[f'{method} difference'])} points at {row['train_classes']:g} train classes and shift {row['shift']:g}"
