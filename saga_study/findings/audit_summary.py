"""What gradient audits say: statistics with intervals, a table for people, and conclusions read off the numbers.

The rows come from `saga_study.audit.audit_step`, where gradient, gross and shuffled are defined. "Differing" and "shared" are
the attribute slots of pairs of two classes, by truth; "same class" are all slots of pairs of one class. A slot is a described
value; with the prefix "differences: " it is an attribute's entry in the list of differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.audit import TOKEN_TYPES
from saga_study.findings.samples import LATER
from saga_study.findings.words import SIDES, Interval, seed_remark

GROUPS = ("differing", "shared", "same class")
SECTIONS = {"": "slot", "differences: ": "difference"}  # prefix of a group's name: the part of the answer that it is about
ALL_STEPS = "all"
NUM_RESAMPLES = 2000
MIN_PAIRS = 5  # a statistic of fewer pairs gets no interval

# Every statistic is a ratio of products of sums over pairs: (measure, group) -> (columns above, columns below).
_Ratio = tuple[tuple[str, ...], tuple[str, ...]]


def _statistics(prefix: str) -> dict[tuple[str, str], _Ratio]:
    d, s = f"{prefix}differing", f"{prefix}shared"
    groups = [prefix + group for group in GROUPS]
    return {
        ("gradient ratio", f"{d} / shared"): ((f"gradient {d}", f"n {s}"), (f"gradient {s}", f"n {d}")),
        ("gross ratio", f"{d} / shared"): ((f"gross {d}", f"n {s}"), (f"gross {s}", f"n {d}")),
        ("surviving ratio", f"{d} / shared"): ((f"gradient {d}", f"gross {s}"), (f"gradient {s}", f"gross {d}")),
        ("share", d): ((f"{prefix}share",), (f"{prefix}has share",)),
        ("share", f"{prefix}chance"): ((f"{prefix}chance",), (f"{prefix}has share",)),
        ("share", f"{prefix}above chance"): ((f"{prefix}share above chance",), (f"{prefix}has share",)),
        ("top slot", d): ((f"{prefix}top",), (f"{prefix}has share",)),
        ("top slot", f"{prefix}above chance"): ((f"{prefix}top above chance",), (f"{prefix}has share",)),
        **{("gradient per slot", g): ((f"gradient {g}",), (f"n {g}",)) for g in groups},
        **{("surviving", g): ((f"gradient {g}",), (f"gross {g}",)) for g in groups},
        **{("against shuffled", g): ((f"gradient² {g}",), (f"shuffled² {g}",)) for g in groups},
        **{("unanimous", g): ((f"unanimous {g}",), (f"n {g}",)) for g in groups},
        **{("reading accuracy", g): ((f"correct {g}",), (f"n {g}",)) for g in groups},
        ("reading accuracy", f"{prefix}all"): ((f"{prefix}correct",), (f"{prefix}n",)),
    }


MEASURES = {  # label, unit, meaning
    "gradient ratio": ("gradient of a differing slot relative to a shared one", "×", "mean gradient per slot; pairs of two classes"),
    "gross ratio": ("… of which before cancellation", "×", "the same ratio of gross: how much the rollouts' own gradients differ"),
    "surviving ratio": ("… of which by cancellation", "×", "gradient ratio / gross ratio; above 1: advantages cancel more on shared slots"),
    "share": ("share of the slots' gradient", "%", "sum of norms; mean over pairs of two classes; chance: share of the slots that differ"),
    "top slot": ("the largest slot differs", "%", "pairs of two classes; chance as for the share"),
    "gradient per slot": ("gradient per slot", "", "norm at the merged tokens, before λ/|T|"),
    "surviving": ("survives cancellation", "%", "gradient / gross, pooled over slots"),
    "against shuffled": ("gradient² relative to shuffled advantages", "×", "1 if the reward knew nothing of what is said in these slots"),
    "unanimous": ("all rollouts give one value", "%", "of slots"),
    "reading accuracy": ("said rightly", "%", "of rollouts and slots, against attribute truth"),
    "same-class pairs": ("contributing pairs of one class", "%", "number of pairs, and their share of the gradient"),
    "token type": ("share of the gradient by kind of token", "%", "norm of each kind relative to the sum of the four; mean over pairs"),
}  # fmt: skip
_BY_PAIR = {
    ("same-class pairs", "number"): (("same",), ("one",)),
    ("same-class pairs", "gradient"): (("same gradient",), ("gradient all",)),
}
_BY_TOKEN = {("token type", part): ((f"type {part}",), ("has types",)) for part in TOKEN_TYPES}
_ALL = {**_statistics(""), **_statistics("differences: "), **_BY_PAIR, **_BY_TOKEN}
STATISTICS: dict[tuple[str, str], _Ratio] = {key: _ALL[key] for key in sorted(_ALL, key=lambda key: list(MEASURES).index(key[0]))}


def gather(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the audit rows of several runs, with columns `run`, `dataset` and `seed`; empty if none was audited."""
    frames = [run.audit.assign(run=run.key, dataset=run.config.dataset, seed=run.config.seed) for run in runs if len(run.audit)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def summarise(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return each of STATISTICS at every audited step and over all steps, with a bootstrap 95 % interval.

    `rows` as from `gather`. Columns: step (int, "later" or "all"), measure, group, value, low, high, pairs, runs. The bootstrap draws
    runs, then pairs within them; with one run it covers pairs only. `pairs` and `runs` count what a statistic rests on: with
    fewer than MIN_PAIRS there is no interval, and what is undefined (no pair of two classes, say) is missing.
    """
    columns = ["step", "measure", "group", "value", "low", "high", "pairs", "runs"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    pairs = _per_pair(rows)
    result = []
    steps = sorted(int(step) for step in pairs["step"].unique())
    for step in (*steps, *([LATER] if len(steps) > 1 else []), ALL_STEPS):
        part = pairs if step == ALL_STEPS else pairs[pairs["step"] > steps[0]] if step == LATER else pairs[pairs["step"] == step]
        sums = {name: part[name].to_numpy(float) for name in part.columns.drop(["run", "step", "pair"])}
        weights = _bootstrap_weights(part["run"].to_numpy(), np.random.default_rng(seed))  # (samples, pairs)
        totals = {name: values.sum() for name, values in sums.items()}
        resampled = {name: weights @ values for name, values in sums.items()}
        for (measure, group), ratio in STATISTICS.items():
            value, low, high = float(_evaluate(ratio, totals)), float("nan"), float("nan")
            counts = np.any([sums[name] > 0 for name in ratio[1]], axis=0)  # pairs that the statistic is about
            if counts.sum() >= MIN_PAIRS and np.isfinite(value):
                resamples = _evaluate(ratio, resampled)
                low, high = np.quantile(resamples[np.isfinite(resamples)], [0.025, 0.975])
            result.append((step, measure, group, value, low, high, int(counts.sum()), part["run"][counts].nunique()))
    return pd.DataFrame(result, columns=columns)


def _evaluate(ratio: _Ratio, sums: dict) -> np.ndarray:
    above, below = (np.prod([sums[name] for name in names], axis=0) for names in ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _bootstrap_weights(runs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how often each pair is drawn (NUM_RESAMPLES, pairs): runs with replacement, then pairs within each."""
    names = np.unique(runs)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_RESAMPLES)
    weights = np.zeros((NUM_RESAMPLES, len(runs)))
    for number, name in enumerate(names):
        inside = np.flatnonzero(runs == name)
        counts = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=NUM_RESAMPLES)
        weights[:, inside] = times[:, number, None] * counts
    return weights


def _per_pair(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the sums of STATISTICS, one row per audited pair."""
    records = []
    for (run, step, pair), part in rows.groupby(["run", "step", "pair"], sort=True):
        same = bool(part["same_class"].iloc[0])
        record = {"run": run, "step": step, "pair": pair, "one": 1, "same": int(same)}
        for prefix, name in SECTIONS.items():
            record |= _slot_sums(part[part["part"] == name], same, prefix)
        norms = part[part["part"].isin((*TOKEN_TYPES, "all"))].set_index("part")["gradient"]
        of_types = float(sum(norms[name] for name in TOKEN_TYPES))
        record |= {"has types": int(of_types > 0)}
        record |= {f"type {name}": norms[name] / of_types if of_types > 0 else 0.0 for name in TOKEN_TYPES}
        record |= {"gradient all": norms["all"], "same gradient": norms["all"] * same}
        records.append(record)
    return pd.DataFrame(records)


def _slot_sums(slots: pd.DataFrame, same: bool, prefix: str) -> dict[str, float]:
    """Return the sums over one pair's slots, all names beginning with or ending in their group."""
    differs = slots["differs"].astype(bool)
    group = pd.Series("same class", slots.index) if same else differs.map({True: "differing", False: "shared"})
    record: dict[str, float] = {}
    for name in GROUPS:
        chosen, key = slots[group == name], prefix + name
        record[f"n {key}"] = len(chosen)
        record |= {f"{column} {key}": float(chosen[column].sum()) for column in ("gradient", "gross", "unanimous", "correct")}
        record |= {f"{column}² {key}": float((chosen[column] ** 2).sum()) for column in ("gradient", "shuffled")}
    total = float(slots["gradient"].sum())
    counted = not same and total > 0
    share = record[f"gradient {prefix}differing"] / total if counted else 0.0
    chance = float(differs.mean()) if counted else 0.0
    top = float(differs[slots["gradient"].idxmax()]) if counted else 0.0
    whole = {
        "n": len(slots), "correct": float(slots["correct"].sum()), "has share": int(counted), "share": share, "chance": chance,
        "top": top, "share above chance": share - chance, "top above chance": top - chance,
    }  # fmt: skip
    return record | {prefix + name: value for name, value in whole.items()}


# -------------------------------------------------------------------------------------------- as people read it


def display_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as text: a row per statistic, a column per audited step, one for all but the first and one for all."""
    steps = list(dict.fromkeys(summary["step"]))
    rows = []
    for measure, group in STATISTICS if steps else ():
        label, unit, meaning = MEASURES[measure]
        row = {"statistic": label + (f" ({unit})" if unit else ""), "slots, pairs or tokens": group}
        for step in steps:
            name = f"{step} steps [95 %]" if step in (LATER, ALL_STEPS) else f"step {step} [95 %]"
            row[name] = shown(find(summary, measure, group, step), unit, with_unit=False)
        rows.append(row | {"meaning": meaning})
    return pd.DataFrame(rows)


def attribute_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per attribute and kind of slot: its mean gradient, what survives, unanimity, how often it is right."""
    if rows.empty:
        return pd.DataFrame()
    slots = rows[rows["part"].isin(SECTIONS.values())].copy()
    differing = slots["differs"].astype(bool).map({True: "differing", False: "shared"})
    prefixes = slots["part"].map({part: prefix for prefix, part in SECTIONS.items()})
    slots["kind of slot"] = prefixes + differing.where(~slots["same_class"].astype(bool), "same class")
    slots = slots.astype({"unanimous": float, "correct": float})
    names = ["gradient", "gross", "unanimous", "correct", "log_prob"]
    groups = slots.groupby(["attribute", "kind of slot"], sort=False)
    table = groups[names].mean().assign(slots=groups.size(), survives=lambda t: t["gradient"] / t["gross"]).reset_index()
    table = table.rename(columns={"correct": "said rightly", "log_prob": "log-probability (nats)", "gradient": "gradient per slot"})
    return table.drop(columns="gross").sort_values(["kind of slot", "gradient per slot"], ascending=[True, False], ignore_index=True)


def find(summary: pd.DataFrame, measure: str, group: str, step: int | str = ALL_STEPS) -> pd.Series:
    """Return the row of one statistic."""
    chosen = (summary["step"] == step) & (summary["measure"] == measure) & (summary["group"] == group)
    return summary[chosen].iloc[0]


def shown(row: pd.Series, unit: str, with_unit: bool = True) -> str:
    """Return a statistic as text, with its interval if it has one."""
    scale, form = (100, ".0f") if unit == "%" else (1, ".3g" if unit == "" else ".2f")
    suffix = f" {unit}".replace(" ×", "×") if with_unit and unit else ""
    return Interval(*(scale * value for value in Interval.of(row, "value"))).text(form, suffix)


# ------------------------------------------------------------------------------------------------- conclusions


class _Statistics:
    """A summary's statistics, as the sentences below need them: intervals and texts of one measure and group."""

    def __init__(self, summary: pd.DataFrame, prefix: str = ""):
        self.summary, self.prefix = summary, prefix

    def interval(self, measure: str, group: str, step: int | str = ALL_STEPS) -> Interval:
        return Interval.of(find(self.summary, measure, self.prefix + group, step), "value")

    def text(self, measure: str, group: str, step: int | str = ALL_STEPS) -> str:
        return shown(find(self.summary, measure, self.prefix + group, step), MEASURES[measure][1])


def conclusions(summary: pd.DataFrame) -> list[str]:
    """Return what the numbers say about Sec. 3.2 of the paper, each sentence worded by its interval, whichever way it falls."""
    if summary.empty:
        return ["No pair was audited (no audit in these runs, or no contributing pair on an audited step): nothing can be said."]
    whole = _Statistics(summary)
    sentences = _tokens(whole)
    for prefix, what in (("", "described values"), ("differences: ", "entries in the list of differences")):
        of_part = _Statistics(summary, prefix)
        sentences += [f"{what.capitalize()}. {sentence}" for sentence in _concentration(of_part)]
        sentences += [*_mechanism(of_part), *_reward(of_part)]
    sentences += [*_pairs(whole), *_trend(whole)]
    pairs, runs = find(summary, "same-class pairs", "number")[["pairs", "runs"]]
    sentences.append(f"Over all audited steps: {pairs} contributing pairs of {runs} run(s).")
    return [*sentences, seed_remark([runs], "pairs", are_widened=False)]


def _against(interval: Interval, null: float, above: str, below: str, includes: str) -> str:
    """Return one of three wordings: the interval lies above `null`, below it, or includes it; or that there is none."""
    return {1: above, -1: below, 0: includes, None: "too few pairs for an interval"}[interval.side(null)]


def _against_chance(interval: Interval) -> str:
    return _against(interval, 0, *(f"{SIDES[side]} chance" for side in (1, -1, 0)))


def _tokens(of: _Statistics) -> list[str]:
    names = {"values": "described values", "differences": "the list of differences", "verdict": "the verdict", "rest": "all other tokens"}
    shares = ", ".join(f"{of.text('token type', part)} through {name}" for part, name in names.items())
    return [f"Where the gradient is: {shares}."]


def _concentration(of: _Statistics) -> list[str]:
    both = "differing / shared"
    ratio = of.interval("gradient ratio", both)
    if not np.isfinite(ratio.difference):
        return ["No audited pair of two classes has gradient on both differing and shared attributes: concentration cannot be judged."]
    verdict = _against(
        ratio, 1, "the gradient concentrates where the classes differ, as Sec. 3.2 expects",
        "it concentrates on what the classes share, the opposite of what Sec. 3.2 expects",
        "the interval includes 1, so no concentration is shown",
    )  # fmt: skip
    return [
        f"On pairs of two classes a differing attribute gets {of.text('gradient ratio', both)} the gradient of a shared one: {verdict}. "
        f"Differing attributes hold {of.text('share', 'differing')} of it (chance {of.text('share', 'chance')}): "
        f"{_against_chance(of.interval('share', 'above chance'))}; the largest one differs in {of.text('top slot', 'differing')} of pairs: "
        f"{_against_chance(of.interval('top slot', 'above chance'))}."
    ]


def _mechanism(of: _Statistics) -> list[str]:
    both = "differing / shared"
    ratio, surviving = of.interval("gradient ratio", both), of.interval("surviving ratio", both)
    if not np.isfinite(surviving.difference):
        return []
    left, unanimous = ([of.text(name, group) for group in GROUPS] for name in ("surviving", "unanimous"))
    verdict = _against(
        surviving, 1, "advantages do cancel more on shared attributes",
        "advantages cancel more on differing attributes than on shared ones",
        "cancellation is not distinguishable between differing and shared attributes",
    )  # fmt: skip
    part = np.log(surviving.difference) / np.log(ratio.difference) if ratio.low > 1 else None
    share = ""
    if part is not None and part > 0:
        share = f": cancellation makes {'only ' if part < 0.5 else ''}{100 * part:.0f} % of the concentration (in logarithms)"
        share += ", the larger part" if part >= 0.5 else (
            "; the rest is there before advantages cancel, because single rollouts have more gradient there")  # fmt: skip
    elif part is not None:
        share = ": cancellation works against the concentration, which is all in the gross gradients"
    return [
        f"Of the gross gradient {left[0]} survives cancellation on differing attributes, {left[1]} on shared ones, {left[2]} in pairs of "
        f"one class: {verdict}. The ratio above is {of.text('gross ratio', both)} (gross, before any cancellation) times "
        f"{of.text('surviving ratio', both)} (cancellation){share}.",
        f"All rollouts say the same in {unanimous[0]} of differing, {unanimous[1]} of shared slots, {unanimous[2]} in pairs of one class; "
        f"they are right in {of.text('reading accuracy', 'all')} of cases, on differing attributes in "
        f"{of.text('reading accuracy', 'differing')}.",
    ]


def _reward(of: _Statistics) -> list[str]:
    texts = []
    for group in GROUPS:
        interval = of.interval("against shuffled", group)
        if np.isfinite(interval.difference):
            name = f"on {group} attributes" if group != "same class" else "in pairs of one class"
            verdict = _against(interval, 1, "more", "less", "not distinguishable")
            texts.append(f"{of.text('against shuffled', group)} {name} ({verdict})")
    what = "Against the same advantages dealt out at random (squared gradient; 1 = the reward knows nothing of what is said there)"
    return [f"{what}: {'; '.join(texts)}."] if texts else []


def _pairs(of: _Statistics) -> list[str]:
    measure = "same-class pairs"
    verdict = _against(of.interval(measure, "number"), 0.5, "most are", "most are not", "neither kind is clearly more frequent")
    return [
        f"Pairs: {of.text(measure, 'number')} of the contributing pairs are of one class ({verdict}) and carry "
        f"{of.text(measure, 'gradient')} of the gradient. No attribute discriminates within such a pair: what "
        "it rewards is to describe both images alike."
    ]


def _trend(of: _Statistics) -> list[str]:
    first_step = of.summary["step"].iloc[0]
    if LATER not in set(of.summary["step"]):
        return ["Only one step was audited: nothing can be said about the course of training."]
    sentences = []
    overlap = "the intervals overlap, no trend is shown"
    verdicts = {1: "it rises", -1: "it falls", 0: overlap, None: "not enough pairs to compare"}
    followed = (
        ("gradient per slot", "differing"), ("gradient per slot", "shared"), ("share", "above chance"), ("surviving", "differing"),
        ("unanimous", "differing"), ("reading accuracy", "all"), ("same-class pairs", "number"),
    )  # fmt: skip
    for measure, group in followed:
        first, later = (of.interval(measure, group, step) for step in (first_step, LATER))
        texts = [of.text(measure, group, step) for step in (first_step, LATER)]
        trend = f"{texts[0]} at step {first_step}, {texts[1]} later; {verdicts[later.beside(first)]}"
        sentences.append(f"  {MEASURES[measure][0]}, {group}: {trend}.")
    counts = [int(find(of.summary, "same-class pairs", "number", step)["pairs"]) for step in (first_step, LATER)]
    pairs = f"{counts[0]} on the first audited step, {counts[1]} on all later ones; different pairs each time, all with mixed verdicts"
    return [f"Over training (contributing pairs: {pairs}):", *sentences]
