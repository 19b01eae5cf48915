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
