"""The answer over all benchmarks: does SAGA help, does another signal, is it the reward, and what share of the room is that?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from saga_study.findings.differences import RunsByMethod, compared
from saga_study.findings.samples import POOLED, check_poolable, of_all_benchmarks
from saga_study.findings.words import SIDES, Interval, label, points, seed_remark, short_name
from saga_study.methods import METHODS, baseline_of, oracle_of

LOSSES = ("pf", "infonce", "pa", "ms")  # the paper's main one first
LOSS_LABELS = {loss: METHODS[loss].label for loss in LOSSES}
CONTROLS = {  # a signal against its own control
    ("saga_pf", "saga_shuffled_in_group"): "SAGA − advantages shuffled in groups",
    ("saga_pf", "saga_shuffled"): "SAGA − shuffled advantages",
    ("saga_pf", "pf_saga_rate"): "SAGA − PF at SAGA's rate",
    ("saga_pf", "pf_attention"): "SAGA − PF with SAGA's pooler and rate",
    ("saga_pf", "pf_long"): "SAGA − PF for SAGA's wall-clock",
    ("saga_pf", "pf_grpo"): "SAGA − PF + GRPO (what L_KL adds)",
    ("oracle", "oracle_wrong"): "oracle − wrong attributes",
}
CONTROL_ROWS = ("saga_shuffled", "saga_shuffled_in_group", "oracle_wrong", "pf_long")
BEST_GROUP, CONTROL_GROUP = "over the best metric loss", "controls"
VALUE_COLUMNS = (
    "method", "against", "benchmark", "difference", "low", "high", "MAP@R", "MAP@R low", "MAP@R high", "queries", "seeds",
)  # fmt: skip
MAP_HEADING = "MAP@R, all, equal weight"


# ------------------------------------------------------------------------------------------- what is compared


def baseline_among(methods: Iterable[str], profile: str) -> str:
    """Return what Table 1's differences are to: the best metric loss (`methods.baseline_of`).

    Of a table without it: the loss that a signal of the table is added to, else the first method that is trained.
    """
    methods = list(methods)
    wanted = [baseline_of(profile), *(baseline_of(profile, loss) for loss in LOSSES), *LOSSES]
    return next((name for name in (*wanted, *(m for m in methods if m != "pre-trained")) if name in methods), baseline_of(profile))


def chosen_baseline(runs_by_dataset: Mapping[str, RunsByMethod], profile: str, given: str = "") -> str:
    """Return the baseline that was given, else the one `baseline_among` the methods that all benchmarks have."""
    methods = next(iter(of_all_benchmarks(runs_by_dataset).values()), {})
    return given or baseline_among(methods, profile)


def rival_of(baseline: str, methods: Iterable[str]) -> str:
    """Return the row of SAGA to hold against a baseline query by query: on the same metric loss, or else on the paper's."""
    saga = f"saga_{loss_of(baseline)}"
    return saga if saga in methods else "saga_pf"


def direct_pairs(profile: str) -> list[tuple[str, str]]:
    """Return the comparisons (method, against) of a profile: every signal with what it is added to, with SAGA and with its controls."""
    pairs = []
    for loss in LOSSES:
        base, saga, contrast = baseline_of(profile, loss), f"saga_{loss}", f"contrast_{loss}"
        pairs += [(f"{loss}_anchor", loss), (saga, base), (contrast, base), (contrast, saga), (oracle_of(loss), base)]
    base = baseline_of(profile, "pf")
    own = [("pre-trained", "pf"), ("saga_shuffled_in_group", base), ("oracle_wrong", base), ("pf_long", base)]
    return [*pairs, *own, *CONTROLS]


def comparison_label(method: str, against: str) -> str:
    return CONTROLS.get((method, against)) or f"{label(method)} − {label(against)}"


def loss_of(method: str) -> str:
    """Return the metric loss of a row; "" for one that is not trained or not ours."""
    return str(METHODS[method].settings.get("dml_loss", "")) if method in METHODS else ""


def group_of(method: str, against: str) -> str:
    """Return the heading that a comparison stands under: its metric loss, what it controls for, or the comparison with another loss."""
    if (method, against) in CONTROLS or method in CONTROL_ROWS:
        return CONTROL_GROUP
    loss = loss_of(method)
    return f"on {LOSS_LABELS[loss]}" if loss in LOSS_LABELS and loss == loss_of(against) else BEST_GROUP


GROUPS = (BEST_GROUP, *(f"on {name}" for name in LOSS_LABELS.values()), CONTROL_GROUP)


def is_shown(method: str, against: str) -> bool:
    """Return whether the answer is about a comparison: of a signal, an anchor or a control; of the last with rows of its own loss only."""
    is_meant = method in METHODS and bool(METHODS[method].signal or METHODS[method].steps_factor)
    return is_meant and (method not in CONTROL_ROWS or loss_of(method) == loss_of(against))


# -------------------------------------------------------------------------------------------------- the answer


def pooled_answer(
    runs_by_dataset: Mapping[str, RunsByMethod], baseline: str = "", labels: Mapping[str, np.ndarray] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return differences of R@1 and MAP@R in points with 95 % intervals: per benchmark, then pooled over all of them.

    Every method is compared with `baseline` (default: `baseline_among`), and signals as `direct_pairs` says; or just `pairs`. Both
    are drawn over families of classes and seeds (`samples.clustered_hits`; labels: the classes of each benchmark's queries).
    Columns: `VALUE_COLUMNS`. Raises `SagaError` for what must not be pooled: several versions of the code, several profiles, or a method
    that a benchmark lacks.
    """
    check_poolable(runs_by_dataset)
    first = next(iter(runs_by_dataset.values()))
    if pairs is None:
        profile = next(run.config.profile for runs in first.values() for run in runs)
        baseline = baseline or baseline_among(first, profile)
        pairs = [(method, baseline) for method in first if method != baseline and baseline in first]
        pairs += [pair for pair in direct_pairs(profile) if set(pair) <= set(first)]
    rows = [row for pair in dict.fromkeys(pairs) for row in compared(runs_by_dataset, *pair, pool_from=1, labels=labels or {})]
    return pd.DataFrame(rows, columns=VALUE_COLUMNS)


def shown_comparisons(answer: pd.DataFrame) -> dict[tuple[str, str], list[dict]]:
    """Return the rows of the comparisons that the answer is about, in the order of `GROUPS`."""
    groups = {pair: rows.to_dict("records") for pair, rows in answer.groupby(["method", "against"], sort=False) if is_shown(*pair)}
    return dict(sorted(groups.items(), key=lambda group: GROUPS.index(group_of(*group[0]))))


def display_answer(answer: pd.DataFrame) -> pd.DataFrame:
    """Return the answer as text: a row per comparison; points of R@1 [95 %], a column per benchmark and one for all, and pooled MAP@R."""
    rows = []
    for pair, group in shown_comparisons(answer).items():
        row = {"points of R@1 [95 %]": comparison_label(*pair)} | {one["benchmark"]: points(one) for one in group}
        rows.append(row | {MAP_HEADING: map_difference(group[-1]).text()})  # the last row is that of all benchmarks
    return pd.DataFrame(rows, columns=None if rows else ["points of R@1 [95 %]"])


def map_difference(row: Mapping[str, object]) -> Interval:
    """Return the difference of MAP@R in a row of `pooled_answer`; of a table that was saved without it, nothing."""
    return Interval.of(row, "MAP@R") if "MAP@R" in row else Interval()


# ----------------------------------------------------------------------------------------------- in sentences


class Found(NamedTuple):
    """A comparison over all benchmarks, in points."""

    recall: Interval  # R@1
    mean: Interval  # MAP@R

    def sides(self) -> list[tuple[str, int]]:
        """Return each metric that has an interval and the side of 0 that it is on."""
        named = (("R@1", self.recall.side()), ("MAP@R", self.mean.side()))
        return [(name, side) for name, side in named if side is not None]

    def above(self) -> list[str]:
        """Return the metrics in which the first method is above the second."""
        return [name for name, side in self.sides() if side > 0]

    def text(self) -> str:
        has_map = self.mean.difference == self.mean.difference
        return f"{self.recall.text()} points of R@1" + (f", {self.mean.text()} of MAP@R" if has_map else "")

    def verdict(self) -> str:
        """Return on which side the first method is, followed by the second's name; of metrics that differ each has its own."""
        sides = dict(self.sides())
        if len(set(sides.values())) < 2:
            return SIDES[next(iter(sides.values()), 0)]
        return f"by MAP@R {SIDES[sides['MAP@R']]} and by R@1 {SIDES[sides['R@1']]}"


VERBS = {
    SIDES[1]: "retrieves unseen classes better than", SIDES[-1]: "retrieves unseen classes worse than",
    SIDES[0]: "is not distinguishable from",
}  # fmt: skip


def pooled_findings(answer: pd.DataFrame) -> dict[tuple[str, str], Found]:
    """Return what every comparison of `pooled_answer` found over all benchmarks, by (method, against)."""
    rows = answer[answer["benchmark"] == POOLED].to_dict("records")
    return {(row["method"], row["against"]): Found(Interval.of(row), map_difference(row)) for row in rows}


def answer_sentences(answer: pd.DataFrame, profile: str, baseline: str = "") -> list[str]:
    """Return the answer in sentences, read off the intervals of `pooled_answer`, R@1 and MAP@R alike; the most important ones first.

    Does SAGA help over the loss it is added to and over the best one, does reading contrast, is it the reward, is there room, and what
    does the anchor do alone? Which share of the room is collected is told by `rooms.share_sentences`.
    """
    found, sentences = pooled_findings(answer), []
    baseline = baseline or baseline_among({*answer["method"], *answer["against"]}, profile)
    bases = {loss: baseline_of(profile, loss) for loss in LOSSES}
    for signal in ("saga", "contrast"):
        for loss in LOSSES:
            for against in dict.fromkeys((bases[loss], baseline)):
                sentences += _gain(answer, found, f"{signal}_{loss}", against)
    for loss in LOSSES:
        sentences += _gain(answer, found, f"contrast_{loss}", f"saga_{loss}")
    for control in ("saga_shuffled_in_group", "saga_shuffled"):
        base = bases["pf"] if ("saga_pf", bases["pf"]) in found else baseline
        sentences += _about_reward(found, control, base)
    for loss in LOSSES:
        base = bases[loss] if (oracle_of(loss), bases[loss]) in found else baseline
        sentences += _about_room(found, oracle_of(loss), base)
    sentences += [_one(found, f"{loss}_anchor", loss, ", which needs no language model,") for loss in LOSSES]
    sentences += [_one(found, "pf_long", against) for against in dict.fromkeys((bases["pf"], baseline))]
    controls = ("pf_saga_rate", "pf_attention", "pf_long", "pf_grpo")
    sentences += [_one(found, "saga_pf", control) for control in controls if control != baseline]
    if not (sentences := [one for one in sentences if one]):
        return [f"No signal was run beside {label(baseline)}: there is nothing to answer."]
    intervals = sum(len(group) for group in shown_comparisons(answer).values())
    by_chance = f"{intervals} intervals of R@1, and of MAP@R, of 95 %: about one in twenty excludes 0 by chance."
    first = [one for one in _first_sentences(answer, found, bases, baseline) if one in sentences]
    return [*first, *(one for one in sentences if one not in first), f"{seed_remark(answer['seeds'])} {by_chance}"]


def _first_sentences(
    answer: pd.DataFrame, found: Mapping[tuple[str, str], Found], bases: Mapping[str, str], baseline: str
) -> list[str]:  # fmt: skip
    """Return what a reader asks first: SAGA on the paper's loss, both signals on the best loss, and whether it is the reward."""
    best = loss_of(baseline)
    pairs = [("saga_pf", bases["pf"]), (f"saga_{best}", baseline), (f"contrast_{best}", baseline)]
    gains = [_gain(answer, found, *pair) for pair in dict.fromkeys(pairs)]
    ahead = [lines[0] for lines in gains if lines] + (gains[-1][1:] if gains else [])
    return ahead + [one for control in ("saga_shuffled_in_group", "saga_shuffled") for one in _about_reward(found, control, bases["pf"])]


def _one(found: Mapping[tuple[str, str], Found], method: str, against: str, remark: str = "") -> str:
    """Return a sentence on one comparison; "" without it."""
    one = found.get((method, against))
    return f"{label(method)}{remark} is {one.verdict()} {label(against)}: {one.text()}." if one else ""


def _gain(answer: pd.DataFrame, found: Mapping[tuple[str, str], Found], method: str, against: str) -> list[str]:
    """Return what a signal gains over all benchmarks, and on which of them."""
    if not (one := found.get((method, against))):
        return []
    names = [name for name in answer["benchmark"].unique() if name != POOLED]
    where = f"{len(names)} benchmarks" if len(names) > 1 else names[0]
    verdict = one.verdict()
    is_open = not any(side for _, side in one.sides())
    unseen = f" Effects under about {(one.recall.high - one.recall.low) / 2:.1f} points of R@1 would go unseen." if is_open else ""
    said = VERBS.get(verdict, f"is {verdict}")
    return [f"{label(method)} {said} {label(against)} over {where}: {one.text()}.{unseen}", *_by_benchmark(answer, method, against)]


def _by_benchmark(answer: pd.DataFrame, method: str, against: str) -> list[str]:
    """Return on which benchmarks a method is above another and on which below, a clause for each metric that has intervals."""
    rows = answer[(answer["method"] == method) & (answer["against"] == against) & (answer["benchmark"] != POOLED)].to_dict("records")
    clauses = []
    for name, read in (("R@1", Interval.of), ("MAP@R", map_difference)):
        sides = {row["benchmark"]: read(row).side() for row in rows}
        groups = {side: [benchmark for benchmark, one in sides.items() if one == side] for side in SIDES}
        words = SIDES | {0: "not distinguishable"}
        if any(groups.values()):
            parts = [f"{words[side]} on {', '.join(map(short_name, of))}" for side, of in groups.items() if of]
            clauses.append(f"{name} {'; '.join(parts)}")
    if len(rows) < 2 or not clauses:
        return []
    return [f"{label(method)} against {label(against)}, benchmark by benchmark: {'. '.join(clauses)}."]


def _about_reward(found: Mapping[tuple[str, str], Found], control: str, base: str) -> list[str]:
    """Return whether a gain of SAGA is the reward's: its control has the same gradients with advantages dealt out at random.

    Where SAGA does not gain over what it is added to, its distance to the control claims nothing: the control may only do more harm.
    """
    saga, shuffled, direct = (found.get(pair) for pair in (("saga_pf", base), (control, base), ("saga_pf", control)))
    if not (saga and shuffled and direct):
        return []
    start = f"{label(control)}: {shuffled.text()} to {label(base)}; {comparison_label('saga_pf', control)}: {direct.text()}"
    gains, beaten = saga.above(), direct.above()
    if not gains:
        return [f"{start}: no claim about the reward, because SAGA (PF) is not above {label(base)} itself."]
    if set(gains) <= set(beaten):
        verdict = "the gain is the reward's, unless SAGA's learning rate alone gains it (Table 2)"
    elif any(side < 0 for name, side in direct.sides() if name in gains):
        verdict = "the true reward does worse than a shuffled one, so the gain is not the reward's"
    elif set(gains) & set(beaten):
        verdict = f"the gain is the reward's by {', '.join(one for one in gains if one in beaten)} only"
    elif shuffled.above():
        verdict = "the control gains as well and is not distinguishable from SAGA, so no gain can be credited to the reward"
    else:
        verdict = "SAGA gains and its control alone does not, but the two are not distinguishable; this stays open"
    return [f"{start}: {verdict} (SAGA is above {label(base)} by {' and '.join(gains)})."]


def _about_room(found: Mapping[tuple[str, str], Found], oracle: str, base: str) -> list[str]:
    """Return what the true attributes, in place of rollouts, gain by the same path: room for a reward about them."""
    if not (one := found.get((oracle, base))):
        return []
    sides, told = [side for _, side in one.sides()], "training with the true attributes in place of rollouts"
    if any(side > 0 for side in sides):
        first = f"Room by {' and '.join(one.above())}: {told} gains {one.text()} on {label(base)}."
    elif any(side < 0 for side in sides):
        first = f"No room: even {told} does worse than {label(base)} ({one.text()})"
        first += "; no reward about them can be expected to gain."
    else:
        first = f"No sign of room: {told} is not distinguishable from {label(base)} ({one.text()})"
        first += "; a reward cannot be judged by this."
    wrong, direct = found.get(("oracle_wrong", base)), found.get((oracle, "oracle_wrong"))
    if not (wrong and direct):
        return [first]
    said = "truth and falsehood are not distinguishable"
    if above := direct.above():
        said = f"the truth matters, by {' and '.join(above)}"
    elif any(side < 0 for _, side in direct.sides()):
        said = "the truth does worse than falsehood"
    return [first, f"Given another class's attributes: {wrong.text()}; oracle − wrong {direct.text()}: {said}."]
