"""Your own images in the notebooks: how DATA_DIR, VOCABULARY and SUPERVISOR are resolved, and the example images without them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import WORKPLACE, given_path
from saga_lib.common.ranges import checked
from saga_lib.config import CHECKPOINT_PREFIX, OWN_IMAGES, YAML, RunConfig
from saga_lib.vocabulary import VOCABULARY_FOLDER, load_vocabulary
from saga_study.folders import write_folder
from saga_study.methods import Profile, make_config
from saga_study.paths import data_root

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.datasets.splits import Benchmark

EXAMPLE_SUPERVISOR = f"{CHECKPOINT_PREFIX}birds_prompts"  # answers prompts other than the usual one, too
EXAMPLE_CLASSES, EXAMPLE_IMAGES = 24, 12


@dataclass(frozen=True)
class OwnImages:
    """A folder or CSV of images, with the vocabulary, the supervisor and the profile of the runs on them."""

    source: Path
    vocabulary: str
    supervisor: str  # empty: the profile's
    profile: Profile
    is_example: bool
    test_fraction: float = 0.5
    split_seed: int = 0

    @property
    def name(self) -> str:
        return self.source.stem

    def load(self) -> tuple[Benchmark, pd.DataFrame]:
        """Return the benchmark and the table of its checks."""
        from saga_lib.datasets.image_folder import load_image_folder

        return load_image_folder(self.source, vocabulary=self.vocabulary, test_fraction=self.test_fraction, seed=self.split_seed)

    def image_folder(self) -> Path:
        """Return the folder to search in: the images' own, or the CSV's."""
        return self.source if self.source.is_dir() else self.source.parent

    def card(self, method: str, key: str) -> dict[str, str]:
        """Return what a model card says of the encoder of a run on these images: on what it was trained, or that it was not."""
        trained = "nothing here: it is the tower as it came" if method == "pre-trained" else self.name
        return {"trained on": trained, "method": method, "run": key}

    def config(self, method: str, seed: int = 0, steps: int = 0, **overrides: object) -> RunConfig:
        """Return the configuration of a run on these images.

        `steps` 0 trains as long as the profile says. Profile smoke and the pre-trained row keep their own number of steps.
        """
        if steps < 0:
            raise SagaError(f"STEPS is {steps}; give a number of optimizer steps, or 0 for the profile's")
        if steps and self.profile.name != "smoke" and method != "pre-trained":
            overrides["steps"] = steps
        settings = {
            "data_dir": str(self.source), "vocabulary": self.vocabulary, "test_fraction": self.test_fraction, "split_seed": self.split_seed,
        }  # fmt: skip
        if self.supervisor:
            settings["supervisor"] = self.supervisor
        return make_config(self.profile, OWN_IMAGES, method, seed, **settings | overrides)


def own_images(
    data_dir: str = "", vocabulary: str = "", supervisor: str = "", profile: Profile | str = "miniature", test_fraction: float = 0.5,
    split_seed: int = 0, any_prompt: bool = False,
) -> OwnImages:  # fmt: skip
    """Resolve the parameters of a notebook; without `data_dir`, example images of miniature birds are used, in profile miniature or smoke.

    With `any_prompt`, the example's supervisor is the one that was taught more prompts than the usual one, as real models are. Relative
    paths start where you are, or else at the repository. Raises `SagaError` for what is missing, and for the first mistake in the
    vocabulary.
    """
    profile = Profile.of(profile)
    vocabulary, supervisor = checked("VOCABULARY", vocabulary, "str"), checked("SUPERVISOR", supervisor, "str")
    if data_dir is None or isinstance(data_dir, str) and not data_dir:
        data_dir = ""
        profile = Profile("miniature") if profile.name == "paper" else profile
        vocabulary = vocabulary or "miniature_birds"
        supervisor = supervisor or (EXAMPLE_SUPERVISOR if any_prompt else "")
    elif not vocabulary:
        shipped = ", ".join(sorted(path.stem for path in VOCABULARY_FOLDER.glob("*.yaml")))
        raise SagaError(f"your images need a vocabulary: set VOCABULARY to a YAML file (notebook 13 proposes one) or to one of {shipped}")
    if vocabulary.endswith(YAML):
        vocabulary = str(user_path(vocabulary))
    load_vocabulary(vocabulary)
    if supervisor and os.path.isdir(folder := user_path(supervisor)):
        supervisor = str(folder)
    source = example_folder(data_root()) if data_dir == "" else user_path(data_dir)
    if not os.path.exists(source):
        nor = "" if os.path.isabs(str(data_dir)) else f", nor is it in {os.getcwd()}"
        raise SagaError(f"DATA_DIR {source} does not exist{nor}; give a folder of class sub-folders, or a CSV with path,label")
    return OwnImages(source, vocabulary, supervisor, profile, data_dir == "", test_fraction, split_seed)


def class_by_path(benchmark: Benchmark) -> dict[Path, str]:
    """Return {path of an image, links resolved: its class}, as training has it: the first folder below DATA_DIR, or a CSV's label."""
    return {
        path.resolve(): split.class_names[label]
        for split in (benchmark.train, benchmark.test) for path, label in zip(split.paths, split.labels, strict=True)
    }  # fmt: skip


def user_path(path: str) -> Path:
    """Return the absolute path of a notebook's parameter: a relative one is looked for where you are, then in the repository."""
    path = os.path.expanduser(str(path)) if str(path).startswith("~/") else str(path)  # a folder called 2024 arrives as a number
    here = given_path(os.path.abspath(path))
    return here if os.path.exists(here) else given_path(os.path.abspath(WORKPLACE / path))


def example_folder(root: Path) -> Path:
    """Render a folder of miniature birds below `root`, a sub-folder per class (once; later calls return at once)."""
    import numpy as np

    from saga_study.miniature.scene import FIELD, STUDIO, render
    from saga_study.miniature.world import BENCHMARK, BENCHMARKS, DOMAINS, benchmark_classes, draw_combination, spec_digest

    spec, domain = BENCHMARKS["miniature_birds"], DOMAINS["birds"]

    def draw_folder(folder: Path) -> None:
        rng, taken = np.random.default_rng(spec.seed + 1), benchmark_classes(spec)
        for number in range(EXAMPLE_CLASSES):
            while (bird := draw_combination(domain.vocabulary, rng, BENCHMARK)) in taken:
                pass
            taken.append(bird)
            place = folder / f"bird {number:02d}"
            place.mkdir()
            for image in range(EXAMPLE_IMAGES):
                draw = np.random.default_rng([spec.seed + 1, number, image])
                render(domain.draw, bird, draw, spec.nuisance, STUDIO.toward(FIELD, spec.shift))[0].save(place / f"{image:02d}.png")

    return write_folder(root / f"example-{spec_digest(spec)}" / "example birds", draw_folder, otherwise="set SAGA_DATA to another folder")
