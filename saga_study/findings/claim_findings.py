"""What a study measured for or against a claim: found in its saved tables, or computed from the runs that they list."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from saga_lib.common.files import read_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.findings.phrases import METRICS, READ
from saga_study.findings.samples import ALL_ATTRIBUTES, LATER, POOLED, bootstrap_points, clustered_hits, seed_differences, t_interval
from saga_study.findings.words import BEFORE_TRAINING, Interval, signed
from saga_study.methods import BEST_LOSS, PROFILES, baseline_of
from saga_study.paths import is_complete

DEPLOYMENT = REPOSITORY / "benchmarks" / "results" / "deployment-2core-cpu.json"
R1_POINTS = " points of R@1"
HARDLY = 1.0  # points of R@1 within which a change hardly matters; the effects that the paper tells of are 2 to 6


@dataclass(frozen=True)
class Finding:
    """One measured number for or against a claim, on one benchmark or over all."""

    benchmark: str
    text: str  # with unit and interval
    sign: int | None  # of the claim's direction: 1 for it, -1 against it, 0 undecided, None without an interval
    seeds: int
    runs: tuple[str, ...] = ()  # keys of run folders
    interval: Interval = Interval()


# ------------------------------------------------------------------------------------------ reading a study's folder


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _by_benchmark(folder: Path, prefix: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the benchmark and the rows of each saved table `prefix`benchmark`_values`."""
    for path in sorted(folder.glob(f"tables/{prefix}*_values.csv")):
        yield path.stem.removeprefix(prefix).removesuffix("_values"), _read(path)


def _run_keys(folder: Path, methods: Sequence[str], datasets: Sequence[str], prefix: str = "04_table1_", size: str = "") -> tuple[str, ...]:
    """Return the keys of the runs behind rows of some tables; `size` is the embedding size of rows that have one."""
    found = []
    for of_file, rows in _by_benchmark(folder, prefix):
        for row in rows:
            place = row.get("dataset") or row.get("benchmark") or of_file
            if row["method"] in methods and place in datasets and size in ("", row.get("embedding_dim")):
                found += row.get("runs", "").split()
    return tuple(dict.fromkeys(found))


def _finished(folder: Path, keys: Sequence[str]) -> list[Run]:
    """Return those runs of a study that are there, by their keys."""
    places = [place for key in keys if is_complete(place := folder / "runs" / key)]
    return [Run(place, RunConfig.from_dict(read_json(place / "config.json")["config"])) for place in places]


# --------------------------------------------------------------------------------------- which methods a study compares

Side = str | Callable[[Path], str]  # a method, or what names one in a study's folder


def profile_of(folder: Path) -> str:
    """Return the profile of a study by its manifest."""
    path = folder / "manifest.json"
    return str(read_json(path).get("profile", "miniature")) if path.is_file() else "miniature"


def base_of(folder: Path, loss: str) -> str:
    """Return the row that signals on a metric loss are added to: `methods.baseline_of`; the bare loss in a study without that row."""
    base = baseline_of(profile_of(folder), loss)
    known = {row.get("method") for path in folder.glob("tables/*_table*_values.csv") for row in _read(path)}
    return base if base in known else loss


def on_best_loss(folder: Path, row: str) -> str:
    """Return the row of a signal ("saga", "contrast"; "": of none) on the metric loss that retrieves best."""
    loss = BEST_LOSS[profile_of(folder)]
    return f"{row}_{loss}" if row else base_of(folder, loss)


def shuffled_of(folder: Path) -> str:
    """Return SAGA's control of the reward: advantages shuffled within groups; across the buffer in a study without that row."""
    rows = _read(folder / "tables" / "04_answer_values.csv")
    return "saga_shuffled_in_group" if any(row["against"] == "saga_shuffled_in_group" for row in rows) else "saga_shuffled"


def named(folder: Path, side: Side) -> str:
    return side if isinstance(side, str) else side(folder)


BY_READING = {"tables": ("19_differences",), "metric": METRICS[READ]}
PF_BASE, BEST = partial(base_of, loss="pf"), partial(on_best_loss, row="")

# ------------------------------------------------------------------------------------------------------ findings


def compare(
    folder: Path, method: Side, against: Side, is_turned: bool = False,
    tables: Sequence[str] = ("04_answer", "05_differences", "05_parts"), size_rank: int | None = None, metric: str = "R@1",
) -> list[Finding]:  # fmt: skip
    """Return differences between two methods, over all benchmarks first, then on each, from the first table that has them.

    metric: R@1, or another one that a table has in columns or in rows of its own. `is_turned` gives `against` minus `method`, as a table
    may hold the reverse of what is claimed. `size_rank` is for a table with several embedding sizes: 0 takes them at the smallest, 1 at
    the next, and none at the full one.
    """
    method, against = named(folder, method), named(folder, against)
    for table in tables:
        rows = [row for row in _read(folder / "tables" / f"{table}_values.csv") if (row["method"], row["against"]) == (method, against)]
        column = metric if any(f"{metric} low" in row for row in rows) else "difference"
        rows = [row for row in rows if row[column] and (column == metric or row.get("metric", "R@1") == metric)]
        sizes = sorted({int(row["embedding_dim"]) for row in rows})[:-1] if size_rank is not None else []
        if not rows or size_rank is not None and size_rank >= len(sizes):
            continue
        size = str(sizes[size_rank]) if size_rank is not None else ""
        rows = [row for row in rows if size in ("", row.get("embedding_dim"))]
        names = [row["benchmark"] for row in rows if row["benchmark"] != POOLED]
        prefix = PREFIXES.get(table[:2], f"{table[:2]}_table")
        found = []
        for row in sorted(rows, key=lambda row: row["benchmark"] != POOLED):
            value, low, high = Interval.of(row, column)
            interval = Interval(-value, -high, -low) if is_turned else Interval(value, low, high)
            keys = _run_keys(folder, (method, against), names if row["benchmark"] == POOLED else (row["benchmark"],), prefix, size)
            text = interval.text("+.1f", f" points of {metric.removesuffix(' difference')}")
            found.append(Finding(row["benchmark"], text, interval.side(), int(row["seeds"]), keys, interval))
        return found
    return []


PREFIXES = {  # of the tables that list the runs, by notebook; else NN_table
    "04": "04_table1_", "13": "13_after_training", "18": "18_few_shot", "19": "19_words", "20": "20_signals",
}  # fmt: skip


def keeps_less_than_half(
    folder: Path, method: Side, of: Side, against: Side, tables: Sequence[str], metric: str = "R@1"
) -> list[Finding]:  # fmt: skip
    """Return a control's differences to `against`, for the claim that it keeps less than half of what `of` gains over the same.

    The claim holds where the whole interval is below half of that gain, is contradicted where the whole is above, and decides nothing
    where there is no gain to keep.
    """
    gains = {one.benchmark: one for one in compare(folder, of, against, tables=tables, metric=metric)}
    found = []
    for one in compare(folder, method, against, tables=tables, metric=metric):
        gain = gains.get(one.benchmark)
        if gain is None or gain.sign != 1:
            found.append(replace(one, sign=None, text=f"{one.text} (no claim: there is no gain to keep)"))
            continue
        half = gain.interval.difference / 2
        sign = None if one.sign is None else -one.interval.side(half)
        found.append(replace(one, sign=sign, text=f"{one.text} (half of the gain: {signed(half)})"))
    return found


def reward_matters(folder: Path, control: Side = shuffled_of, **where: object) -> list[Finding]:
    """Return SAGA − its shuffled control; `where` is as of `compare`.

    Where SAGA is not above what it is added to over all benchmarks, that decides nothing; nor where it is not above Potential Field at
    its own learning rate (Table 2), which the control shares: both could then owe their distance to the rate.
    """
    found, gains = compare(folder, "saga_pf", control, **where), compare(folder, "saga_pf", PF_BASE, **where)
    at_its_rate = compare(folder, "saga_pf", "pf_saga_rate")
    why = "SAGA is not above its loss" if not (gains and gains[0].sign == 1) else ""
    if not why and at_its_rate and at_its_rate[0].sign != 1:
        why = "SAGA is not above its loss at its own rate"
    return [replace(one, sign=None, text=f"{one.text} (no claim: {why})") for one in found] if why else found


def by_seed(folder: Path, method: Side, against: Side, name: str, form: str, unit: str) -> list[Finding]:
    """Return differences of a metric of `samples.metric` on each benchmark: a t interval over the seeds that both have."""
    method, against = named(folder, method), named(folder, against)
    found = []
    for benchmark, rows in _by_benchmark(folder, "04_table1_"):
        keys = {row["method"]: row.get("runs", "").split() for row in rows}
        sides = {side: _finished(folder, keys.get(side, ())) for side in (method, against)}
        seeds = set.intersection(*({run.config.seed for run in runs} for runs in sides.values()))
        if not seeds:
            continue
        paired = {side: [run for run in runs if run.config.seed in seeds] for side, runs in sides.items()}
        interval = t_interval([seed_differences(paired, method, against, name)])
        used = tuple(run.key for runs in paired.values() for run in runs)
        found.append(Finding(benchmark, interval.text(form, unit), interval.side(), len(seeds), used))
    return found


def small_against_full(folder: Path, method: Side, against: Side) -> list[Finding]:
    """Return a method's R@1 at the smallest embedding of notebook 07 minus another's at the full one, on each benchmark."""
    method, against = named(folder, method), named(folder, against)
    rows = [row for row in _read(folder / "tables" / "07_table4_values.csv") if row["runs"]]
    keys = {(row["dataset"], row["method"], int(row["embedding_dim"])): row["runs"].split() for row in rows}
    sizes = sorted({size for *_, size in keys})
    found = []
    for name in dict.fromkeys(row["dataset"] for row in rows) if len(sizes) > 1 else ():
        sides = [_finished(folder, keys.get((name, *side), ())) for side in ((method, sizes[0]), (against, sizes[-1]))]
        if not all(sides):
            continue
        interval = bootstrap_points([tuple(map(clustered_hits, sides))])
        text = f"{sizes[0]} against {sizes[-1]} dimensions: {interval.text('+.1f', R1_POINTS)}"
        used = tuple(run.key for runs in sides for run in runs)
        found.append(Finding(name, text, interval.side(), min(map(len, sides)), used))
    return found


def audited(folder: Path, measure: str, group: str, null: float = 1.0) -> list[Finding]:
    """Return a statistic of the gradient audit (notebook 12) over all audited steps, on each benchmark."""
    found = []
    for name, rows in _by_benchmark(folder, "12_audit_"):
        row = next((row for row in rows if (row["step"], row["measure"], row["group"]) == ("all", measure, group)), None)
        if row and row["value"]:
            interval, keys = Interval.of(row, "value"), _run_keys(folder, ("saga_pf",), (name,))
            found.append(Finding(name, interval.text(".2f", "×"), interval.side(null), int(row["runs"]), keys))
    return found


def fades(folder: Path, measure: str, group: str) -> list[Finding]:
    """Return whether a statistic of the audit falls from the first audited step to the later ones: intervals must not overlap."""
    found = []
    for name, rows in _by_benchmark(folder, "12_audit_"):
        steps = [row for row in rows if (row["measure"], row["group"]) == (measure, group) and row["value"]]
        first, later = steps[:1], [row for row in steps if row["step"] == LATER]
        if not (first and later and first[0]["step"].isdigit()):
            continue
        pair = (first[0], later[0])
        before, after = (Interval.of(row, "value") for row in pair)
        texts = [f"{one.text('.3g')} ({row['pairs']} pairs)" for one, row in zip((before, after), pair, strict=True)]
        text = f"step {pair[0]['step']}: {texts[0]}; later: {texts[1]}"
        found.append(Finding(name, text, before.beside(after), int(pair[0]["runs"]), _run_keys(folder, ("saga_pf",), (name,))))
    return found


def deployment(_folder: Path, tolerance: float = 0.05) -> list[Finding]:
    """Return what embedding costs with SAGA's pooler relative to the mean pooler on one tower (benchmarks/deployment.py).

    There is no interval: the claim holds if throughput and peak memory are within `tolerance` of each other.
    """
    if not DEPLOYMENT.is_file():
        return []
    measured = read_json(DEPLOYMENT)
    speed, memory = measured["batch_images_per_second"]["ratio"], measured["peak_mib_of_a_batch"]["ratio"]
    holds = abs(speed - 1) <= tolerance and abs(memory - 1) <= tolerance
    text = f"throughput × {speed:.2f}, peak memory × {memory:.2f} (within {100 * tolerance:.0f} % counts as equal; {measured['machine']})"
    return [Finding("one tower, two poolers", text, 1 if holds else -1, 0)]


def points_at(folder: Path) -> list[Finding]:
    """Return how often attention points at the attribute that is being named (notebook 09, the layer ℓ, all attributes alike).

    The claim holds if the interval is above chance, above the maps of the image's other attributes and above another image's map.
    """
    found = []
    for name, rows in _by_benchmark(folder, "09_pointing_"):
        profile = read_json(folder / "manifest.json")["profile"]
        layer = str(PROFILES[profile].get("attention_layer", RunConfig.attention_layer))
        for row in rows:
            if (row["layer"], row["attribute"]) != (layer, ALL_ATTRIBUTES) or not row["pointing"]:
                continue
            interval = Interval.of(row, "pointing")
            chance, others, swapped = (float(row[key]) for key in ("chance", "others", "swapped"))
            text = (
                f"{row['tower']} {interval.text('.0f', ' %')} (chance {chance:.0f}, other attributes' maps {others:.0f}, "
                f"another image's {swapped:.0f})"
            )
            found.append(Finding(name, text, interval.side(max(chance, others, swapped)), _training_seeds(row)))
    return found


def _training_seeds(row: Mapping[str, str]) -> int:
    """Return over how many training seeds a row of notebook 09 is measured; the pre-trained tower has none."""
    return 0 if row["tower"] == "pre-trained" else int(row.get("seeds") or 1)


def last_layer_points_worse(folder: Path) -> list[Finding]:
    """Return whether the last layer's attention points less often at the named attribute than an earlier one's (notebook 09).

    The claim holds if the best earlier layer's interval is above the last one's. It does not say that a late layer is the best.
    """
    found = []
    for name, rows in _by_benchmark(folder, "09_pointing_"):
        rows = [row for row in rows if row["attribute"] == ALL_ATTRIBUTES and row["pointing"]]
        for tower in dict.fromkeys(row["tower"] for row in rows):
            layers = sorted((int(row["layer"]), row) for row in rows if row["tower"] == tower and row["layer"].isdigit())
            if len(layers) < 2:
                continue
            best = max(layers[:-1], key=lambda layer: float(layer[1]["pointing"]))
            pair = [Interval.of(row, "pointing") for _, row in (best, layers[-1])]
            texts = [f"ℓ = {layer} {one.text('.0f', ' %')}" for (layer, _), one in zip((best, layers[-1]), pair, strict=True)]
            text = f"{tower}: best before the last {texts[0]}, last {texts[1]}"
            found.append(Finding(name, text, pair[0].beside(pair[1]), _training_seeds(layers[-1][1])))
    return found


def credited(folder: Path, kind: str) -> list[Finding]:
    """Return the mean advantage of true descriptions less that of false ones before training, on each benchmark (notebook 12)."""
    found = []
    for name, rows in _by_benchmark(folder, "12_credit_"):
        for row in rows:
            if (row["moment"], row["pairs of"]) == (BEFORE_TRAINING, kind):
                interval = Interval.of(row)
                found.append(Finding(name, interval.text("+.3f", f" of advantage ({row['pairs']} pairs)"), interval.side(), 1))
    return found


def goes_together(folder: Path, method: str, step: str) -> list[Finding]:
    """Return the correlation, over attributes, of what a method changes at both ends of a step of the chain (notebook 20)."""
    rows = [row for row in _read(folder / "tables" / "20_sibling_steps_values.csv") if (row["method"], row["step"]) == (method, step)]
    found = [(row, Interval.of(row)) for row in rows if row["difference"]]
    return [Finding(f"{row['attributes']} attributes", r.text("+.2f", " (Pearson's r)"), r.side(), int(row["seeds"])) for row, r in found]


def not_measured(_folder: Path) -> list[Finding]:
    """Return nothing: the claim is listed so that nobody thinks it was forgotten."""
    return []


def hardly_matters(folder: Path, settings: Sequence[str], factor: float) -> list[Finding]:
    """Return how weights within a factor of the profile's change R@1 (notebook 11).

    The claim holds where the whole interval is within a point (`HARDLY`) of no change, is contradicted where it excludes 0 otherwise,
    and is open where it is too wide to tell.
    """
    rows = [row for row in _read(folder / "tables" / "11_sensitivity_values.csv") if row["setting"] in settings]
    own = {row["setting"]: float(row["value"]) for row in rows if row["is_profile"] == "True"}
    found = []
    for row in rows:
        times = float(row["value"]) / own[row["setting"]]
        if row["difference"] and row["is_profile"] == "False" and 1 / factor <= times <= factor:
            interval = Interval.of(row)
            text = f"{row['setting']} × {times:.1g}: {interval.text('+.1f', R1_POINTS)}"
            side = interval.side()
            holds = side is not None and -HARDLY < interval.low and interval.high < HARDLY
            sign = 1 if holds else side and -1
            found.append(Finding("validation classes", text, sign, int(row["seeds"]), tuple(row["runs"].split()), interval))
    return found
