"""What the README claims: its table equals the committed reference study, and everything it names exists."""

import re
from subprocess import run

from saga_lib.paths import REPOSITORY
from saga_lib.report import README_MARKS, readme_section

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_table_equals_the_reference_study():
    begin, end = README_MARKS
    shown = README.split(begin)[1].split(end)[0].strip()
    study = re.search(r"\]\((results/[\w.-]+)\)", shown).group(1)
    assert shown == readme_section(REPOSITORY / study)


def test_every_link_and_path_exists():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (REPOSITORY / target).exists()]


def test_every_named_notebook_exists():
    named = re.findall(r"`(\d\d[a-z]?_\w+)`", README)
    assert len(named) >= 6
    assert not [name for name in named if not (REPOSITORY / "notebooks" / f"{name}.ipynb").is_file()]


def test_the_reference_study_is_small_and_has_no_weights():
    study = re.search(r"\]\((results/[\w.-]+)\)", README.split(README_MARKS[0])[1]).group(1)

    names = run(["git", "ls-files", study], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [REPOSITORY / name for name in names if name]
    assert files and not [f for f in files if f.suffix in (".safetensors", ".pt", ".bin")]
    assert sum(f.stat().st_size for f in files) <= 6e6


def test_the_search_in_the_text_is_the_committed_one():
    from saga_lib.tuning import read_log

    log = read_log()
    best = log[log["chosen"]].set_index("method")["mean R@1"]
    names = {"pf": "PF", "saga_pf": "SAGA", "ms": "MS", "pa": "PA", "infonce": "InfoNCE", "oracle": "PF + oracle"}
    assert ", ".join(f"{label} {best[method]:.1f}" for method, label in names.items()) in README


def test_the_table_of_four_benchmarks_is_that_of_its_run_folders():
    from saga_lib import tables
    from saga_lib.config import METHOD_LABELS, RunConfig
    from saga_lib.files import read_json
    from saga_lib.runs import Run

    methods = ("pf", "pf_attention", "pf_grpo", "saga_pf", "saga_shuffled", "oracle")
    folder = REPOSITORY / re.search(r"\]\((results/[\w.-]+/runs)\)", README.split("**So far on the four benchmarks**")[1]).group(1)
    runs: dict = {}
    for path in sorted(folder.glob("*/evaluation.json")):
        config = RunConfig.from_dict(read_json(path.parent / "config.json")["config"])
        if config.evaluate_on == "test" and config.method in methods and config.seed < 3:
            runs.setdefault(config.dataset, {}).setdefault(config.method, []).append(Run(path.parent, config))
    order = ("miniature_birds", "miniature_cars", "miniature_aircraft", "miniature_aves")
    runs = {name: {method: runs[name][method] for method in methods} for name in order}
    assert all(len(group) == 3 for of_one in runs.values() for group in of_one.values())
    levels = " | ".join(f"{sum(tables.metric(run, 'R@1') for run in runs[name]['pf']) / 3:.1f}" for name in order)
    assert f"| PF | {levels} | |" in README
    shown = tables.display_answer(tables.pooled_answer(runs)).set_index("points of R@1 [95 %]")
    for method in ("pf_grpo", "saga_pf", "saga_shuffled", "oracle"):
        row = shown.loc[f"{METHOD_LABELS[method]} − PF", [*order, tables.POOLED]]
        assert f"| {METHOD_LABELS[method]} | {' | '.join(row)} |" in README
    assert f"| SAGA − shuffled advantages | {' | '.join(shown.loc['SAGA − shuffled advantages', [*order, tables.POOLED]])} |" in README


def test_the_vocabularies_in_the_text_are_those_of_the_notebook():
    told = README.split("**Vocabularies**")[1].split("\n\n")[0].replace("\n", " ")
    study = REPOSITORY / re.search(r"\]\((results/[\w.-]+)/notebooks/13", told).group(1)
    lines = (study / "tables" / "13_after_training.md").read_text(encoding="utf-8").splitlines()[2:]
    rows = {cells[2]: cells for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}
    assert set(rows) == {"hand-written", "discovered", "generic", "shuffled"} and all(row[-2] == "3" for row in rows.values())
    assert f"R@1 {rows['hand-written'][3]} with the hand-written list" in told
    for name in ("discovered", "generic", "shuffled"):
        assert rows[name][4] in told, name
    kept = re.findall(r"- name: (.+)", (study / "vocabularies" / "discovered.yaml").read_text(encoding="utf-8"))
    assert len(kept) == 5 and "the five of its eight attributes" in told
