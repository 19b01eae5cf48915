"""Benchmarks and their pools, batches and pairs drawn from them, and the making of the miniature supervisor."""

import hashlib
import itertools
import json
import socket
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning.utils import common_functions
from tiny import VOCABULARY

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.datasets.splits import Benchmark, Split
from saga_lib.families.loading import load_supervisor
from saga_lib.pairs import PairStream, balanced_batches
from saga_study.datasets.loading import load_benchmark
from saga_study.methods import make_config
from saga_study.miniature import world
from saga_study.miniature.scene import FIELD, IMAGE_SIZE, STUDIO, render
from saga_study.miniature.world import BENCHMARK, BENCHMARKS, DOMAINS, PRETRAINING, benchmark_classes, pool_of
from saga_study.resolving import supervisor_source
from saga_study.teaching import checkpoints, pretraining
from saga_study.teaching.checkpoints import Recipe
from saga_study.teaching.pretraining import pretrain, render_pool, text_comparisons

NAME = "miniature_birds"
FULL = BENCHMARKS[NAME]
BIRDS = DOMAINS["birds"]


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """Miniature birds with six classes per half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, NAME, replace(FULL, train_classes=6, validation_classes=6, test_classes=6, family_size=3))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def benchmark(root):
    return load_benchmark(NAME, root, images_per_class=3)


# --------------------------------------------------------------------------------- the miniature benchmark


def test_benchmark_has_its_protocol(benchmark):
    for split in (benchmark.train, benchmark.validation, benchmark.test):
        assert len(split) == len(split.paths) == len(split.labels) == 18
        assert np.bincount(split.labels).tolist() == [3] * 6 and len(split.class_names) == 6
        assert split.open(0).size == (IMAGE_SIZE, IMAGE_SIZE) and split.open(0).mode == "RGB"
        assert len(split.images([0, 5])) == 2 and len(split.images()) == 18
        assert set(split.attributes(7)) == set(VOCABULARY.attribute_names)
        assert split.attributes(6) == split.attributes(8) != split.attributes(9)
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    assert not set(benchmark.train.paths) & set(benchmark.test.paths)


def test_rendering_is_deterministic(benchmark, root, tmp_path):
    again = load_benchmark(NAME, tmp_path, images_per_class=3)
    assert again.checksum == benchmark.checksum
    for a, b in zip(
        [*benchmark.train.paths, *benchmark.test.paths], [*again.train.paths, *again.test.paths], strict=True
    ):
        assert a.relative_to(root) == b.relative_to(tmp_path)
        assert np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
    assert not list(tmp_path.glob("*partial*")), "no half-made folder stays behind"


def test_fewer_images_per_class_are_the_first_ones(benchmark, tmp_path):
    fewer = load_benchmark(NAME, tmp_path, images_per_class=2)
    assert fewer.checksum != benchmark.checksum
    for c in range(6):
        for i in range(2):
            a, b = fewer.train.open(2 * c + i), benchmark.train.open(3 * c + i)
            assert np.array_equal(np.asarray(a), np.asarray(b))


def test_another_specification_is_another_folder(benchmark, root, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, NAME, replace(BENCHMARKS[NAME], seed=1))
    other = load_benchmark(NAME, root, images_per_class=3)
    assert other.checksum != benchmark.checksum and other.train.paths[0] != benchmark.train.paths[0]


def test_images_of_a_class_differ_and_classes_differ(benchmark):
    images = [np.asarray(image) for image in benchmark.train.images()]
    digests = {hashlib.sha256(image.tobytes()).hexdigest() for image in images}
    assert len(digests) == len(images)


def test_regions_lie_inside_the_image(benchmark):
    folder = benchmark.train.paths[0].parents[2]
    regions = read_json(folder / "regions.json")
    assert len(regions) == 18
    areas = []
    for images in regions.values():
        assert len(images) == 3
        for marks in images:
            assert set(marks) == set(VOCABULARY.attribute_names)
            for x0, y0, x1, y1 in marks.values():
                assert 0 <= x0 <= x1 <= IMAGE_SIZE and 0 <= y0 <= y1 <= IMAGE_SIZE
                areas.append((x1 - x0) * (y1 - y0))
    assert np.mean(np.asarray(areas) > 4) > 0.98, "attributes must be visible in nearly every image"


@pytest.mark.parametrize("name", VOCABULARY.attribute_names)
def test_every_attribute_value_changes_the_picture_inside_its_region(name):
    [attribute] = [a for a in VOCABULARY.attributes if a.name == name]
    base = {a.name: a.values[0] for a in VOCABULARY.attributes}
    pictures = []
    for value in attribute.values:
        image, regions = render(
            BIRDS.draw, base | {name: value}, np.random.default_rng(3), 0.0, replace(STUDIO, noise=0)
        )
        pictures.append(np.asarray(image).astype(int))
        x0, y0, x1, y1 = regions[name]
        inside = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
        inside[int(max(y0 - 2, 0)) : int(y1 + 3), int(max(x0 - 2, 0)) : int(x1 + 3)] = True
        if len(pictures) > 1:
            changed = np.abs(pictures[-1] - pictures[0]).max(-1) > 25
            assert changed.sum() >= 4
            if "shape" not in name:  # a shape also uncovers what the other one hid
                assert changed[inside].sum() >= 0.9 * changed.sum()
    for a, b in itertools.combinations(pictures, 2):
        assert np.abs(a - b).max() > 25


def test_render_depends_on_its_arguments_and_generator_alone():
    item = {a.name: a.values[-1] for a in VOCABULARY.attributes}
    first, marks = render(BIRDS.draw, item, np.random.default_rng(5), 0.5, FIELD)
    np.random.seed(0)
    second, again = render(BIRDS.draw, item, np.random.default_rng(5), 0.5, FIELD)
    third, _ = render(BIRDS.draw, item, np.random.default_rng(6), 0.5, FIELD)
    assert np.array_equal(np.asarray(first), np.asarray(second)) and marks == again
    assert not np.array_equal(np.asarray(first), np.asarray(third))


# -------------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("spec", [FULL, *(spec for spec in BENCHMARKS.values() if spec != FULL)], ids=lambda spec: spec.domain)
def test_no_class_leaks_between_pre_training_train_validation_and_test(spec):
    classes = benchmark_classes(spec)
    assert len(classes) == spec.train_classes + spec.validation_classes + spec.test_classes
    assert classes == benchmark_classes(spec)
    keys = {json.dumps(c, sort_keys=True) for c in classes}
    assert len(keys) == len(classes), "classes are distinct, also across the splits"
    assert all(pool_of(c) == BENCHMARK for c in classes)
    ranges = world.split_ranges(spec)
    assert [i for indices in ranges.values() for i in indices] == list(range(len(classes)))


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=lambda domain: domain.name)
def test_pre_training_draws_from_its_pool_only(domain):
    VOCABULARY = domain.vocabulary
    assert len(VOCABULARY.attributes) >= 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = world.draw_combination(VOCABULARY, rng, PRETRAINING)
        sibling = world.draw_sibling(drawn, VOCABULARY, rng, PRETRAINING)
        assert pool_of(drawn) == pool_of(sibling) == PRETRAINING
        assert 1 <= sum(drawn[name] != sibling[name] for name in drawn) <= 2
        assert all(drawn[a.name] in a.values and sibling[a.name] in a.values for a in VOCABULARY.attributes)
    for answer in text_comparisons(100, VOCABULARY, rng):
        answer = json.loads(answer)
        assert pool_of(answer["item_1"]) == pool_of(answer["item_2"]) == PRETRAINING


def test_the_pool_of_a_combination_does_not_depend_on_the_order_of_its_attributes():
    item = benchmark_classes(FULL)[0]
    assert pool_of(dict(reversed(item.items()))) == pool_of(item)


def test_both_pools_hold_every_attribute_value():
    rng = np.random.default_rng(0)
    for pool, share in ((PRETRAINING, 0.75), (BENCHMARK, 0.25)):
        drawn = [world.draw_combination(VOCABULARY, rng, pool) for _ in range(200)]
        for a in VOCABULARY.attributes:
            assert {item[a.name] for item in drawn} == set(a.values)
        items = ({a.name: a.values[rng.integers(len(a.values))] for a in VOCABULARY.attributes} for _ in range(2000))
        assert np.mean([pool_of(item) == pool for item in items]) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("spec", BENCHMARKS.values(), ids=BENCHMARKS)
def test_benchmark_families_stay_within_a_split(spec):
    classes = benchmark_classes(spec)
    for name, indices in world.split_ranges(spec).items():
        size = spec.train_family_size if name == "train" else spec.family_size
        for start in range(indices.start, indices.stop, size):
            founder, *siblings = classes[start : min(start + size, indices.stop)]
            assert all(1 <= sum(founder[n] != s[n] for n in founder) <= 2 for s in siblings)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=lambda domain: domain.name)
def test_every_attribute_value_changes_the_picture_and_has_a_region(domain):
    rng = np.random.default_rng(1)
    base = world.draw_combination(domain.vocabulary, rng, PRETRAINING)
    for attribute in domain.vocabulary.attributes:
        shown = []
        for value in attribute.values:
            image, regions = render(domain.draw, base | {attribute.name: value}, np.random.default_rng(7), 0.0, STUDIO)
            x0, y0, x1, y1 = regions[attribute.name]
            assert x1 > x0 and y1 > y0, (attribute.name, value)
            shown.append(np.asarray(image, dtype=int))
        for one, other in itertools.combinations(shown, 2):
            assert (np.abs(one - other).max(-1) > 40).sum() >= 4, attribute.name


# ------------------------------------------------------------------------------------------------- errors


def test_unknown_datasets_suggest_the_closest(tmp_path):
    with pytest.raises(SagaError, match="unknown dataset 'miniature_bird': did you mean 'miniature_birds'"):
        load_benchmark("miniature_bird", tmp_path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("miniature_car+shift=0.8", "unknown dataset 'miniature_car.shift=0.8': did you mean 'miniature_cars'"),
        ("miniature_cars+shfit=0.8", "unknown field of variant .* 'shfit': did you mean 'shift'"),
        ("miniature_cars+seed=3", "unknown field of variant .* 'seed'"),
        ("miniature_cars+shift=strong", "shift takes a number between 0 and 1.5, got 'strong'"),
        ("miniature_cars+shift=1.6", "shift takes a number between 0 and 1.5, got 1.6"),
        ("miniature_cars+shift=nan", "shift takes a number between 0 and 1.5, got nan"),
        ("miniature_cars+train_classes=12.5", "train_classes takes a whole number from 2 to 999, got '12.5'"),
        ("miniature_cars+train_classes=1", "train_classes takes a whole number from 2 to 999, got 1"),
        ("miniature_cars+shift", "shift takes a number between 0 and 1.5, got ''"),
        ("miniature_cars+", "unknown field of variant"),
        ("miniature_cars+shift=0.80", "write miniature_cars.shift=0.8$"),
        ("miniature_cars+shift=0.8+train_classes=12", "write miniature_cars.train_classes=12.shift=0.8$"),
        ("miniature_cars+shift=0.9+shift=0.8", "write miniature_cars.shift=0.8$"),
    ],
)
def test_variants_have_one_name_and_mistakes_one_line(name, line, tmp_path):
    with pytest.raises(SagaError, match=line) as caught:
        load_benchmark(name, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_variant_that_changes_nothing_is_refused_by_name_and_written_as_its_base(tmp_path):
    shift = BENCHMARKS["miniature_cars"].shift
    with pytest.raises(SagaError, match="write miniature_cars$"):
        load_benchmark(f"miniature_cars+shift={shift}", tmp_path)
    assert world.benchmark_variant("miniature_cars", shift=shift) == "miniature_cars"
    assert world.benchmark_variant("miniature_cars", shift=0.8, train_classes=12) == "miniature_cars+train_classes=12+shift=0.8"


def test_variants_are_benchmarks_of_their_own(benchmark, root):
    changes = {"train_classes": 4}, {"shift": 0.7}, {"validation_classes": 3, "test_classes": 9}
    names = [world.benchmark_variant(NAME, **fields) for fields in changes]
    variants = {name: load_benchmark(name, root, images_per_class=3) for name in names}
    few, shifted, moved = variants.values()
    assert len(few.train.class_names) == 4 and len(few.test.class_names) == 6 and few.vocabulary == benchmark.vocabulary
    assert shifted.train.class_attributes == benchmark.train.class_attributes
    assert not np.array_equal(np.asarray(shifted.train.open(0)), np.asarray(benchmark.train.open(0)))
    assert np.array_equal(np.asarray(moved.test.open(17)), np.asarray(benchmark.test.open(8)))  # the same images, dealt otherwise
    for part in (lambda b: b.checksum, lambda b: b.train.paths[0].parents[2]):
        assert len({part(b) for b in (benchmark, *variants.values())}) == 4
    for name in names:
        assert supervisor_source(make_config("smoke", name, "pf", 0)) == supervisor_source(make_config("smoke", NAME, "pf", 0))


def damaged(path, content, tmp_path):
    copy = tmp_path / "damaged.png"
    copy.write_bytes(content)
    return Split("train", [path, copy], np.zeros(2, dtype=int), ["a"])


@pytest.mark.parametrize("keep", [0, 5, 40, 600, -40])
def test_an_unreadable_image_names_its_file(benchmark, tmp_path, keep):
    path = benchmark.train.paths[0]
    split = damaged(path, path.read_bytes()[:keep], tmp_path)
    split.open(0)
    with pytest.raises(SagaError, match="damaged.png cannot be read") as error:
        split.images()
    assert "\n" not in str(error.value)


def test_flipped_bytes_give_an_image_or_a_readable_error(benchmark, tmp_path):
    path = benchmark.train.paths[0]
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(150):
        content = bytearray(path.read_bytes())
        content[rng.integers(300)] ^= int(rng.integers(1, 256))
        try:
            damaged(path, bytes(content), tmp_path).open(1)
        except SagaError:
            errors += 1
    assert errors > 10


def test_a_missing_image_is_a_readable_error(tmp_path):
    benchmark = load_benchmark(NAME, tmp_path, images_per_class=2)
    benchmark.test.paths[3].unlink()
    with pytest.raises(SagaError, match=r"image .*01\.png does not exist"):
        benchmark.test.open(3)
    with pytest.raises(SagaError, match=r"image .*01\.png is missing; delete .* to render it again"):
        load_benchmark(NAME, tmp_path, images_per_class=2)
    folder = benchmark.test.paths[0].parents[2]
    (folder / "classes.json").write_text("{")
    with pytest.raises(SagaError, match=r"classes\.json is damaged"):
        load_benchmark(NAME, tmp_path, images_per_class=2)


def split_of(labels, names, which="train"):
    return Split(which, [None] * len(labels), np.asarray(labels), names)


def test_too_few_images_or_classes_are_readable_errors(tmp_path):
    good = split_of([0, 0, 1, 1], ["c", "d"], "test")
    with pytest.raises(SagaError, match="class 'b' of the train split has 1 image"):
        Benchmark("x", "birds", split_of([0, 0, 1], ["a", "b"]), good, "")
    with pytest.raises(SagaError, match="class 'b' of the train split has 0 image"):
        Benchmark("x", "birds", split_of([0, 0], ["a", "b"]), good, "")
    with pytest.raises(SagaError, match="train split has 1 class"):
        Benchmark("x", "birds", split_of([0, 0], ["a"]), good, "")
    with pytest.raises(SagaError, match="class 'c' is in both train and test"):
        Benchmark("x", "birds", split_of([0, 0, 1, 1], ["b", "c"]), good, "")
    with pytest.raises(SagaError, match="has 1 image"):
        load_benchmark(NAME, tmp_path, images_per_class=1)


def test_only_miniature_splits_know_the_truth():
    with pytest.raises(SagaError, match="the oracle exists for miniature benchmarks only"):
        split_of([0, 0], ["a"]).attributes(0)


def test_tuning_takes_the_validation_classes_where_there_are_some(benchmark):
    tuning = benchmark.for_tuning()
    assert tuning.train is benchmark.train and tuning.test is benchmark.validation
    assert not {*tuning.train.class_names, *tuning.test.class_names} & set(benchmark.test.class_names)


def test_tuning_splits_the_train_classes_otherwise_and_never_sees_a_test_class(benchmark):
    tuning = replace(benchmark, validation=None).for_tuning()
    assert tuning.train.class_names + tuning.test.class_names == benchmark.train.class_names
    assert tuning.train.paths + tuning.test.paths == benchmark.train.paths
    assert np.bincount(tuning.test.labels).tolist() == [3, 3, 3]
    assert tuning.test.attributes(0) == benchmark.train.attributes(9)


# -------------------------------------------------------------------------------------- batches and pairs


def batches(count, labels, size=16, m=4, seed=0, start=0):
    return list(itertools.islice(balanced_batches(labels, size, m, seed, start), count))


MANY = np.repeat(np.arange(10), 7)


def test_batches_hold_m_images_of_each_class():
    for batch in batches(12, MANY):
        assert batch.shape == (16,) and len(set(batch.tolist())) == 16
        counts = np.bincount(MANY[batch])
        assert sorted(counts[counts > 0].tolist()) == [4] * 4


def test_batches_depend_on_their_arguments_alone_and_resume_anywhere():
    np.random.seed(0)
    whole = batches(15, MANY)  # four batches per epoch
    np.random.seed(1)
    shared = common_functions.NUMPY_RANDOM
    for start in (0, 1, 3, 4, 7, 9):
        resumed = batches(15 - start, MANY, start=start)
        assert all(np.array_equal(a, b) for a, b in zip(whole[start:], resumed, strict=True)), start
    assert common_functions.NUMPY_RANDOM is shared
    assert not all(np.array_equal(a, b) for a, b in zip(whole, batches(15, MANY, seed=1), strict=True))
    assert len({tuple(batch) for batch in whole}) == 15
    assert set(np.concatenate(batches(60, MANY)).tolist()) == set(range(len(MANY)))


def test_small_datasets_get_smaller_batches():
    labels = np.repeat(np.arange(3), 5)
    for batch in batches(4, labels, size=64):
        assert np.bincount(labels[batch]).tolist() == [4, 4, 4]


def test_pairs_are_balanced_distinct_and_in_both_orders():
    labels = np.repeat(np.arange(4), 4)  # 24 same, 96 different
    stream = PairStream(labels, np.random.default_rng(0))
    seen, flipped = [], 0
    for _ in range(6):
        pairs, same = stream.draw(8)
        assert pairs.shape == (8, 2) and same.sum() == 4
        assert same[:4].sum() == 2, "any first few pairs are balanced, too"
        assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()
        seen += [frozenset(pair) for pair in pairs.tolist()]
        flipped += int((pairs[:, 0] > pairs[:, 1]).sum())
    assert len(seen) == len(set(seen)) == 48 and all(len(pair) == 2 for pair in seen)
    assert 12 < flipped < 36
    again, _ = PairStream(labels, np.random.default_rng(0)).draw(8)
    assert [frozenset(pair) for pair in again.tolist()] == seen[:8]


def test_an_odd_draw_and_a_kind_that_runs_out():
    pairs, same = PairStream(np.repeat(np.arange(4), 4), np.random.default_rng(0)).draw(7)
    assert len(pairs) == 7 and same.sum() == 3
    stream = PairStream(np.array([0, 0, 1, 2]), np.random.default_rng(0))  # 1 same, 5 different
    pairs, same = stream.draw(4)
    assert len(pairs) == 4 and same.sum() == 1
    assert len(stream.draw(4)[0]) == 2
    pairs, same = stream.draw(4)
    assert pairs.shape == (0, 2) and same.shape == (0,)
    pairs, same = PairStream(np.zeros(4, dtype=int), np.random.default_rng(0)).draw(4)
    assert len(pairs) == 4 and same.all()


def test_hard_pairs_come_first_and_no_pair_is_lost():
    labels = np.repeat(np.arange(6), 2)
    embeddings = np.random.default_rng(1).normal(size=(12, 5))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    def different(hard):
        stream = PairStream(labels, np.random.default_rng(0), embeddings, hard, hard_pool=10)
        pairs, same = stream.draw(66)
        return pairs[~same]

    similarity = [[float(embeddings[a] @ embeddings[b]) for a, b in different(hard)] for hard in (0.0, 0.5, 1.0)]
    assert sorted(similarity[0]) == pytest.approx(sorted(similarity[2])) and len(similarity[0]) == 60, "every pair, once"
    assert sorted(similarity[2][:10]) == pytest.approx(sorted(similarity[2])[-10:]), "hard = 1: the nearest ten come first"
    assert np.mean(similarity[0][:10]) < np.mean(similarity[1][:10]) < np.mean(similarity[2][:10])


# -------------------------------------------------------------------------------------------- pre-training

RECIPE = Recipe(
    vision_steps=2, text_steps=2, steps=5, families=20, families_per_batch=4, width=48, vision_depth=3, text_depth=3, warmup=1
)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network is needed")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_minuscule_rebuild_makes_a_loadable_checkpoint(tmp_path, monkeypatch, no_network):
    tasks = itertools.cycle(["describe", "text", "compare", "generic", "compare"])
    monkeypatch.setattr(pretraining, "draw_task", lambda *args: next(tasks))
    said = []
    log = pretrain(RECIPE, tmp_path / "one", said.append)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "recipe.json",
        "training_log.json",
        "README.md",
    } <= names
    assert read_json(tmp_path / "one" / "recipe.json") == json.loads(json.dumps(asdict(RECIPE)))
    assert read_json(tmp_path / "one" / "training_log.json") == log
    assert [(row["stage"], row["step"]) for row in log] == [("vision", 2), ("text", 2), ("language", 5)]
    assert {"describe", "text", "compare", "generic", "contrastive"} <= set(log[-1])
    assert all(np.isfinite(v) for row in log for name, v in row.items() if name != "stage") and said
    assert "pool_of" in (tmp_path / "one" / "README.md").read_text()

    tower, supervisor = load_supervisor(tmp_path / "one", IMAGE_SIZE)
    assert torch.equal(supervisor.head.weight, supervisor.language_model.get_input_embeddings().weight)
    checkpoints.build_checkpoint(RECIPE, tmp_path / "untrained")
    untrained, _ = load_supervisor(tmp_path / "untrained", IMAGE_SIZE)
    changed = [not torch.equal(a, b.half().float()) for a, b in zip(tower.parameters(), untrained.parameters(), strict=True)]
    assert all(changed), "every tower parameter is pre-trained"
    assert not any(p.requires_grad for p in supervisor.language_model.parameters())

    pretrain(RECIPE, tmp_path / "two", said.append)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1], "the recipe determines the weights"


def test_the_pre_training_pool_holds_two_images_of_each_combination(tmp_path):
    checkpoints.build_checkpoint(RECIPE, tmp_path)
    tower, _ = load_supervisor(tmp_path, IMAGE_SIZE)
    pool = render_pool(replace(RECIPE, families=3), BIRDS, tower, lambda text: None)
    assert pool.pixels.shape[0] == len(pool.combinations) == 12
    pixels, truth = pool.batch(np.array([2, 0]))
    assert truth == pool.combinations[8:12] + pool.combinations[:4]
    assert truth[0] == truth[1] and truth[2] == truth[3] and truth[0] != truth[2]
    assert pixels.dtype == torch.float32 and pixels.abs().max() <= 1
    assert (pixels[0] - pixels[1]).abs().max() > 0.1, "two images, not one twice"
    assert all(pool_of(item) == PRETRAINING for item in pool.combinations)


def test_every_text_of_the_miniature_world_is_few_tokens(tmp_path):
    checkpoints.build_checkpoint(RECIPE, tmp_path)
    _, supervisor = load_supervisor(tmp_path, IMAGE_SIZE)
    rng = np.random.default_rng(0)
    answers = text_comparisons(20, VOCABULARY, rng)
    assert {len(supervisor.answer_ids(answer)) for answer in answers} == {56}, "batches of answers need no padding"
    assert all(supervisor.decode(supervisor.answer_ids(answer)) == answer for answer in answers)
    foreign = "Größe: 3 cm — 鳥 🐦\n"
    assert supervisor.decode(supervisor.answer_ids(foreign)) == foreign


FROZEN = {  # of specification, drawing code and vocabulary; a change needs a new version, and everything measured on it again
    "miniature_birds": "c006c19357",
    "miniature_cars": "66efa0a67e",
    "miniature_aircraft": "373cc7dded",
    "miniature_aves": "5a93bd5a3e",
}


def test_the_benchmarks_are_frozen():
    specs = BENCHMARKS | {NAME: FULL}  # this module's fixtures may have shrunk it
    assert {name: world.spec_digest(spec) for name, spec in specs.items()} == FROZEN
