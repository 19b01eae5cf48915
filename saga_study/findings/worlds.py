"""The map: in which miniature worlds a signal from the frozen model helps, and by what one can tell before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.design import trials
from saga_study.design.expectations import ORIGIN, READING_LEAD, START_SAME_CLASS, is_promising
from saga_study.design.trials import check_validation
from saga_study.findings.gates import KINDS, first_verdicts
from saga_study.findings.rooms import NO_ROOM, SCORES, percent, points_between, seeds_in_common, shares_of_room
from saga_study.findings.samples import fewest_seeds, group_runs, mean_metric
from saga_study.findings.words import NOTHING, Interval, label, seed_remark, short_name, signed
from saga_study.methods import Profile
from saga_study.miniature.world import benchmark_spec, is_miniature

SIGNALS = ("SAGA", "reading contrast")
FIELDS = ("train_classes", "train_family_size", "nuisance", "shift", "habitat")  # of a world, in the table for machines
PREDICTORS = {  # columns of `world_table` that are known before training
    "same-class at start": "same-class verdicts right at the start", "reading accuracy": "accuracy of readings",
    "reading lead": "R@1 by reading − R@1 of the embedding",
}  # fmt: skip
MIN_WORLDS = 4  # fewer have no rank correlation worth a number
HOW_TO_GET_IT = "not in this study: its runs belong to --full, go on with it by ./run_all.sh --resume STUDY --full"


def map_methods(profile: Profile | str) -> dict[str, str]:
    """Return the methods of the map by their part: before, base, oracle and each of `SIGNALS`, as `trials.map_runs` has them."""
    return dict(zip(("before", "base", "oracle", *SIGNALS), trials.map_methods(profile), strict=True))


def world_name(dataset: str) -> str:
    """Return a world by the fields in which it differs from its benchmark.

    >>> world_name("miniature_birds+nuisance=0.3+shift=0.6")
    'birds, nuisance 0.3, shift 0.6'
    """
    base, *changes = dataset.split("+")
    return ", ".join([short_name(base), *(change.replace("_", " ").replace("=", " ") for change in changes)])


def world_table(runs: Sequence[Run], profile: Profile | str) -> pd.DataFrame:
    """Return a row per world of the runs of `trials.map_runs`; what no run measured is NaN. Raises `SagaError` for runs on test classes.

    Columns: world, dataset, `FIELDS`, seeds; of the pre-trained tower R@1, MAP@R, reading R@1 (%), reading accuracy, consensus (0-1,
    means over attributes), reading lead (points); same-class and different-class at start (0-1, over SAGA's first steps); of the
    base R@1 and MAP@R (%); and for R@1 and MAP@R, in points with `low` and `high`: room (oracle − base), and of each of `SIGNALS`
    difference (to the base) and share (of the room, 0-1, NaN without room).
    """
    check_validation(runs)
    parts = map_methods(profile)
    rows = []
    for dataset, of_method in group_runs(runs).items():
        found = {part: of_method.get(method, []) for part, method in parts.items()}
        spec = benchmark_spec(dataset) if is_miniature(dataset) else None
        trained = [found[part] for part in ("base", "oracle", *SIGNALS) if found[part]]
        row = {"world": world_name(dataset), "dataset": dataset, "seeds": fewest_seeds(trained) if trained else 0}
        row |= {name: getattr(spec, name, float("nan")) for name in FIELDS}
        row |= _before(found["before"]) | _start(found[SIGNALS[0]])
        row |= {f"base {name}": mean_metric(found["base"], name) if found["base"] else float("nan") for name in SCORES}
        rows.append(row | _differences(dataset, found))
    return pd.DataFrame(rows)


def _before(runs: Sequence[Run]) -> dict[str, float]:
    """Return what the pre-trained tower retrieves, by its embedding and by what the frozen model reads."""
    row = {f"pre-trained {name}": mean_metric(runs, name) if runs else float("nan") for name in SCORES}
    read = [run.evaluation["reading"] for run in runs if "reading" in run.evaluation]
    by_reading = 100 * float(np.mean([one["recall"]["1"] for one in read])) if read else float("nan")

    def mean(name: str) -> float:
        shares = [share for one in read for share in one.get(name, {}).values()]
        return float(np.mean(shares)) if shares else float("nan")

    row |= {"reading R@1": by_reading, "reading accuracy": mean("accuracy"), "consensus": mean("consensus")}
    return row | {"reading lead": by_reading - row["pre-trained R@1"]}


def _start(runs: Sequence[Run]) -> dict[str, float]:
    """Return how often SAGA's first verdicts were right (0-1, `gates.first_verdicts`), means over seeds."""
    firsts = [first_verdicts(run) for run in runs]
    return {f"{kind} at start": float(np.mean([one[kind] for one in firsts])) / 100 if firsts else float("nan") for kind in KINDS}


def _differences(dataset: str, found: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """Return the room and what each signal adds and collects, as columns with intervals."""
    row, base = {}, found["base"]
    has_room = bool(base and found["oracle"] and all(seeds_in_common(base, found["oracle"])))
    for name in SCORES:
        row |= points_between([(found["oracle"], base)], name).columns(f"{name} room")
        signals = [part for part in SIGNALS if found[part]]
        for part in SIGNALS:
            row |= points_between([(found[part], base)], name).columns(f"{part} {name} difference")
            row |= Interval().columns(f"{part} {name} share")
        if has_room and signals:
            shares = shares_of_room({dataset: dict(found)}, signals, "base", "oracle", name)
            for part, share in shares.items():
                row |= share.columns(f"{part} {name} share")
    return row


def display_worlds(table: pd.DataFrame, profile: Profile | str) -> pd.DataFrame:
    """Return the map as text, worlds in the order of their starting same-class verdicts; all on validation classes."""
    base, rows = label(map_methods(profile)["base"]), []
    for row in table.sort_values("same-class at start", kind="stable").to_dict("records"):
        text = {"world": row["world"], "seeds": str(row["seeds"])}
        text["pre-trained, R@1 / MAP@R (%)"] = _pair(row, "pre-trained R@1", "pre-trained MAP@R")
        text["R@1 by reading (%)"] = _text(row["reading R@1"], ".1f")
        text["attributes read right (%)"] = _text(100 * row["reading accuracy"], ".0f")
        text["consensus (%)"] = _text(100 * row["consensus"], ".0f")
        text["verdicts right at start, same / different class (%)"] = _pair(
            {name: 100 * row[name] for name in ("same-class at start", "different-class at start")},
            "same-class at start", "different-class at start", ".0f",
        )  # fmt: skip
        text[f"{base}, R@1 / MAP@R (%)"] = _pair(row, "base R@1", "base MAP@R")
        for name in SCORES:
            text[f"room, {name} points [95 %]"] = Interval.of(row, f"{name} room").text()
        for part in SIGNALS:
            for name in SCORES:
                text[f"{part} − base, {name} points [95 %]"] = Interval.of(row, f"{part} {name} difference").text()
            text[f"{part}, share of the room of MAP@R"] = _share(row, part)
        rows.append(text)
    return pd.DataFrame(rows)


def _text(value: float, form: str) -> str:
    return NOTHING if value != value else format(value, form)


def _pair(row: Mapping[str, float], one: str, other: str, form: str = ".1f") -> str:
    return f"{_text(row[one], form)} / {_text(row[other], form)}"


def _share(row: Mapping, part: str, name: str = "MAP@R") -> str:
    room, share = Interval.of(row, f"{name} room"), Interval.of(row, f"{part} {name} share")
    return NO_ROOM if share.difference != share.difference and room.side() in (0, -1) else percent(share)


# -------------------------------------------------------------------------------------------------------- the rule


def rank_correlation(x: Sequence[float], y: Sequence[float], samples: int = 10000) -> tuple[float, float]:
    """Return Spearman's ρ and its two-sided p by random permutations; NaN for fewer than `MIN_WORLDS` values or equal ones."""
    from scipy.stats import rankdata, zscore

    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < MIN_WORLDS or not (np.ptp(x) and np.ptp(y)):
        return float("nan"), float("nan")
    a, b = zscore(rankdata(x)), zscore(rankdata(y))
    rho = float(a @ b) / len(a)
    shuffled = np.random.default_rng(0).permuted(np.tile(a, (samples, 1)), axis=1) @ b / len(a)
    return rho, float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (samples + 1))


def rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how what is known before training ranks worlds with room by the share of MAP@R's room that each signal collects.

    Columns: signal, predictor (a key of `PREDICTORS`), rho, p, worlds (with room and both numbers).
    """
    rows = []
    for part in SIGNALS:
        for predictor in PREDICTORS:
            both = table[[predictor, f"{part} MAP@R share"]].dropna() if len(table) else pd.DataFrame(columns=["x", "y"])
            rho, p = rank_correlation(both.iloc[:, 0], both.iloc[:, 1])
            rows.append({"signal": part, "predictor": predictor, "rho": rho, "p": p, "worlds": len(both)})
    return pd.DataFrame(rows)


def display_rule(rule: pd.DataFrame) -> pd.DataFrame:
    """Return `rule_table` as text."""
    return pd.DataFrame([
        {"signal": row.signal, "known before training": PREDICTORS[row.predictor], "worlds with room": str(row.worlds),
         "Spearman's ρ with the share it collects": NOTHING if row.rho != row.rho else signed(row.rho, "+.2f"),
         "permutations": NOTHING if row.p != row.p else _p_value(row.p)}
        for row in rule.itertuples()
    ])  # fmt: skip


def best_threshold(table: pd.DataFrame, part: str, predictor: str = "same-class at start") -> dict[str, float] | None:
    """Return the value of a predictor that parts worlds with room best by the share that a signal collects; None for too few worlds.

    Of the middles between neighbouring values with at least two worlds on either side, the one with the largest difference of means.
    Keys: threshold, below, above (mean shares, 0-1), worlds below, worlds above.
    """
    known = table[[predictor, f"{part} MAP@R share"]].dropna().sort_values(predictor).to_numpy()
    cuts = [cut for cut in range(2, len(known) - 1) if known[cut - 1, 0] < known[cut, 0]]
    if not cuts:
        return None
    cut = max(cuts, key=lambda cut: known[cut:, 1].mean() - known[:cut, 1].mean())
    below, above = known[:cut, 1], known[cut:, 1]
    middle = float(known[cut - 1 : cut + 1, 0].mean())
    return {"threshold": middle, "below": below.mean(), "above": above.mean(), "worlds below": len(below), "worlds above": len(above)}


def world_sentences(table: pd.DataFrame, rule: pd.DataFrame) -> list[str]:
    """Return what the map says: how many worlds have room, where each signal gains, the rule and its threshold, and where it fails."""
    if table.empty:
        return [f"No map: {HOW_TO_GET_IT}."]
    rooms = [Interval.of(row, "MAP@R room").side() for row in table.to_dict("records")]
    said = [f"{len(table)} worlds, on validation classes. The oracle is above the base in MAP@R in {rooms.count(1)} of them"
            + _names(table[[side != 1 for side in rooms]], "; no room is seen in ") + "."]  # fmt: skip
    for part in SIGNALS:
        said += _about_signal(table, part)
    both = table[[f"{part} MAP@R share" for part in SIGNALS]].dropna()
    if len(both):
        more = int((both.iloc[:, 1] > both.iloc[:, 0]).sum())
        said.append(f"Reading contrast collects a larger share of the room of MAP@R than SAGA in {more} of {len(both)} worlds.")
    for row in rule.itertuples():
        if row.rho == row.rho:
            told = "beyond chance" if row.p < 0.05 else "not told from chance"
            said.append(f"Share of {row.signal} against {PREDICTORS[row.predictor]}: Spearman's ρ {signed(row.rho, '+.2f')} over "
                        f"{row.worlds} worlds, {told} ({_p_value(row.p)}).")  # fmt: skip
    if found := best_threshold(table, SIGNALS[0]):
        said.append(
            f"The threshold that parts worlds best, chosen on these same worlds: with fewer than {100 * found['threshold']:.0f} % of "
            f"same-class verdicts right at the start SAGA collects {_mean(found['below'])} on average ({found['worlds below']} worlds), "
            f"with more {_mean(found['above'])} ({found['worlds above']} worlds)."
        )
    return [*said, *_about_expectation(table), seed_remark(table["seeds"]) if table["seeds"].any() else "No world has a trained run."]


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _mean(share: float) -> str:
    return f"{signed(100 * share, '.0f')} % of the room"


def _names(rows: pd.DataFrame, before: str) -> str:
    return before + "; ".join(rows["world"]) if len(rows) else ""


def _about_signal(table: pd.DataFrame, part: str) -> list[str]:
    """Return where a signal is above the base and where below, and the range of its shares."""
    sides = pd.Series([Interval.of(row, f"{part} MAP@R difference").side() for row in table.to_dict("records")], index=table.index)
    if not sides.notna().any():
        return []
    shares = table[f"{part} MAP@R share"].dropna()
    text = f"{part[:1].upper()}{part[1:]} is above the base in MAP@R in {int((sides == 1).sum())} of {int(sides.notna().sum())} worlds"
    text += _names(table[sides == -1], ", below it in ") + _names(table[sides == 0], ", not told from it in ")
    if len(shares):
        text += f". Where there is room, it collects {percent(Interval(shares.min()))} to {percent(Interval(shares.max()))} of it"
        text += f", half of the worlds more than {percent(Interval(shares.median()))}"
    return [text + "."]


def _about_expectation(table: pd.DataFrame) -> list[str]:
    """Return what notebook 14's rule would have said of these worlds, and what SAGA collected there."""
    known = table.dropna(subset=["same-class at start", "SAGA MAP@R share"])
    if known.empty:
        return []
    hopeful = np.array([is_promising(row["same-class at start"], row["reading lead"]) for row in known.to_dict("records")])
    shares = known["SAGA MAP@R share"].to_numpy()
    rule = (
        f"same-class verdicts right in {100 * START_SAME_CLASS:.0f} % and R@1 by reading at most {-READING_LEAD:.0f} points below the "
        "embedding's"
    )
    parts = [f"{kind} it, {int(mask.sum())} worlds: {_mean(shares[mask].mean())} on average"
             for kind, mask in (("meeting", hopeful), ("not meeting", ~hopeful)) if mask.any()]  # fmt: skip
    verdict = ""
    if len(parts) == 2:
        verdict = " The map agrees with it" if shares[hopeful].mean() > shares[~hopeful].mean() else " The map contradicts it"
        wrong = known[(hopeful & (shares <= 0)) | (~hopeful & (shares > 0))]
        verdict += _names(wrong, ", with exceptions (a share on the other side of 0): ") + "."
    return [f"Notebook 14 expects a gain of SAGA from {rule} ({ORIGIN}). {'; '.join(parts).capitalize()}.{verdict}"]
