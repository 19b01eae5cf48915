"""Classes, pools and benchmarks of the miniature world.

A class is one combination of attribute values. Every combination belongs, by a hash of its values, to one of
two pools: what the supervisor is pre-trained on and what benchmarks may use. A benchmark class can therefore
never be met in pre-training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import write_json
from saga_lib.vocabulary import Vocabulary, load_vocabulary
from saga_study.folders import write_folder
from saga_study.miniature.aircraft import draw_aircraft
from saga_study.miniature.birds import draw_bird
from saga_study.miniature.cars import draw_car
from saga_study.miniature.scene import FIELD, STUDIO, Draw, render
from saga_study.processes import serve

Attributes = dict[str, str]
PRETRAINING, BENCHMARK = "pretraining", "benchmark"


@dataclass(frozen=True)
class Domain:
    """A drawing function and the vocabulary that names what it draws."""

    name: str
    draw: Draw

    @property
    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(f"miniature_{self.name}")


DOMAINS = {domain.name: domain for domain in (Domain("birds", draw_bird), Domain("cars", draw_car), Domain("aircraft", draw_aircraft))}


@dataclass(frozen=True)
class BenchmarkSpec:
    """What defines a miniature benchmark; any change of a value needs a new `version`."""

    domain: str
    version: int
    seed: int
    train_classes: int
    validation_classes: int
    test_classes: int
    images_per_class: int  # of train classes
    gallery_images_per_class: int  # of validation and test classes
    train_family_size: int  # of the train classes; 1 = far apart, a few easy attributes tell them apart
    family_size: int  # of validation and test classes: they differ from their family's first in one or two attributes
    nuisance: float  # pose, light, clutter, occlusion (0..1)
    shift: float  # style, from the pre-training studio (0) to the field (1) and a little beyond
    habitat: float = 0.0  # share of a train class's images that show its own background; the others, and all of test, show any


_SIZES = ("train_family_size", "family_size")  # from 1 up, other counts from 2
# Train classes have siblings and each its own background, which other classes do not have: labels can be learnt in two ways, of which one
# is of no use on unseen classes. The fields of version 4 were chosen on validation classes (docs/study_log.md); notebook 04b says which of
# its rules they keep.
_VERSION_4 = {
    "version": 4, "train_family_size": 4, "family_size": 24, "habitat": 1.0, "validation_classes": 192, "test_classes": 384,
    "gallery_images_per_class": 12,
}  # fmt: skip
BENCHMARKS = {
    "miniature_birds": BenchmarkSpec(
        domain="birds", seed=20260615, train_classes=24, images_per_class=20, nuisance=0.15, shift=0.8, **_VERSION_4
    ),
    "miniature_cars": BenchmarkSpec(
        domain="cars", seed=20260616, train_classes=24, images_per_class=20, nuisance=0.15, shift=0.9, **_VERSION_4
    ),
    "miniature_aircraft": BenchmarkSpec(
        domain="aircraft", seed=20260617, train_classes=24, images_per_class=20, nuisance=0.2, shift=0.9, **_VERSION_4
    ),
    "miniature_aves": BenchmarkSpec(
        domain="birds", seed=20260618, train_classes=48, images_per_class=12, nuisance=0.2, shift=0.8, **_VERSION_4
    ),
}
VARIABLE = {  # fields that a variant may change, in the order of its name, and how they are read
    "train_classes": int, "validation_classes": int, "test_classes": int, "train_family_size": int, "family_size": int,
    "nuisance": float, "shift": float, "habitat": float,
}  # fmt: skip
MOST = {"nuisance": 1, "shift": 1.5, "habitat": 1}
HABITATS = 24  # backgrounds of a benchmark whose `habitat` is above 0


def is_miniature(name: str) -> bool:
    """Return whether a dataset's name is that of a miniature benchmark or of a variant of one."""
    return name.split("+")[0] in BENCHMARKS


def benchmark_spec(name: str) -> BenchmarkSpec:
    """Return what defines a miniature benchmark, by its name or that of a variant such as `miniature_cars+train_classes=12+shift=0.8`.

    A variant has one name, hence one address: fields in the order of `VARIABLE`, numbers as `benchmark_variant` writes
    them, none that its base has anyway. Raises `SagaError` for every other name.
    """
    base, *changes = name.split("+")
    if base not in BENCHMARKS:
        raise unknown_name("miniature benchmark", base, BENCHMARKS)
    fields = {}
    for change in changes:
        field, _, text = change.partition("=")
        if field not in VARIABLE:
            raise unknown_name(f"field of variant {name}", field, VARIABLE)
        try:
            fields[field] = VARIABLE[field](text)
        except ValueError:
            raise SagaError(f"variant {name}: {field} takes {_range(field)}, got {text!r}") from None
    if name != (written := benchmark_variant(base, **fields)):
        raise SagaError(f"variant {name} has another name; write {written}")
    return replace(BENCHMARKS[base], **fields)


def benchmark_variant(base: str, **fields: float) -> str:
    """Return the name of a benchmark with some fields of its specification replaced; its own, if that changes nothing.

    Raises `SagaError` for an unknown benchmark or field and for a value out of range.
    """
    if base not in BENCHMARKS:
        raise unknown_name("miniature benchmark", base, BENCHMARKS)
    for field, value in fields.items():
        if field not in VARIABLE:
            raise unknown_name(f"field of a variant of {base}", field, VARIABLE)
        is_count = VARIABLE[field] is int
        whole, least = value % 1 == 0, 1 if field in _SIZES else 2
        if not (least <= value <= 999 and whole if is_count else 0 <= value <= MOST[field]):
            raise SagaError(f"a variant of {base}: {field} takes {_range(field)}, got {value}")
    spec = asdict(BENCHMARKS[base])
    changed = {field: VARIABLE[field](fields[field]) for field in VARIABLE if field in fields and fields[field] != spec[field]}
    return "+".join([base, *(f"{field}={value}" for field, value in changed.items())])


def _range(field: str) -> str:
    if VARIABLE[field] is float:
        return f"a number between 0 and {MOST[field]}"
    return f"a whole number from {1 if field in _SIZES else 2} to 999"


def pool_of(attributes: Mapping[str, str]) -> str:
    """Return the pool, "pretraining" or "benchmark", that a combination of attribute values belongs to."""
    text = json.dumps(sorted(attributes.items()))
    return BENCHMARK if hashlib.blake2b(text.encode(), digest_size=2).digest()[0] < 64 else PRETRAINING


def draw_combination(vocabulary: Vocabulary, rng: np.random.Generator, pool: str) -> Attributes:
    """Draw a uniformly random combination of attribute values from a pool."""
    while True:
        chosen = {a.name: a.values[rng.integers(len(a.values))] for a in vocabulary.attributes}
        if pool_of(chosen) == pool:
            return chosen


def draw_sibling(
    attributes: Attributes, vocabulary: Vocabulary, rng: np.random.Generator, pool: str, max_changes: int = 2
) -> Attributes:
    """Draw a combination of the same pool that differs from `attributes` in one to `max_changes` values."""
    while True:
        changed = dict(attributes)
        for index in rng.choice(len(vocabulary.attributes), rng.integers(1, max_changes + 1), replace=False):
            attribute = vocabulary.attributes[index]
            others = [value for value in attribute.values if value != attributes[attribute.name]]
            changed[attribute.name] = others[rng.integers(len(others))]
        if pool_of(changed) == pool:
            return changed


SPLITS = ("train", "validation", "test")


def images_of_split(spec: BenchmarkSpec, split: str, at_most: int = 0) -> int:
    """Return how many images each class of a split has; `at_most` limits them, 0: all."""
    count = spec.images_per_class if split == "train" else spec.gallery_images_per_class
    return min(count, at_most or count)


def split_ranges(spec: BenchmarkSpec) -> dict[str, range]:
    """Return the class indices of each split: train, then validation, then test."""
    ranges, start = {}, 0
    for name, count in zip(SPLITS, (spec.train_classes, spec.validation_classes, spec.test_classes), strict=True):
        ranges[name] = range(start, start + count)
        start += count
    return ranges


def benchmark_classes(spec: BenchmarkSpec) -> list[Attributes]:
    """Return the distinct classes of a benchmark in the order of `split_ranges`.

    Families never straddle splits; within a split, siblings are adjacent.
    """
    vocabulary = DOMAINS[spec.domain].vocabulary
    rng = np.random.default_rng(spec.seed)
    classes: list[Attributes] = []
    for name, indices in split_ranges(spec).items():
        size = spec.train_family_size if name == "train" else spec.family_size
        members: list[Attributes] = []
        while len(members) < len(indices):
            founder = draw_combination(vocabulary, rng, BENCHMARK)
            family = [founder]
            while len(family) < min(size, len(indices) - len(members)):
                sibling = draw_sibling(founder, vocabulary, rng, BENCHMARK)
                if sibling not in family:
                    family.append(sibling)
            if not any(member in classes or member in members for member in family):
                members.extend(family)
        classes.extend(members)
    return classes


def spec_digest(spec: BenchmarkSpec) -> str:
    """Return a short digest of what defines a benchmark, the drawing code included (its folder's name carries it)."""
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    for name in ("scene.py", f"{spec.domain}.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(repr(DOMAINS[spec.domain].vocabulary).encode())
    return digest.hexdigest()[:10]


def build_benchmark(name: str, root: Path, images_per_class: int = 0) -> Path:
    """Render a benchmark below `root` (once; later calls return at once) and return its folder; `images_per_class` at most, 0: all.

    Layout: `classes.json` and `images/NNN/II.png`. Written to a temporary folder and moved on success.
    """
    spec = benchmark_spec(name)
    folder = root / f"{name}-v{spec.version}-{spec_digest(spec)}-{images_per_class or 'all'}"
    return write_folder(
        folder, lambda partial: _render_benchmark(spec, images_per_class, partial), lambda made: (made / "classes.json").is_file(),
        "set SAGA_DATA to another folder",
    )  # fmt: skip


def _render_benchmark(spec: BenchmarkSpec, at_most: int, folder: Path) -> None:
    classes = benchmark_classes(spec)
    counts = {c: images_of_split(spec, split, at_most) for split, indices in split_ranges(spec).items() for c in indices}
    jobs = [(spec, classes[c], c, count, folder / "images" / f"{c:03d}") for c, count in counts.items()]
    try:
        with ProcessPoolExecutor(max_workers=2, initializer=serve, initargs=(os.getpid(),)) as pool:
            digests = list(pool.map(_render_class, jobs, chunksize=8))
    except BrokenProcessPool:
        raise SagaError("a process that rendered images was killed, perhaps because memory ran out; run it again") from None
    write_json(folder / "regions.json", {f"{c:03d}": digest[1] for c, digest in enumerate(digests)})
    pixels = hashlib.sha256("".join(d[0] for d in digests).encode()).hexdigest()
    write_json(folder / "classes.json", {"spec": asdict(spec), "classes": classes, "pixels_sha256": pixels})


def _render_class(job: tuple[BenchmarkSpec, Attributes, int, int, Path]) -> tuple[str, list[dict]]:
    spec, attributes, index, count, folder = job
    folder.mkdir(parents=True, exist_ok=True)
    style = STUDIO.toward(FIELD, spec.shift)
    digest, regions = hashlib.sha256(), []
    for number in range(count):
        rng = np.random.default_rng([spec.seed, index, number])
        image, marks = render(DOMAINS[spec.domain].draw, attributes, rng, spec.nuisance, style, _habitat(spec, index, number))
        image.save(folder / f"{number:02d}.png")
        digest.update(image.tobytes())
        regions.append({name: [round(x, 1) for x in box] for name, box in marks.items()})
    return digest.hexdigest(), regions


def _habitat(spec: BenchmarkSpec, index: int, number: int) -> int | None:
    """Return the background of an image of a class: labels of train classes can be explained by it, those of others cannot."""
    if not spec.habitat:
        return None
    rng = np.random.default_rng([spec.seed, index, number, 1])
    own, other = rng.uniform() < spec.habitat, int(rng.integers(HABITATS))
    return index % HABITATS if own and index < spec.train_classes else other


def render_batch(
    domain: Domain, combinations: list[Attributes], rng: np.random.Generator, nuisances: Sequence[float]
) -> list[Image.Image]:
    """Render one studio-style image per combination at the given nuisances (for pre-training)."""
    return [render(domain.draw, c, rng, n, STUDIO)[0] for c, n in zip(combinations, nuisances, strict=True)]
