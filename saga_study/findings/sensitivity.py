"""How R@1 on validation classes depends on the number of steps and on single settings."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.design.trials import LENGTHS, SENSITIVITY, SETTING_LABELS, check_validation, varied_config
from saga_study.findings.samples import mean_metric, metric, paired_points
from saga_study.findings.words import NOTHING, Interval, label, points, seed_remark, seeds_in_words, shown_value, signed
from saga_study.methods import Profile, baseline_of, make_config

WITHOUT = "without SAGA"  # setting: the row of what SAGA is added to, by its label

# ----------------------------------------------------------------------------------------------- the lengths


def length_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per dataset, method and number of steps, in the order of `length_runs`, compared with what SAGA on PF is added to.

    Columns: dataset, method, steps, base (the method that others are compared with, `baseline_of` PF), seeds, R@1 (%, mean over seeds),
    spread (its standard deviation), best (of the method's lengths on the dataset, of equal ones the shortest), gain, gain low, gain high
    (points of R@1 to the base at the same steps, 95 % interval over families and seeds), and of the best length: own gain, own gain low,
    own gain high (to the base at the length that is best for it).
    """
    check_validation(runs)
    base = baseline_of(runs[0].config.profile, "pf")
    cells: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.config.dataset, run.config.method, run.config.steps), []).append(run)
    rows = []
    for (dataset, method, steps), found in cells.items():
        recalls = pd.Series([metric(run, "R@1") for run in found])
        row = {"dataset": dataset, "method": method, "steps": steps, "base": base, "seeds": len(found)}
        rows.append(row | {"R@1": recalls.mean().round(6), "spread": recalls.std()})
    table = pd.DataFrame(rows)
    table["best"] = table.index.isin(table.groupby(["dataset", "method"])["R@1"].idxmax())
    table = table.assign(**Interval().columns("gain"), **Interval().columns("own gain"))
    best = {row.dataset: row.steps for row in table[table["best"] & (table["method"] == base)].itertuples()}
    for row in table[table["method"] != base].itertuples():
        for name, steps in (("gain", row.steps), ("own gain", best[row.dataset])):
            if name == "gain" or row.best:
                gain = paired_points(cells[row.dataset, row.method, row.steps], cells[row.dataset, base, steps])
                table.loc[row.Index, list(gain.columns(name))] = list(gain)
    return table


def display_lengths(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the lengths as text: R@1 (%) over steps, the best length of each method marked, and gains to the base (points)."""
    ours, rows = f"ours ({profile}), validation classes", []
    for row in table.to_dict("records"):
        base = label(row["base"])
        spread = f" ± {row['spread']:.1f}" if row["spread"] == row["spread"] else ""
        rows.append({
            "benchmark": row["dataset"], "method": label(row["method"]), "steps": row["steps"],
            f"R@1 % {ours}": f"{row['R@1']:.1f}{spread}", "": "best length" if row["best"] else "",
            f"R@1 − {base} at as many steps, points [95 %] {ours}": Interval.of(row, "gain").text(),
            f"R@1 − {base} at its best length, points [95 %] {ours}": Interval.of(row, "own gain").text(), "seeds": row["seeds"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def length_conclusions(table: pd.DataFrame, profile: Profile | str) -> list[str]:
    """Return a sentence per benchmark and method: its best length and, there and at the profile's steps, the gain to the base."""
    sentences = []
    for (dataset, method), rows in table.groupby(["dataset", "method"], sort=False):
        best, usual = rows[rows["best"]].iloc[0], make_config(profile, dataset, method, 0).steps
        text = f"{dataset}, {label(method)}: best at {best['steps']} steps, {best['R@1']:.1f} %"
        at_usual = rows[rows["steps"] == usual].iloc[0]
        if best["steps"] != usual:
            text += f" ({at_usual['R@1']:.1f} % at the profile's {usual})"
        if method != best["base"]:
            text += f"; each at its own best length {Interval.of(best, 'own gain').text()} points to {label(best['base'])}"
            text += f", both at {usual} steps {Interval.of(at_usual, 'gain').text()}"
        sentences.append(f"{text}.")
    flatters = f"a best length was chosen among {len(LENGTHS)} by the same numbers, which flatters it"
    return [*sentences, f"{seeds_in_words(table['seeds']).capitalize()}, validation classes; {flatters}."]


# ------------------------------------------------------------------------------------------- the sensitivity


def setting_labels(profile: Profile | str) -> dict[str, str]:
    """Return the names of the settings; where gradients are balanced, a weight is a ratio of gradients."""
    balanced = {"lambda_lm": "λ_lm, times the metric loss's gradient"}
    return SETTING_LABELS | (balanced if varied_config(profile).balance_gradients else {})


def sensitivity_table(cells: Sequence[Cell], profile: Profile | str) -> pd.DataFrame:
    """Return a row per setting and value, the profile's among them: what SAGA with it has, and its change; first, a row `WITHOUT`.

    Columns: setting, value, is_profile, R@1, MAP@R (%), difference, low, high (points of R@1 to the profile's setting, 95 % interval
    over queries and, of several, seeds), MAP@R difference (points, without interval), gain, gain low, gain high (points of R@1 to what
    SAGA is added to), right verdicts (% of the rollouts in training), seeds, absent, runs (keys).
    """
    found = {cell.config: cell for cell in cells}
    check_validation([run for cell in cells for run in cell.runs])
    centre = found[varied_config(profile)]
    varied = SENSITIVITY[Profile.of(profile).name]
    base = baseline_of(Profile.of(profile).name, "pf")
    baseline = next(cell for cell in cells if cell.config.method == base)
    rows = [{"setting": WITHOUT, "value": label(base), "is_profile": False} | _change(baseline, centre, baseline)]
    for name, values in varied.items():
        own = getattr(centre.config, name)
        for value in sorted({*values, own}, key=lambda value: (value == own and isinstance(value, str), value)):  # a name: last
            cell = centre if value == own else found[varied_config(profile, **{name: value})]
            rows.append({"setting": name, "value": value, "is_profile": value == own} | _change(cell, centre, baseline))
    return pd.DataFrame(rows)


def _change(cell: Cell, centre: Cell, baseline: Cell) -> dict[str, object]:
    """Return the results of a cell beside those of the profile's setting (`centre`) and without SAGA (`baseline`)."""
    names = ("R@1", "MAP@R", *Interval._fields, "MAP@R difference", *Interval().columns("gain"), "right verdicts")
    row = dict.fromkeys(names, float("nan"))
    if not cell.runs or not centre.runs:
        return row | {"seeds": 0, "absent": cell.absent or centre.absent, "runs": ""}
    row |= {name: mean_metric(cell.runs, name) for name in ("R@1", "MAP@R")} | paired_points(cell.runs, centre.runs)._asdict()
    row["MAP@R difference"] = row["MAP@R"] - mean_metric(centre.runs, "MAP@R")
    if baseline.runs and cell is not baseline:
        row |= paired_points(cell.runs, baseline.runs).columns("gain")
    right = [float(run.metrics["verdict_accuracy"].mean()) for run in cell.runs if "verdict_accuracy" in run.metrics]
    row["right verdicts"] = 100 * sum(right) / len(right) if right else float("nan")
    return row | {"seeds": len(cell.runs), "absent": "", "runs": " ".join(run.key for run in cell.runs)}


def without_saga(table: pd.DataFrame) -> str:
    """Return the label of what SAGA is added to, of a sensitivity table."""
    return table.loc[table["setting"] == WITHOUT, "value"].iloc[0]


def display_sensitivity(table: pd.DataFrame, profile: Profile | str) -> pd.DataFrame:
    """Return the sensitivity as text: setting, value, R@1 and MAP@R (%), their change and the gain of SAGA (points), right verdicts (%)."""
    ours, labels, rows = f"ours ({profile}), validation classes", setting_labels(profile), []
    for row in table.to_dict("records"):
        known, is_centre = row["seeds"] > 0, row["is_profile"]
        right = row["right verdicts"]
        rows.append({
            "setting": labels.get(row["setting"], row["setting"]),
            "value": shown_value(row["value"]) + (" (profile)" if is_centre else ""),
            f"R@1 % (seeds) {ours}": f"{row['R@1']:.1f} ({row['seeds']})" if known else row["absent"],
            f"change of R@1 in points [95 %] {ours}": NOTHING if is_centre else points(row),
            f"R@1 − {without_saga(table)} in points [95 %] {ours}": Interval.of(row, "gain").text(),
            f"MAP@R % {ours}": f"{row['MAP@R']:.1f}" if known else NOTHING,
            f"change of MAP@R in points {ours}": signed(row["MAP@R difference"]) if known and not is_centre else NOTHING,
            f"right verdicts in training % {ours}": f"{right:.0f}" if right == right else NOTHING,
        })  # fmt: skip
    return pd.DataFrame(rows)


def sensitivity_conclusions(table: pd.DataFrame, profile: Profile | str) -> list[str]:
    """Return one sentence per setting on whether R@1 changes with it, then how large the changes are beside that of leaving SAGA out."""
    varied, verdicts = table[(table["setting"] != WITHOUT) & ~table["is_profile"]], {1: "better", -1: "worse", 0: "no clear change"}
    labels, sentences = setting_labels(profile), []
    for name, rows in varied.groupby("setting", sort=False):
        change = {shown_value(row.value): row for row in rows.itertuples() if row.seeds}
        changes = "; ".join(f"{to} changes R@1 by {points(row)}, {verdicts[Interval.of(row).side()]}" for to, row in change.items())
        absent = ", ".join(f"{shown_value(row.value)} {row.absent}" for row in rows.itertuples() if not row.seeds)
        sentences.append(f"{labels.get(name, name)}: {changes or 'nothing measured'}{f' ({absent})' if absent else ''}.")
    known = varied[varied["seeds"] > 0]
    if len(known):
        clear = sum(Interval.of(row).side() != 0 for row in known.itertuples())
        lowest, highest = (signed(getattr(known["difference"], end)()) for end in ("min", "max"))
        sentences.append(f"{clear} of {len(known)} intervals exclude 0; lowest {lowest}, highest {highest} points. "
                         f"{without_saga(table)} without SAGA: {points(table[table['setting'] == WITHOUT].iloc[0])}.")  # fmt: skip
        sentences += _supervisor_conclusions(table[table["seeds"] > 0], without_saga(table))  # the shipped one beside the others
        sentences.append(seed_remark(known["seeds"], where=", validation classes"))
    return sentences


def _supervisor_conclusions(known: pd.DataFrame, base: str) -> list[str]:
    """Return a sentence on what SAGA adds to its base with each supervisor, from the one that is right least often."""
    rows = known[known["setting"] == "supervisor"].dropna(subset=["gain", "right verdicts"]).sort_values("right verdicts")
    parts = [f"{row['right verdicts']:.0f} % right {Interval.of(row, 'gain').text()}" for row in rows.to_dict("records")]
    return [f"What SAGA adds to {base} as its supervisor's verdicts in training get better: {'; '.join(parts)}."] if parts else []
