"""How R@1 on validation classes depends on the number of steps and on single settings."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.design.trials import LENGTHS, SENSITIVITY, SETTING_LABELS, check_validation, varied_config
from saga_study.findings.samples import hits_of, mean_metric, metric
from saga_study.findings.words import NOTHING, seeds_in_words, shown_value, value_with_interval
from saga_study.methods import METHOD_LABELS, make_config

# ----------------------------------------------------------------------------------------------- the lengths


def length_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per dataset, method and number of steps, in the order of `length_runs`, with what SAGA and the other losses add to PF.

    Columns: dataset, method, steps, seeds, R@1 (%, mean over seeds), spread (its standard deviation), best (of the method's lengths on
    the dataset, of equal ones the shortest), gain, gain low, gain high (points of R@1 to PF at the same steps, 95 % interval over queries
    and seeds), and of the best length: own gain, own gain low, own gain high (to PF at the length that is best for PF).
    """
    check_validation(runs)
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
        table.loc[row.Index, list(_GAIN)] = list(gain_interval(found, cells[row.dataset, "pf", row.steps]).values())
        if row.best:
            table.loc[row.Index, list(own)] = list(gain_interval(found, cells[row.dataset, "pf", best[row.dataset]]).values())
    return table


def display_lengths(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the lengths as text: R@1 (%) over steps, the best length of each method marked, and gains to PF (points)."""
    ours, rows = f"ours ({profile}), validation classes", []
    for row in table.to_dict("records"):
        spread = f" ± {row['spread']:.1f}" if row["spread"] == row["spread"] else ""
        rows.append({
            "benchmark": row["dataset"], "method": METHOD_LABELS[row["method"]], "steps": row["steps"],
            f"R@1 % {ours}": f"{row['R@1']:.1f}{spread}", "": "best length" if row["best"] else "",
            f"R@1 − PF at as many steps, points [95 %] {ours}": value_with_interval(row, *_GAIN) if row["gain"] == row["gain"] else NOTHING,
            f"R@1 − PF at PF's best length, points [95 %] {ours}":
                value_with_interval(row, *(f"own {name}" for name in _GAIN)) if row["own gain"] == row["own gain"] else NOTHING,
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
            said += f"; each at its own best length {value_with_interval(best, *(f'own {name}' for name in _GAIN))} points to PF"
            said += f", both at {usual} steps {value_with_interval(at_usual, *_GAIN)}"
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
    check_validation([run for cell in cells for run in cell.runs])
    centre = found[varied_config(profile)]
    baseline = next(cell for cell in cells if cell.config.method == "pf")
    rows = [{"setting": "PF", "value": NOTHING, "is_profile": False} | _change(baseline, centre, baseline)]
    for name, values in SENSITIVITY[profile].items():
        own = getattr(centre.config, name)
        for value in sorted({*values, own}, key=lambda value: (value == own and isinstance(value, str), value)):  # a name: last
            cell = centre if value == own else found[varied_config(profile, **{name: value})]
            rows.append({"setting": name, "value": value, "is_profile": value == own} | _change(cell, centre, baseline))
    return pd.DataFrame(rows)


def _change(cell: Cell, centre: Cell, baseline: Cell) -> dict[str, object]:
    row = dict.fromkeys(("R@1", "MAP@R", "difference", "low", "high", "MAP@R difference", *_GAIN, "right verdicts"), float("nan"))
    if not cell.runs or not centre.runs:
        return row | {"seeds": 0, "absent": cell.absent or centre.absent, "runs": ""}
    row |= {name: mean_metric(cell.runs, name) for name in ("R@1", "MAP@R")} | gain_interval(cell.runs, centre.runs)
    row["MAP@R difference"] = row["MAP@R"] - mean_metric(centre.runs, "MAP@R")
    if baseline.runs and cell is not baseline:
        row |= dict(zip(_GAIN, gain_interval(cell.runs, baseline.runs).values(), strict=True))
    right = [float(run.metrics["verdict_accuracy"].mean()) for run in cell.runs if "verdict_accuracy" in run.metrics]
    row["right verdicts"] = 100 * sum(right) / len(right) if right else float("nan")
    return row | {"seeds": len(cell.runs), "absent": "", "runs": " ".join(run.key for run in cell.runs)}

_GAIN = ("gain", "gain low", "gain high")


def gain_interval(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, float]:
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
        change = value_with_interval(row, "difference", "low", "high")
        map_told, right = f"{row['MAP@R difference']:+.1f}".replace("-", "−"), row["right verdicts"]
        rows.append({
            "setting": "PF, without SAGA" if row["setting"] == "PF" else SETTING_LABELS.get(row["setting"], row["setting"]),
            "value": shown_value(row["value"]) + (" (profile)" if is_centre else ""),
            f"R@1 % (seeds) {ours}": f"{row['R@1']:.1f} ({row['seeds']})" if known else row["absent"],
            f"change of R@1 in points [95 %] {ours}": change if known and not is_centre else NOTHING,
            f"R@1 − PF in points [95 %] {ours}": value_with_interval(row, *_GAIN) if row["gain"] == row["gain"] else NOTHING,
            f"MAP@R % {ours}": f"{row['MAP@R']:.1f}" if known else NOTHING,
            f"change of MAP@R in points {ours}": map_told if known and not is_centre else NOTHING,
            f"right verdicts in training % {ours}": f"{right:.0f}" if right == right else NOTHING,
        })  # fmt: skip
    return pd.DataFrame(rows)


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
    told = [f"{row['right verdicts']:.0f} % right {value_with_interval(row, *_GAIN)}" for row in rows]
    return [f"What SAGA adds to PF as its supervisor's verdicts in training get better: {'; '.join(told)}."] if told else []
