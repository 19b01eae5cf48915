"""`saga_lib` alone is enough: the README's script trains SAGA without the study, and naming a run imports no torch."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from saga_lib.common.paths import REPOSITORY
from saga_lib.config import CHECKPOINTS
from saga_study.miniature.scene import FIELD, STUDIO, render
from saga_study.miniature.world import BENCHMARK, BENCHMARKS, DOMAINS, draw_combination

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
[SCRIPT] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "train(" in block]
# What makes the script quick and local; everything else runs as the README has it.
IN_MINIATURE = {
    '"mugs.yaml"': '"miniature_birds"', '"Qwen/Qwen3-VL-8B-Instruct"': repr(str(CHECKPOINTS / "birds")), "image_size=224": "image_size=48",
    "attention_layer=26": "attention_layer=0", "max_new_tokens=1024": "max_new_tokens=72", "batch_size=64": "batch_size=16",
    "steps=200": "steps=2",
}  # fmt: skip


def run_python(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def draw_photos(folder, classes=8, images=6):
    """Write a sub-folder of miniature birds for each class, in the style of their benchmark."""
    domain, spec, rng = DOMAINS["birds"], BENCHMARKS["miniature_birds"], np.random.default_rng(0)
    for number in range(classes):
        bird = draw_combination(domain.vocabulary, rng, BENCHMARK)
        (folder / f"bird {number}").mkdir(parents=True)
        for image in range(images):
            picture, _ = render(domain.draw, bird, rng, spec.nuisance, STUDIO.toward(FIELD, spec.shift))
            picture.save(folder / f"bird {number}" / f"{image}.png")


def test_the_script_of_the_readme_trains_saga_on_own_images_without_the_study(tmp_path):
    script = SCRIPT
    for shown, small in IN_MINIATURE.items():
        assert script.count(shown) == 1, shown
        script = script.replace(shown, small)
    draw_photos(tmp_path / "photos")
    refuse = "import sys; sys.modules['saga_study'] = None  # importing it fails now\n"
    shown = run_python(refuse + script, tmp_path).splitlines()
    steps = [json.loads(line) for line in (tmp_path / "my_run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["contributing_pairs"] > 0 and row["loss_lm"] != 0 and row["grad_lm"] > 0 for row in steps)
    assert (tmp_path / "my_run" / "encoder" / "model.safetensors").is_file()
    evaluation = json.loads((tmp_path / "my_run" / "evaluation.json").read_text())
    recall = {int(k): value for k, value in evaluation["recall"].items()}
    assert evaluation["trained_parameters"]["tower"] > 0 and 0.25 < recall[1] <= 1
    assert shown[-1] == str(recall)  # the loaded encoder retrieves what the trained one did


def test_the_refusal_works(tmp_path):
    code = "import sys; sys.modules['saga_study'] = None\nimport saga_study.methods"
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        run_python(code, tmp_path)


@pytest.mark.parametrize("modules", ["saga_lib", "saga_lib.config, saga_lib.records"])
def test_naming_a_run_is_quick_and_needs_no_torch(modules, tmp_path):
    code = f"""import sys, time
started = time.process_time()
import {modules}
print(time.process_time() - started, *(name for name in ("torch", "transformers", "pandas") if name in sys.modules))"""
    seconds, *heavy = run_python(code, tmp_path).split()
    assert float(seconds) < 1 and not heavy


def test_an_installation_has_every_file_of_the_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = ["*.py", *project["tool"]["setuptools"]["package-data"]["*"]]
    names = subprocess.run(["git", "ls-files", "saga_lib", "saga_study"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = [Path(name) for name in names.stdout.splitlines()]
    assert len(files) > 100 and {"py.typed", "same_numbers.json", "birds.yaml", "model.safetensors"} <= {path.name for path in files}
    assert not [path for path in files if not any(fnmatch(path.name, pattern) for pattern in patterns)]
