"""Signals from the frozen model beside the verdict: what each adds to the metric loss, which share of the oracle's room, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.findings.differences import DIFFERENCES, cell_table, differences
from saga_study.findings.rooms import NO_ROOM, SCORES, percent, points_between, shares_of_room
from saga_study.findings.samples import POOLED
from saga_study.findings.tables_2_to_5 import remarks
from saga_study.findings.words import NOTHING, SIDES, Interval, label, measured, points, short_name, signed

NOTEBOOK = "20_signals"
ALONE, ROLLOUTS, READINGS, DISTILLED, CONTROLS, REFERENCE = (
    "metric loss alone", "rollouts", "readings", "distilled", "controls", "reference (knows the truth)"
)  # fmt: skip
GROUPS = {
    ALONE: ("pf", "pf_anchor"),
    ROLLOUTS: ("saga_pf", "pf_grpo", "grpo_without_sigma", "grpo_answer_mean", "grpo_right", "grpo_wrong"),
    READINGS: (
        "contrast_pf", "contrast_own", "contrast_grpo", "reading_verdict", "reading_agreement", "reading_consensus", "reading_views",
    ),
    DISTILLED: ("distilled_readings",),
    CONTROLS: ("saga_shuffled", "saga_shuffled_in_group", "contrast_permuted", "contrast_labels", "contrast_head"),
    REFERENCE: ("oracle", "distilled_truth"),
}  # fmt: skip
LABEL_FREE = (ROLLOUTS, READINGS, DISTILLED)  # groups that know classes, but no attribute's truth
SAGA, CONTRAST, ORACLE = "saga_pf", "contrast_pf", "oracle"
CONTRAST_CONTROLS = {  # what collapses if the signal is what the frozen model knows
    "contrast_permuted": "the model's weights permuted", "contrast_labels": "class labels shuffled",
    "contrast_head": "a trained head in the model's place",
}  # fmt: skip
OWN_ANSWER = "contrast_own"
PAIRS = {
    (CONTRAST, SAGA): "reading contrast − SAGA",
    (CONTRAST, "contrast_permuted"): "reading contrast − permuted model",
    (CONTRAST, "contrast_labels"): "reading contrast − shuffled labels",
    (CONTRAST, "contrast_head"): "reading contrast − trained head",
    (CONTRAST, OWN_ANSWER): "reading contrast − own descriptions",
    (SAGA, "saga_shuffled_in_group"): "SAGA − advantages shuffled in groups",
    (SAGA, "saga_shuffled"): "SAGA − shuffled advantages",
    **{(method, SAGA): f"{label(method)} − SAGA" for group in LABEL_FREE for method in GROUPS[group] if method not in (SAGA, CONTRAST)},
}  # fmt: skip
LAPS = ("seconds_a", "seconds_b", "seconds_c")  # of a step; the audit is no part of a method
EXTRAS = ("group", *SCORES, *(f"{name} share" for name in SCORES), "seconds per step", "MAP@R per minute", "ratio median", "token drift")
DIFFERS = (
    "How reading contrast differs from the paper's method: it samples no answers and draws no pairs, and its loss is no verdict on two "
    "images but InfoNCE with class labels over a batch, in the space of what the frozen model reads from each image by itself. Only the "
    "frozen model, and the gradient through it into the image's tokens, are SAGA's."
)


def group_of(method: str) -> str:
    """Return the heading of `GROUPS` that a method stands under; one that has none is a row of metric learning."""
    return next((name for name, methods in GROUPS.items() if method in methods), ALONE)


# ----------------------------------------------------------------------------------------------------- numbers


def step_seconds(run: Run) -> float:
    """Return the median seconds of a training step, audits left out; NaN for a run without training."""
    steps = run.metrics
    if laps := [name for name in LAPS if name in steps]:
        return float(steps[laps].sum(axis=1).median())
    return float(steps["seconds"].diff().median()) if "seconds" in steps else float("nan")


def scored(cells: Sequence[Cell], pairs: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Return `differences` of pairs of methods, in points of R@1, with columns `MAP@R difference` (`low`, `high`) beside."""
    table, runs = differences(cells, pairs), _runs(cells)
    found = []
    for row in table.itertuples():
        places = list(runs) if row.benchmark == POOLED else [row.benchmark]
        sides = [(runs[place][row.method], runs[place][row.against]) for place in places if {row.method, row.against} <= set(runs[place])]
        found.append(points_between(sides, "MAP@R").columns("MAP@R difference"))
    columns = list(Interval().columns("MAP@R difference"))
    return pd.concat([table, pd.DataFrame(found, columns=columns, index=table.index)], axis=1)


def _runs(cells: Sequence[Cell]) -> dict[str, dict[str, Sequence[Run]]]:
    """Return the runs there are by benchmark and method."""
    runs: dict[str, dict[str, Sequence[Run]]] = {cell.config.dataset: {} for cell in cells}
    for cell in cells:
        if cell.runs:
            runs[cell.config.dataset][cell.config.method] = cell.runs
    return runs


def signal_table(cells: Sequence[Cell], base: str) -> pd.DataFrame:
    """Return a row per method and benchmark, and one for all (`POOLED`) where several have it: what it adds to `base`, and its cost.

    Columns: those of `scored`, against `base` (its own rows have no difference), and `EXTRAS`: group, R@1 and MAP@R (%, mean over
    seeds; `std`), their shares of the oracle's room (`low`, `high`; NaN without room), median seconds of a step, points of MAP@R gained
    per minute of training, median gradient ratio, drift of tokens. A row without runs says why in `absent`.
    """
    values = cell_table(cells, NOTEBOOK)
    listed = list(dict.fromkeys(values["method"])) if len(values) else []
    ordered = [m for group in GROUPS.values() for m in group if m in listed]
    ordered += [m for m in listed if m not in ordered]
    against = scored(cells, {(method, base): label(method) for method in ordered if method != base})
    found = {(row["method"], row["benchmark"]): row for row in against.to_dict("records")}
    own = {(row["method"], row["dataset"]): row for row in values.to_dict("records")}
    shares, runs = _shares(cells, base), _runs(cells)
    places = [*runs, *([POOLED] if len(runs) > 1 else [])]
    rows = []
    for method in ordered:
        for place in places:
            if place != POOLED and (method, place) not in own:
                continue
            sides = list(runs) if place == POOLED else [place]
            has = [name for name in sides if method in runs[name] and base in runs[name]] if place == POOLED else sides
            if place == POOLED and len(has) < 2:
                continue
            row = found.get((method, place)) or _undiffered(method, base, [own[method, name] for name in has], place)
            row |= {"group": group_of(method)} | _measured([own[method, name] for name in has])
            for name in SCORES:
                row |= shares.get((method, place, name), Interval()).columns(f"{name} share")
            rows.append(row | _cost([runs[name].get(method, ()) for name in has], row["MAP@R difference"]))
    return pd.DataFrame(rows, columns=None if rows else [*DIFFERENCES, *Interval().columns("MAP@R difference"), *EXTRAS])


def _undiffered(method: str, base: str, values: Sequence[Mapping], place: str) -> dict[str, object]:
    """Return a row that is compared with nothing: the base's own, or any where the base is not listed."""
    row = dict.fromkeys(DIFFERENCES, float("nan")) | Interval().columns("MAP@R difference")
    row |= {"label": label(method), "method": method, "against": base, "benchmark": place, "embedding_dim": values[0]["embedding_dim"]}
    return row | {"seeds": min(value["seeds"] for value in values), "absent": values[0]["absent"]}


def _measured(values: Sequence[Mapping]) -> dict[str, float]:
    """Return means over benchmarks of what is measured of each; of several there is no deviation over seeds."""
    row = {name: float(np.mean([value[name] for value in values])) for name in (*SCORES, "ratio median", "token drift")}
    return row | {f"{name} std": values[0][f"{name} std"] if len(values) == 1 else float("nan") for name in SCORES}


def _cost(groups: Sequence[Sequence[Run]], gain: float) -> dict[str, float]:
    """Return median seconds of a step and what a minute of training gains, means over benchmarks."""
    if not groups or not all(groups):
        return {"seconds per step": float("nan"), "MAP@R per minute": float("nan")}
    seconds = [float(np.mean([step_seconds(run) for run in runs])) for runs in groups]
    minutes = np.mean([one * len(runs[0].metrics) / 60 for one, runs in zip(seconds, groups, strict=True)])
    return {"seconds per step": float(np.mean(seconds)), "MAP@R per minute": gain / float(minutes) if minutes > 0 else float("nan")}


def _shares(cells: Sequence[Cell], base: str) -> dict[tuple[str, str, str], Interval]:
    """Return shares of the oracle's room by method, benchmark (or `POOLED`) and score."""
    runs, found = _runs(cells), {}
    with_room = {name: own for name, own in runs.items() if {base, ORACLE} <= set(own)}
    groups = {name: {name: own} for name, own in with_room.items()} | ({POOLED: with_room} if len(with_room) > 1 else {})
    for place, members in groups.items():
        methods = [m for m in next(iter(members.values())) if m != base and all(m in own for own in members.values())]
        for score in SCORES:
            for method, share in shares_of_room(members, methods, base, ORACLE, score).items():
                found[method, place, score] = share
    return found


# ------------------------------------------------------------------------------------------------------- texts


def main_place(table: pd.DataFrame) -> str:
    """Return the benchmark that a table is summed up by: all of them together, or else the first that has a difference, or any."""
    known = table.dropna(subset="difference")
    if (known["benchmark"] == POOLED).any():
        return POOLED
    return str(next(iter([*known["benchmark"], *table["benchmark"]]), ""))


def named(place: str) -> str:
    """Return a benchmark as texts name it."""
    return "all benchmarks" if place == POOLED else short_name(place)


def places(table: pd.DataFrame) -> dict[str, str]:
    """Return the benchmarks of a table by short keys for file names: all of them together is "all"."""
    return {"all" if name == POOLED else name: name for name in dict.fromkeys(table["benchmark"])}


def _share_text(row: Mapping, score: str, has_oracle: bool) -> str:
    share = Interval.of(row, f"{score} share")
    lacks_room = has_oracle and not row["absent"] and row["difference"] == row["difference"] and share.difference != share.difference
    return NO_ROOM if lacks_room else percent(share)


def display_signals(table: pd.DataFrame, profile: str, base: str, place: str = "") -> pd.DataFrame:
    """Return a row per signal as text, on one benchmark or all (default: `main_place`), in the order of `GROUPS`."""
    place, ours = place or main_place(table), f"ours ({profile})"
    own = table[table["benchmark"] == place]
    has_oracle = bool(own.loc[own["method"] == ORACLE, "difference"].notna().any())
    rows = []
    for row in own.to_dict("records"):
        text = {"kind": row["group"], "signal": row["label"]}
        for name in SCORES:
            text[f"{name} % (seeds) {ours}"] = measured(row, name)
            change = Interval.of(row, "difference" if name == "R@1" else "MAP@R difference")
            text[f"{name} − {label(base)} in points [95 %]"] = change.text()
            text[f"share of the oracle's room, {name} [95 %]"] = _share_text(row, name, has_oracle)
        text["seconds per step"] = _number(row["seconds per step"], ".3g")
        text["points of MAP@R per minute of training"] = _number(row["MAP@R per minute"], "+.2f")
        text["|g_signal| / |g_DML|, median"] = _number(row["ratio median"], ".2g")
        rows.append(text | {"drift of tokens": _number(row["token drift"], ".3f")})
    return pd.DataFrame(rows if rows else [{"signal": "no runs"}])


def _number(value: float, form: str) -> str:
    return NOTHING if value != value else signed(value, form)


def display_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Return pairs as text: a row per pair, per benchmark points of R@1 and MAP@R [95 %], or why there are none."""
    rows = []
    for name, group in table.groupby("label", sort=False):
        row = {"difference": name}
        for one in group.to_dict("records"):
            place = named(one["benchmark"])
            row[f"R@1, points [95 %] {place}"] = one["absent"] or points(one)
            row[f"MAP@R, points [95 %] {place}"] = Interval.of(one, "MAP@R difference").text()
        rows.append(row)
    return pd.DataFrame(rows if rows else [{"difference": "no pair"}]).fillna(NOTHING)


def signal_sentences(table: pd.DataFrame, pairs: pd.DataFrame, base: str) -> list[str]:
    """Return what the tables of `signal_table` and of `scored` (`PAIRS`) say, read off the intervals of `main_place`."""
    place = main_place(table)
    rows = {row["method"]: row for row in table[table["benchmark"] == place].to_dict("records") if row["difference"] == row["difference"]}
    if not rows:
        return [f"Nothing is compared with {label(base)} yet.", DIFFERS]
    beside = {(row["method"], row["against"]): row for row in pairs[pairs["benchmark"] == place].to_dict("records")}
    said = [*_gains(rows, base, named(place)), *_best(rows), *_about_saga(rows, beside)]
    return [*said, DIFFERS, *_about_contrast(rows, beside, base), *remarks(table[table["method"] != base])]


def _side(row: Mapping, score: str) -> int | None:
    return Interval.of(row, "difference" if score == "R@1" else "MAP@R difference").side()


def _both(row: Mapping) -> str:
    """Return a row's two differences, such as "+1.0 [+0.2, +1.8] R@1, +3.0 [+1.9, +4.1] MAP@R"."""
    return f"{points(row)} R@1, {Interval.of(row, 'MAP@R difference').text()} MAP@R"


def _gains(rows: Mapping[str, Mapping], base: str, where: str) -> list[str]:
    said = []
    for group in GROUPS:
        own = {m: row for m, row in rows.items() if row["group"] == group and m != base}
        for score in SCORES if own else ():
            sides = {side: [row["label"] for row in own.values() if _side(row, score) == side] for side in (1, 0, -1)}
            parts = [f"{_upper(SIDES[side])} it: {'; '.join(names)}." for side, names in sides.items() if names]
            if parts:
                said.append(f"{_upper(group)}, {score} against {label(base)} on {where}. {' '.join(parts)}")
    return said


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _best(rows: Mapping[str, Mapping]) -> list[str]:
    free = [row for row in rows.values() if row["group"] in LABEL_FREE and row["MAP@R difference"] == row["MAP@R difference"]]
    if not free:
        return []
    best = max(free, key=lambda row: row["MAP@R difference"])
    share, cost = Interval.of(best, "MAP@R share"), best["seconds per step"]
    of_room = f"; {percent(share)} of the oracle's room of MAP@R" if share.difference == share.difference else ""
    side = _side(best, "MAP@R")
    said = [f"Of {len(free)} signals without attribute labels, {best['label']} has the largest difference of MAP@R"
            + (f", {SIDES[side]} 0" if side is not None else "") + f": {_both(best)}{of_room}"
            + (f"; {cost:.3g} s a step" if cost == cost else "") + ". Being the largest of several flatters it."]  # fmt: skip
    if ORACLE in rows and all(rows[ORACLE][f"{score} share"] != rows[ORACLE][f"{score} share"] for score in SCORES):
        said.append(f"The oracle itself is not above the base ({_both(rows[ORACLE])}): no signal can be judged by its room here.")
    return said


def _about_saga(rows: Mapping[str, Mapping], beside: Mapping[tuple[str, str], Mapping]) -> list[str]:
    said = []
    if saga := rows.get(SAGA):
        share, cost = Interval.of(saga, "MAP@R share"), saga["seconds per step"]
        of_room = f"; of the oracle's room of MAP@R {percent(share)}" if share.difference == share.difference else ""
        said.append(f"{saga['label']}: {_both(saga)}{of_room}" + (f"; {cost:.3g} s a step." if cost == cost else "."))
    known = {m: row for (m, against), row in beside.items() if against == SAGA and row["difference"] == row["difference"]}
    variants = {m: row for m, row in known.items() if m in GROUPS[ROLLOUTS]}
    if variants:
        apart = [f"{label(m)} {_both(row)}" for m, row in variants.items() if any(_side(row, score) for score in SCORES)]
        told = f"told apart from it: {'; '.join(apart)}" if apart else "none is told apart from it"
        said.append(f"Variants of GRPO against SAGA ({len(variants)}): {told}.")
    return said


def _about_contrast(rows: Mapping[str, Mapping], beside: Mapping[tuple[str, str], Mapping], base: str) -> list[str]:
    """Return whether reading contrast gains, beats SAGA, and whether its controls collapse."""
    if not (contrast := rows.get(CONTRAST)):
        return []
    gains = [score for score in SCORES if _side(contrast, score) == 1]
    ending = "." if gains else "; not told from 0, so that its controls say nothing."
    said = [f"Reading contrast against {label(base)}: {_both(contrast)}{ending}"]
    if (row := beside.get((CONTRAST, SAGA))) and row["difference"] == row["difference"]:
        said.append(f"Reading contrast − SAGA: {_both(row)}; {_verdict(row, 'SAGA')}.")
    for control, what in CONTRAST_CONTROLS.items():
        own, direct = rows.get(control), beside.get((CONTRAST, control))
        if own and direct and gains:
            verdict = _collapse(own, direct, gains)
            said.append(f"With {what}: {_both(own)} to {label(base)}; reading contrast − it {_both(direct)}: {verdict}.")
    if (row := beside.get((CONTRAST, OWN_ANSWER))) and row["difference"] == row["difference"]:
        said.append(f"One answer for all images − each image's own description: {_both(row)}; {_verdict(row, 'own descriptions')}.")
    return said


def _verdict(row: Mapping, other: str) -> str:
    return ", ".join(f"{SIDES[side]} {other} in {score}" for score in SCORES if (side := _side(row, score)) is not None)


def _collapse(own: Mapping, direct: Mapping, gains: Sequence[str]) -> str:
    """Return what a control does to the gain, by each score that reading contrast gains in."""
    parts = []
    for score in gains:
        left, lost = _side(own, score), _side(direct, score)
        if left == 1:
            verdict = "keeps a part of the gain" if lost == 1 else "keeps the gain"
        elif lost == 1:
            verdict = "collapses, and harms" if left == -1 else "collapses"
        else:
            verdict = "is told apart neither from the base nor from reading contrast"
        parts.append(f"{score} {verdict}")
    return ", ".join(parts)
