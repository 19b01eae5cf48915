"""What README and docs/results.md claim: their numbers are those of the committed reference study, and everything they name exists."""

import csv
import re
from dataclasses import replace
from statistics import mean, stdev
from subprocess import run

import pytest

from saga_lib.common.paths import REPOSITORY
from saga_study import planner
from saga_study.findings import answer as answer_module
from saga_study.findings import samples
from saga_study.findings.readme import FOUND_MARKS, TABLE_MARKS, found_section, results_section
from saga_study.methods import make_config
from saga_study.study.command import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RESULTS = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")


def between(text, marks):
    return text.split(marks[0])[1].split(marks[1])[0].strip()


def test_the_tables_equal_the_reference_study():
    study = re.search(r"\]\((results/[\w.-]+)\)", between(README, FOUND_MARKS)).group(1)
    assert between(README, FOUND_MARKS) == found_section(REPOSITORY / study)
    assert between(RESULTS, TABLE_MARKS) == results_section(REPOSITORY / study)
    assert (REPOSITORY / study / "figures" / "04_answer.png").is_file()


def test_the_readme_is_one_that_one_reads():
    assert len(README.splitlines()) <= 250


def test_one_number_says_how_long_the_whole_study_takes(capsys):
    assert main("--list --full --workers 2".split()) == 0
    listed = float(re.search(r"about \d+ minutes \(([\d.]+) hours\) in all", capsys.readouterr().out).group(1))
    script = (REPOSITORY / "run_all.sh").read_text(encoding="utf-8")
    told = re.search(r"run_all.sh --full .* about (\d+) hours", script).group(1), re.search(r"map of worlds: (\d+) hours", README).group(1)
    assert set(told) == {f"{listed:.0f}"}


def test_every_named_notebook_exists():
    named = re.findall(r"`(\d\d[a-z]?_\w+)`", README)
    assert len(named) >= 6
    assert not [name for name in named if not (REPOSITORY / "notebooks" / f"{name}.ipynb").is_file()]


def test_the_reference_study_is_small_and_has_no_weights():
    study = re.search(r"\]\((results/[\w.-]+)\)", between(README, FOUND_MARKS)).group(1)

    names = run(["git", "ls-files", study], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [REPOSITORY / name for name in names if name]
    assert files and not [f for f in files if f.suffix in (".safetensors", ".pt", ".bin")]
    assert sum(f.stat().st_size for f in files) <= 8e6


def test_the_committed_search_is_that_of_the_study():
    import pandas as pd

    from saga_study.findings.hyperparameters import read_log

    pd.testing.assert_frame_equal(read_log(), pd.read_csv(STUDY / "tables" / "04b_search_values.csv"), rtol=1e-6)


STUDY = REPOSITORY / re.search(r"\]\(\.\./(results/[\w.-]+)\)", RESULTS).group(1)
NOW, BEFORE = RESULTS.split(TABLE_MARKS[1])[1].split("## The first study")  # what is told of either study
FIRST = REPOSITORY / re.search(r"\]\(\.\./(results/[\w.-]+)\)", BEFORE).group(1)
NUMBER = r"[+−]\d+\.\d"


def saved(name):
    """Return the rows of a table that the study saved for machines."""
    with open(STUDY / "tables" / f"{name}_values.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_table_1_and_its_answer_are_those_of_the_run_folders():
    """Which rows and comparisons there are is read from the study's own tables, their numbers from nothing but run folders."""
    from saga_lib.common.files import read_json
    from saga_lib.config import RunConfig
    from saga_lib.records import Run
    from saga_study.methods import METHOD_LABELS

    pairs = list(dict.fromkeys((row["method"], row["against"]) for row in saved("04_answer")))
    methods = list(dict.fromkeys(name for pair in pairs for name in pair))
    order = {"miniature_birds": 5, "miniature_cars": 3, "miniature_aircraft": 5, "miniature_aves": 3}
    for name in order:
        assert {row["method"] for row in saved(f"04_table1_{name}")} == set(methods), "every row is compared with the baseline"
    runs: dict = {name: {method: [] for method in methods} for name in order}
    usual = {"supervisor": "miniature", "evaluate_on": "test", "vocabulary": ""}
    for path in sorted((STUDY / "runs").glob("*/evaluation.json")):
        config = RunConfig.from_dict(read_json(path.parent / "config.json")["config"])
        usual["embedding_dim"] = 0 if config.method == "pre-trained" else RunConfig.embedding_dim
        if config.method in methods and config.dataset in order and all(getattr(config, name) == value for name, value in usual.items()):
            runs[config.dataset][config.method].append(Run(path.parent, config))
    for name, of_one in runs.items():
        seeds = {method: sorted(run.config.seed for run in group) for method, group in of_one.items()}
        assert seeds.pop("pre-trained") == [0] and all(found == list(range(order[name])) for found in seeds.values()), name
    lines = [[cell.strip() for cell in line.split("|")] for line in RESULTS.splitlines() if re.match(r"\| \d+ \|", line)]
    rows = {cells[2]: cells for cells in lines}
    assert set(rows) == {METHOD_LABELS[method] for method in methods} and len(lines) == len(methods) >= 13
    for method in methods:
        levels = [[samples.metric(run, "R@1") for run in runs[name][method]] for name in order]
        told = [f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") for values in levels]
        assert rows[METHOD_LABELS[method]][3:7] == told, method
    answer = answer_module.display_answer(answer_module.pooled_answer(runs, pairs=pairs)).set_index("points of R@1 [95 %]")
    shown = [line for line in RESULTS.splitlines() if line.startswith("| ") and line.split("|")[1].strip() in answer.index]
    with open(STUDY / "tables" / "04_answer.csv", newline="", encoding="utf-8") as lines_of_table:
        assert len(shown) == len(list(csv.DictReader(lines_of_table))) >= 11, "all of the study's table is in the README and known here"
    for line in shown:
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2 : 3 + len(order)] == list(answer.loc[cells[1], [*order, samples.POOLED]]), cells[1]


def test_the_claims_are_those_of_the_tables_and_their_differences_those_of_the_run_folders():
    import pandas as pd

    from saga_lib.common.files import read_json
    from saga_lib.records import plain_hits
    from saga_study.findings.claim_findings import named
    from saga_study.findings.claims import CLAIMS, claims_table, compare
    from saga_study.findings.samples import POOLED

    known = pd.read_csv(STUDY / "tables" / "99_claims.csv", dtype=str, keep_default_na=False)
    today = claims_table(STUDY).astype(str).set_index("claim")
    assert len(known) >= 26 and not set(known["claim"]) - set(today.index), "a claim that the study saved is not made any more"
    told = today.loc[known["claim"]].reset_index()[list(known.columns)]  # claims that came later have no saved row
    pd.testing.assert_frame_equal(known.drop(columns="#"), told.drop(columns="#"))
    looked_at = 0
    for claim in CLAIMS:
        options = getattr(claim.find, "keywords", {})
        if getattr(claim.find, "func", None) is not compare or options.get("metric", "R@1") != "R@1":
            continue
        sides = [named(STUDY, options[name]) for name in ("method", "against")]
        for finding in claim.find(STUDY):
            levels: dict = {}
            for key in finding.runs:
                config = read_json(STUDY / "runs" / key / "config.json")["config"]
                hits = plain_hits(read_json(STUDY / "runs" / key / "evaluation.json"))
                levels.setdefault(config["dataset"], {}).setdefault(config["method"], []).append(100 * hits.count("1") / len(hits))
            assert finding.benchmark == POOLED or set(levels) == {finding.benchmark}, claim.says
            by_dataset = [mean(of[sides[0]]) - mean(of[sides[1]]) for of in levels.values()]
            difference = mean(by_dataset) * (-1 if options.get("is_turned") else 1)
            assert abs(float(finding.text.split()[0].replace("−", "-")) - difference) < 0.0501, (claim.says, finding.benchmark)
            looked_at += 1
    assert looked_at >= 8 * 5  # claims of Table 1, each over all benchmarks and on each of four


@pytest.mark.parametrize(("study", "text", "fewest"), [(STUDY, NOW, 2), (FIRST, BEFORE, 8)])
def test_every_interval_in_the_text_stands_in_a_table_of_the_study(study, text, fewest):
    known = "\n".join(path.read_text(encoding="utf-8") for path in study.glob("tables/*.md"))
    for path in study.glob("tables/04_when_values.csv"):
        with open(path, newline="", encoding="utf-8") as lines:
            cells = [[float(row[f"saga_pf {name}"]) for name in ("difference", "low", "high")] for row in csv.DictReader(lines)]
        known += "\n".join(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−") for value, low, high in cells)
    told = re.findall(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", text)
    assert len(told) >= fewest
    assert not [one for one in told if one not in known]


def test_the_gains_in_the_text_are_those_of_the_first_study():
    answer = (FIRST / "tables" / "04_answer.md").read_text(encoding="utf-8")
    gains = re.search(r"\| SAGA \(PF\) − PF \|(.*)\|", answer).group(1)
    assert "{}, {} and {} points over tuned PF".format(*re.findall(rf"({NUMBER}) \[", gains)[:3]) in BEFORE.replace("\n", " ")


def test_the_time_that_reading_contrast_takes_is_that_of_the_runs():
    def seconds(method):
        found = [row for name in ("birds", "cars", "aircraft", "aves") for row in saved(f"04_table1_miniature_{name}")]
        return mean(float(row["seconds"]) for row in found if row["method"] == method)

    assert "in a quarter to a third of SAGA's time" in " ".join(README.split())
    assert [round(seconds(f"contrast_{loss}") / seconds(f"saga_{loss}"), 2) for loss in ("pf", "infonce")] == [0.23, 0.3]


def test_the_gates_of_today_are_told_as_their_table_has_them():
    with open(STUDY / "tables" / "04b_gates_values.csv", newline="", encoding="utf-8") as lines:
        gates = list(csv.DictReader(lines))
    told = " ".join(NOW.split())
    assert [row["benchmark"] for row in gates if row["verdict"] == "admitted"] == ["miniature_aircraft"] and "is on aircraft alone" in told
    rules = ("(1) learnable", "(3) fallible verdicts", "(4) readable")
    passed = [sum(row[rule].startswith("passed") for row in gates) for rule in rules]
    assert len(gates) == 4 and passed == [4, 0, 0] and all(row["seeds"] == "3" for row in gates)

    def span(name):
        values = [float(row[name]) for row in gates]
        return min(values), max(values)

    (low, high), (least, most) = span("room R@1"), span("room MAP@R")
    assert f"the oracle is {low:.1f} to {high:.1f} points of R@1 and {least:.1f} to {most:.1f} of MAP@R above InfoNCE" in told
    (low, high), (least, most) = span("same-class verdicts"), span("contributing of one class")
    assert f"{low:.0f} to {high:.0f} % of first rollouts about one class are right, and {least:.0f} to {most:.0f} % of contributing" in told
    read = sorted({row["read"] for row in gates})
    assert f"({' or '.join(read)} of 8 attributes at 75 % or better)" in told


def test_the_search_and_the_gates_are_told_as_their_tables_have_them():
    def rows(name):
        with open(FIRST / "tables" / f"04b_{name}_values.csv", newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))

    told, names = " ".join(BEFORE.split()), {"pf": "PF", "saga_pf": "SAGA", "ms": "MS", "infonce": "InfoNCE", "pa": "PA"}
    search, chosen = rows("search"), {row["method"]: row for row in rows("search") if row["chosen"] == "True"}
    assert all(row["seeds"] == "3" for row in search) and len(search) == 6 * len(chosen) == 36
    levels = {name: float(chosen[method]["other R@1"]) for method, name in (names | {"oracle": "PF + oracle"}).items()}
    assert f"(R@1 of the chosen by the others: {', '.join(f'{name} {level:.1f}' for name, level in levels.items())})" in told
    behind = {method: -float(row["behind"]) for method, row in chosen.items() if row["best"] != "True"}
    within = f"within {max(behind.values()):.1f} points of the first for the others"
    assert len(behind) == 5 and f"first for one method of six and {within}" in told
    fall = {method: float(row["deciding R@1"]) - float(row["other R@1"]) for method, row in chosen.items()}
    assert max(fall, key=fall.get) == "saga_pf"
    pair = [float(chosen["saga_pf"][name]) for name in ("deciding R@1", "other R@1")]
    assert "flatters SAGA most, {:.1f} where the others have {:.1f} ".format(*pair) in told
    gates = rows("gates")
    room = [float(row["oracle R@1"]) - float(row["PF R@1"]) for row in gates]
    assert f"the oracle is {min(room):.1f} to {max(room):.1f} points above PF" in told
    assert len(gates) == 4 and all(row["seeds"] == row["seeds that agree"] == "3" for row in gates) and "each of three seeds admits" in told
    assert {row["verdict"] for row in gates} == {"admitted"}


def test_other_numbers_of_steps_are_told_as_the_table_has_them():
    with open(FIRST / "tables" / "04b_lengths_values.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    level = {(row["dataset"], row["method"], int(row["steps"])): float(row["R@1"]) for row in rows}
    best = {(row["dataset"], row["method"]): int(row["steps"]) for row in rows if row["best"] == "True"}
    birds = {method: steps for (dataset, method), steps in best.items() if dataset == "miniature_birds"}
    told = " ".join(BEFORE.split())
    assert [method for method, steps in birds.items() if steps == 150] == ["pf", "pa", "ms", "saga_pf"]
    assert "the 150 in use are best for PF, PA, MS and SAGA, and within" in told
    lacking = level["miniature_birds", "infonce", birds["infonce"]] - level["miniature_birds", "infonce", 150]
    assert f"within {lacking:.1f} points of the best for InfoNCE" in told
    pf, saga = ([level["miniature_aves", method, steps] for steps in (150, 300)] for method in ("pf", "saga_pf"))
    assert "({:.1f} to {:.1f} and {:.1f} to {:.1f})".format(*pf, *saga) in told
    assert best["miniature_aves", "pf"] == best["miniature_aves", "saga_pf"] == 300


def test_the_vocabularies_in_the_text_are_those_of_the_notebook():
    told = BEFORE.split("**Vocabularies**")[1].split("\n\n")[0].replace("\n", " ")
    study = REPOSITORY / re.search(r"\]\(\.\./(results/[\w.-]+)/notebooks/13", told).group(1)
    lines = (study / "tables" / "13_after_training.md").read_text(encoding="utf-8").splitlines()[2:]
    rows = {cells[2]: cells for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}
    assert set(rows) == {"hand-written", "discovered", "generic", "shuffled"} and all(row[-2] == "3" for row in rows.values())
    assert f"R@1 {rows['hand-written'][3]} with the hand-written list" in told
    for name in ("discovered", "generic", "shuffled"):
        assert rows[name][4] in told, name
    kept = re.findall(r"- name: (.+)", (study / "vocabularies" / "discovered.yaml").read_text(encoding="utf-8"))
    assert len(kept) == 5 and "the five of its eight attributes" in told


def test_what_the_paper_only_argues_is_told_as_the_tables_have_it():
    def rows(pattern, **wanted):
        for path in sorted(FIRST.glob(f"tables/{pattern}_values.csv")):
            with open(path, newline="", encoding="utf-8") as lines:
                yield from (row for row in csv.DictReader(lines) if all(row[name] == value for name, value in wanted.items()))

    told = " ".join(BEFORE.split("**What the paper argues but does not measure.**")[1].split("\n\n**")[0].split())
    groups = {"step": "all", "group": "differing / shared"}
    ratios = [float(row["value"]) for row in rows("12_audit_*", measure="gradient ratio", **groups)]
    lows = [float(row["low"]) for row in rows("12_audit_*", measure="gradient ratio", **groups)]
    assert len(ratios) == 4 and f"gets {min(ratios):.1f} to {max(ratios):.1f} times" in told
    assert sum(low > 1 for low in lows) == 3 and "told apart from 1 on three of four" in told
    surviving = [float(row["low"]) > 1 for row in rows("12_audit_*", measure="surviving ratio", **groups)]
    assert sum(surviving) == 1 and "told apart on birds alone" in told
    same = [float(row["value"]) for row in rows("12_audit_*", step="all", measure="same-class pairs", group="number")]
    assert 0.75 < min(same) < 0.85 and 0.85 < max(same) < 0.95 and "four fifths to nine tenths" in told
    maps = list(rows("09_pointing_*", layer="0", attribute=samples.ALL_ATTRIBUTES))
    spans = {name: [float(row[name]) for row in maps] for name in ("pointing", "chance", "swapped")}
    spans = {name: f"{min(values):.0f} to {max(values):.0f} %" for name, values in spans.items()}
    assert f"true region in {spans['pointing']}" in told and f"chance {spans['chance']}, another image's map {spans['swapped']}" in told
    right = {row["value"]: round(float(row["right verdicts"])) for row in rows("11_*", setting="supervisor")}
    shares = [next(share for name, share in right.items() if name.endswith(end)) for end in ("0880", "0900", "2500", "miniature")]
    assert [f"{share} %" in BEFORE.split("*When does SAGA stop helping?*")[1].split("\n\n")[0] for share in shares] == [True] * 4


def test_the_memory_that_the_documents_state_is_that_of_the_plan():
    scale = (REPOSITORY / "docs" / "paper_scale.md").read_text(encoding="utf-8")
    config = make_config("paper", "cub200", "saga_pf", 0)
    told = re.search(r"the (\d+) of the paper's profile, .* take (\d+) GiB at most by the plan, with 0, .*, (\d+)\.", scale)
    sizes = [planner.peak(planner.estimate(one).at_most) for one in (config, replace(config, tower_images=0))]
    assert [int(number) for number in told.groups()] == [config.tower_images, *map(round, sizes)]


def test_the_gradient_ratios_that_made_the_first_study_unfair_are_those_of_its_runs():
    from saga_lib.common.files import read_json
    from saga_lib.config import RunConfig
    from saga_lib.records import Run
    from saga_study.findings.gradients import gradient_columns

    runs: dict = {}
    for path in sorted((FIRST / "runs").glob("*/evaluation.json")):
        config = RunConfig.from_dict(read_json(path.parent / "config.json")["config"])
        if config.dataset == "miniature_birds" and config.evaluate_on == "test" and config.embedding_dim == RunConfig.embedding_dim:
            if config.supervisor == "miniature" and not config.vocabulary:
                runs.setdefault(config.method, []).append(Run(path.parent, config))
    ratios = {method: gradient_columns(runs[method])["ratio median"] for method in ("saga_pf", "saga_pa")}
    told = "{:.1f} times the metric loss's for Potential Field (PF) and {:.3f} times for Proxy-Anchor (PA) on birds"
    assert told.format(ratios["saga_pf"], ratios["saga_pa"]) in " ".join(BEFORE.split())
