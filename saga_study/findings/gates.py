"""Whether a benchmark can show an effect: measured on validation classes, by rules that were written down before."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.design.trials import check_validation, gate_methods
from saga_study.findings.samples import group_runs, metric
from saga_study.findings.words import NOTHING, label, signed
from saga_study.miniature.world import benchmark_spec, is_miniature

# The rules for a benchmark, written down before its test classes are scored (`gate`). All in percent or points, on validation classes.
PRETRAINED_RANGE = (50.0, 92.0)  # R@1: below, the tower sees little; above, there is nothing left to learn
LOSS_GAIN = 0.5  # points of R@1 or of MAP@R, of the best metric loss over the pre-trained tower: metric learning learns something here
ORACLE_ROOM = {"R@1": 2.5, "MAP@R": 5.0}  # points of the oracle over that loss: where the truth gains little, no reward can be seen to gain
SATURATED = 92.0  # R@1 of that loss: from here on a gallery is too easy to tell methods apart
KINDS = ("same-class", "different-class")  # of pairs
FIRST_STEPS = 10  # of SAGA: what its verdicts are like when it starts
SAME_CLASS_RIGHT = (50.0, 85.0)  # of the rollouts about two images of one class: verdicts that can be wrong, but mostly are not
DIFFERENT_CLASS_RIGHT = 97.0  # of those about two classes: below
ONE_CLASS_PAIRS = (20.0, 80.0)  # of the contributing pairs of a whole run: both kinds contribute
ATTRIBUTES_READ = 6  # so many attributes the frozen model reads well enough from the pre-trained tower
READING_RANGE = (75.0, 95.0)  # of the images: well enough; above, hardly anything is left for learning to make readable
CONSENSUS = 95.0  # of the classes: mean over attributes. Readings are wrong at random within a class, and right on its average
GATE_RULES = {
    "(1) learnable": f"the pre-trained tower's R@1 lies between {PRETRAINED_RANGE[0]:g} and {PRETRAINED_RANGE[1]:g} %, and the best tuned "
    f"metric loss is at least {LOSS_GAIN:g} points above it, in R@1 or in MAP@R",
    "(2) room": f"the oracle on this loss is at least {ORACLE_ROOM['R@1']:g} points of R@1 and {ORACLE_ROOM['MAP@R']:g} of MAP@R above "
    f"it, and the loss's R@1 is below {SATURATED:g} %",
    "(3) fallible verdicts": f"over SAGA's first {FIRST_STEPS} steps {SAME_CLASS_RIGHT[0]:g} to {SAME_CLASS_RIGHT[1]:g} % of the rollouts "
    f"about one class are right and less than {DIFFERENT_CLASS_RIGHT:g} % of those about two, and over all steps {ONE_CLASS_PAIRS[0]:g} to "
    f"{ONE_CLASS_PAIRS[1]:g} % of the contributing pairs are of one class",
    "(4) readable": f"the frozen model reads at least {ATTRIBUTES_READ} attributes of {READING_RANGE[0]:g} % of the images or more, and "
    f"the mean reading of a class is right for {CONSENSUS:g} % of the classes or more, on average over attributes",
}
ADMITTING = tuple(GATE_RULES)[:2]  # the verdict; the others are reported

# ----------------------------------------------------------------------------------------------- the numbers


def gate_numbers(runs: Sequence[Run]) -> dict[str, float]:
    """Return what `GATE_RULES` look at on one benchmark or world, means over seeds, in percent or points.

    runs: of each of `gate_methods` on validation classes, with the same seeds; the pre-trained tower has one run for all seeds, with what
    the frozen model reads from it (`measure_reading`). Runs of other methods are passed over. Raises `SagaError` for what is missing.

    Keys: R@1 and MAP@R of "pre-trained", "loss" (the best metric loss), "oracle" and "SAGA" (on it); "gain" (loss − pre-trained), "room"
    (oracle − loss) and "SAGA gain" (SAGA − loss) of both; "same-class verdicts" and "different-class verdicts" that are right in SAGA's
    first steps, "contributing of one class" over all; of the attributes "attributes" (their number), "read" (so many at the lower end of
    `READING_RANGE` or better), "in range", "above range", "reading accuracy" and "consensus" (means); "R@1 by reading", "MAP@R by
    reading". NaN where SAGA drew no such pair with one of the seeds.
    """
    return _means(_seed_numbers(runs))


def _seed_numbers(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the numbers of each seed, a row each."""
    if not runs:
        raise SagaError("the gates need runs of a benchmark; there are none")
    check_validation(runs)
    where, methods = runs[0].config.dataset, gate_methods(runs[0].config.profile)
    by_method = {method: {run.config.seed: run for run in runs if run.config.method == method} for method in methods}
    if missing := [method for method in methods if not by_method[method]]:
        raise SagaError(f"the gates of {where} need a run of {', '.join(missing)}")
    untrained, *trained = by_method.values()
    seeds = sorted({seed for of_method in trained for seed in of_method})
    if lacking := [(method, seed) for method in methods[1:] for seed in seeds if seed not in by_method[method]]:
        raise SagaError(f"the gates of {where} need a run of {lacking[0][0]} with seed {lacking[0][1]}")
    before = next(iter(untrained.values()))
    return pd.DataFrame([_numbers_of(before, *(of_method[seed] for of_method in trained)) for seed in seeds])


def _means(numbers: pd.DataFrame) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.mean(skipna=False).items()}


def _numbers_of(before: Run, loss: Run, oracle: Run, saga: Run) -> dict[str, float]:
    sides = {"pre-trained": before, "loss": loss, "oracle": oracle, "SAGA": saga}
    numbers = {f"{side} {name}": metric(run, name) for name in ORACLE_ROOM for side, run in sides.items()}
    for name in ORACLE_ROOM:
        for shown, above, below in (("gain", "loss", "pre-trained"), ("room", "oracle", "loss"), ("SAGA gain", "SAGA", "loss")):
            numbers[f"{shown} {name}"] = numbers[f"{above} {name}"] - numbers[f"{below} {name}"]
    return numbers | _verdicts(saga) | _readings(before)


def first_verdicts(saga: Run) -> dict[str, float]:
    """Return how often the verdicts of a run's first steps were right (%), by kind of pair (`KINDS`); NaN where it drew none.

    Half of a step's pairs are of one class, so that pairs_drawn weighs the steps of either kind as their rollouts do.
    """
    first = saga.metrics.iloc[:FIRST_STEPS]
    return {kind: _weighted(first[f"verdict_accuracy_{kind.removesuffix('-class')}"], first["pairs_drawn"]) for kind in KINDS}


def _verdicts(saga: Run) -> dict[str, float]:
    """Return `first_verdicts`, and the share of the run's contributing pairs that are of one class (%)."""
    steps = saga.metrics
    first = {f"{kind} verdicts": share for kind, share in first_verdicts(saga).items()}
    return first | {"contributing of one class": _weighted(steps["contributing_same_class"], steps["contributing_pairs"])}


def _weighted(shares: pd.Series, weights: pd.Series) -> float:
    """Return the weighted mean of shares in percent, over the steps that have one; NaN where these have no weight."""
    known = shares.notna() & (weights > 0)
    return float(100 * np.average(shares[known], weights=weights[known])) if known.any() else float("nan")


def _readings(before: Run) -> dict[str, float]:
    """Return how well the frozen model reads the attributes of validation classes from the pre-trained tower, in percent."""
    reading = before.evaluation.get("reading") or {}
    if not reading.get("accuracy"):
        raise SagaError(f"run {before.key} ({before.config.method} on {before.config.dataset}) was trained without measure_reading, so it "
                        "does not know what is read from it; the gates need the run that trials.gate_runs names")  # fmt: skip
    accuracy = np.round([100 * share for share in reading["accuracy"].values()], 6)
    low, high = READING_RANGE
    return {
        "attributes": len(accuracy), "read": int((accuracy >= low).sum()),
        "in range": int(((low <= accuracy) & (accuracy <= high)).sum()), "above range": int((accuracy > high).sum()),
        "reading accuracy": float(accuracy.mean()), "consensus": 100 * float(np.mean(list(reading["consensus"].values()))),
        "R@1 by reading": 100 * reading["recall"]["1"], "MAP@R by reading": 100 * reading["map_at_r"],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- the rules


def _gates_passed(numbers: Mapping[str, float]) -> dict[str, bool]:
    """Return which of `GATE_RULES` some numbers pass; what is not a number passes none."""
    n = {name: round(value, 6) for name, value in numbers.items()}
    checks = (
        PRETRAINED_RANGE[0] <= n["pre-trained R@1"] <= PRETRAINED_RANGE[1] and max(n["gain R@1"], n["gain MAP@R"]) >= LOSS_GAIN,
        all(n[f"room {name}"] >= least for name, least in ORACLE_ROOM.items()) and n["loss R@1"] < SATURATED,
        SAME_CLASS_RIGHT[0] <= n["same-class verdicts"] <= SAME_CLASS_RIGHT[1] and n["different-class verdicts"] < DIFFERENT_CLASS_RIGHT
        and ONE_CLASS_PAIRS[0] <= n["contributing of one class"] <= ONE_CLASS_PAIRS[1],
        n["read"] >= ATTRIBUTES_READ and n["consensus"] >= CONSENSUS,
    )  # fmt: skip
    return dict(zip(GATE_RULES, map(bool, checks), strict=True))


def _is_admitted(numbers: Mapping[str, float]) -> bool:
    passed = _gates_passed(numbers)
    return all(passed[rule] for rule in ADMITTING)


def _in_words(numbers: Mapping[str, float], loss: str) -> dict[str, str]:
    """Return the numbers behind each of `GATE_RULES`; `loss` is the metric loss's name for people."""
    n, low, high = numbers, *READING_RANGE
    return dict(zip(GATE_RULES, (
        f"pre-trained R@1 {n['pre-trained R@1']:.1f} %; {loss} {signed(n['gain R@1'])} points of R@1, {signed(n['gain MAP@R'])} of MAP@R",
        f"{signed(n['room R@1'])} points of R@1, {signed(n['room MAP@R'])} of MAP@R above {loss}, whose R@1 is {n['loss R@1']:.1f} %",
        f"at the start {_percent(n['same-class verdicts'])} of the rollouts about one class are right, "
        f"{_percent(n['different-class verdicts'])} of those about two; {_percent(n['contributing of one class'])} of the contributing "
        "pairs are of one class",
        f"{n['read']:g} of {n['attributes']:g} attributes at {low:g} % or better, {n['in range']:g} of them up to {high:g} % and "
        f"{n['above range']:g} above; mean consensus {n['consensus']:.1f} %",
    ), strict=True))  # fmt: skip


def _percent(value: float) -> str:
    return NOTHING if value != value else f"{value:.1f} %"


def gate(runs: Sequence[Run]) -> dict[str, object]:
    """Return a benchmark's row of the gates: its `gate_numbers`, each of `GATE_RULES` passed or failed in words, and the verdict.

    Means over seeds decide. A benchmark is admitted if it passes the rules of `ADMITTING`; `seeds that agree` counts the seeds that give
    the same verdict by themselves.
    """
    by_seed = _seed_numbers(runs)
    numbers, loss = _means(by_seed), gate_methods(runs[0].config.profile)[1]
    passed, admitted = _gates_passed(numbers), _is_admitted(numbers)
    row = {"benchmark": runs[0].config.dataset, "loss": loss} | numbers
    row |= {rule: f"{'passed' if passed[rule] else 'failed'}: {text}" for rule, text in _in_words(numbers, label(loss)).items()}
    agree = sum(_is_admitted(of_seed) == admitted for of_seed in by_seed.to_dict("records"))
    return row | {"verdict": "admitted" if admitted else "not admitted", "seeds": len(by_seed), "seeds that agree": agree}


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


# ----------------------------------------------------------------------------------------------- in sentences


def gate_conclusions(table: pd.DataFrame) -> list[str]:
    """Return one sentence per benchmark, whether it is admitted and which rules it fails, then which rules are never passed together."""
    by = " and ".join(rule.split()[0] for rule in ADMITTING)
    sentences = []
    for row in table.to_dict("records"):
        failed = [f"{rule} ({row[rule].removeprefix('failed: ')})" for rule in GATE_RULES if row[rule].startswith("failed")]
        text = f"{row['benchmark']}: {row['verdict']} by {by}; it " + (f"fails {', '.join(failed)}" if failed else "passes every rule")
        if row["seeds"] > 1:
            alike = f"all {row['seeds']}" if row["seeds that agree"] == row["seeds"] else f"{row['seeds that agree']} of {row['seeds']}"
            text += f"; {alike} seeds give this verdict by themselves"
        sentences.append(f"{text}.")
    if len(table):
        sentences += _together(table)
        if table["seeds"].min() == 1:
            sentences.append("Of one seed, a benchmark that passes or fails by less than about two points could fall either way.")
    return sentences


def _together(table: pd.DataFrame) -> list[str]:
    """Return whether all rules hold together somewhere; else which are passed nowhere, and which pairs exclude each other."""
    passes = {number: set(table.loc[table[rule].str.startswith("passed"), "benchmark"]) for number, rule in enumerate(GATE_RULES, 1)}
    count = f"{len(table)} benchmark{'s' if len(table) > 1 else ''}"
    if everywhere := [name for name in table["benchmark"] if all(name in names for names in passes.values())]:
        return [f"All rules are passed together on {', '.join(everywhere)} (of {count})."]
    sentences = [
        f"Rule {number} is passed on none of {count}, hence never together with another." for number, names in passes.items() if not names
    ]
    pairs = [(a, b) for a, b in itertools.combinations(passes, 2) if passes[a] and passes[b] and not passes[a] & passes[b]]
    for a, b in pairs:
        where = (f"{number} is passed on {', '.join(sorted(passes[number]))}" for number in (a, b))
        sentences.append(f"Rules {a} and {b} exclude each other here: {', '.join(where)}, both on none of {count}.")
    return sentences or [f"Every two rules are passed together somewhere, but all of them on none of {count}."]


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
