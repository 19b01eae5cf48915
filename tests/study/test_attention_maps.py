"""Attention maps per attribute: taken as training takes them, and held against the true regions rightly."""

import numpy as np
import pytest
import torch

from saga_lib.prompts import comparison_prompt
from saga_lib.supervisor.replay import completion_log_probs, teacher_attention
from saga_lib.vocabulary import load_vocabulary
from saga_study.datasets.loading import load_benchmark
from saga_study.findings import attention_maps, figures, pointing, samples
from saga_study.methods import make_config
from saga_study.miniature import world
from saga_study.miniature.scene import FIELD, STUDIO, render
from saga_study.miniature.world import DOMAINS, benchmark_classes, benchmark_spec

SMALL = "miniature_birds+train_classes=2+validation_classes=2+test_classes=4"
VOCABULARY = load_vocabulary("miniature_birds")
NAMES = VOCABULARY.attribute_names


def random_maps(shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_pairs_are_balanced_and_take_no_image_twice():
    labels = np.repeat(np.arange(12), 5)
    pairs, same = attention_maps.draw_disjoint_pairs(labels, 24, np.random.default_rng(0))
    assert pairs.shape == (24, 2) and same.sum() == 12 and len(np.unique(pairs)) == 48
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()
    assert len(np.unique(labels[pairs[same]])) == 12  # every class before any comes twice
    again, _ = attention_maps.draw_disjoint_pairs(labels, 24, np.random.default_rng(0))
    other, _ = attention_maps.draw_disjoint_pairs(labels, 24, np.random.default_rng(1))
    assert (again == pairs).all() and (other != pairs).any()
    few, kinds = attention_maps.draw_disjoint_pairs(np.repeat(np.arange(3), 2), 50, np.random.default_rng(0))
    assert len(few) == 3 and kinds.all() and len(np.unique(few)) == 6  # images run out


def test_cover_is_that_of_counting_fine_cells():
    rng = np.random.default_rng(0)
    fine = 20  # cells per pixel
    centres = (np.arange(24 * fine) + 0.5) / fine
    for _ in range(5):
        x0, y0 = np.round(rng.uniform(0, 15, 2), 1)
        x1, y1 = np.round((x0, y0) + rng.uniform(0.5, 9, 2), 1)
        inside = ((centres >= y0) & (centres < y1))[:, None] & ((centres >= x0) & (centres < x1))[None]
        counted = inside.reshape(4, 6 * fine, 4, 6 * fine).mean((1, 3)).ravel()
        np.testing.assert_allclose(attention_maps.patch_cover((x0, y0, x1, y1), 24, 4), counted, atol=1e-9)
    np.testing.assert_allclose(attention_maps.patch_cover((0, 0, 24, 24), 24, 4), 1)
    both = attention_maps.union_cover([(0, 0, 6, 6), (3, 3, 9, 6)], 24, 4)  # overlapping boxes count once
    np.testing.assert_allclose(both[:2], [1, 0.25], atol=1e-9)
    assert both[2:].sum() == 0


def test_slivers_are_not_a_regions_patches():
    cover = attention_maps.patch_cover((6, 6, 13, 12), 24, 4)[None, None]  # one patch, and a sixth of the next
    regions = attention_maps.Regions([{}], np.concatenate([cover, 0 * cover], 1), cover[0])
    assert np.flatnonzero(regions.patches[0, 0]).tolist() == [5] and not regions.patches[0, 1].any()
    small = attention_maps.patch_cover((5, 7, 7, 9), 24, 4)[None, None]  # covers no patch by half, yet lies in two
    assert np.flatnonzero(attention_maps.Regions([{}], small, small[0]).patches[0, 0]).tolist() == [4, 5]


def test_pointing_is_that_of_brute_force():
    maps = random_maps((7, 3, 16))
    maps[2, 1] = np.nan
    patches = np.random.default_rng(1).uniform(size=(7, 3, 16)) < 0.3
    patches[4, 2] = False
    hits = attention_maps.pointing_hits(maps, patches)
    for image in range(7):
        for told in range(3):
            for region in range(3):
                if np.isnan(maps[image, told]).any() or not patches[image, region].any():
                    assert np.isnan(hits[image, told, region])
                    continue
                best = max(range(16), key=lambda patch: maps[image, told, patch])
                assert hits[image, told, region] == float(patches[image, region, best])


def test_chance_is_what_random_maps_score():
    regions = regions_of(600, seed=3)
    table = pointing.pointing_table({"t": [described(random_maps((600, len(NAMES), 36), 5))]}, regions, NAMES).set_index("attribute")
    mean = table.loc[samples.ALL_ATTRIBUTES]
    assert abs(mean["pointing"] - mean["chance"]) < 2 and abs(mean["others"] - mean["chance"]) < 2
    assert abs(mean["swapped"] - mean["chance"]) < 2 and abs(mean["mass"] - 1) < 0.05
    assert mean["pointing low"] < mean["pointing"] < mean["pointing high"] and mean["maps"] == 600 * len(NAMES)


def regions_of(count, seed=0, same_place=False):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(2, 30, (1 if same_place else count, len(NAMES), 2)).repeat(count if same_place else 1, 0)
    boxes = [{name: (*map(float, (x, y)), float(x + 11), float(y + 9)) for name, (x, y) in zip(NAMES, c, strict=True)} for c in corners]
    cover = np.array([[attention_maps.patch_cover(image[name], 48, 6) for name in NAMES] for image in boxes])
    return attention_maps.Regions(boxes, cover, np.array([attention_maps.union_cover(list(image.values()), 48, 6) for image in boxes]))


def described(maps, layer=0):
    count = len(maps)
    maps, means = {layer: maps}, {layer: maps.mean(1)}
    return attention_maps.Described([""] * (count // 2), [{}] * count, [None] * (count // 2), maps, means, torch.zeros(0))


def test_controls_tell_looking_from_a_fixed_place_and_from_the_subject():
    moving, fixed = regions_of(80, 1), regions_of(80, 1, same_place=True)
    perfect = {"t": [described(moving.cover / moving.cover.sum(-1, keepdims=True))]}
    mean = pointing.pointing_table(perfect, moving, NAMES).set_index("attribute").loc[samples.ALL_ATTRIBUTES]
    assert mean["pointing"] == 100 and mean["swapped"] < 40 and mean["others"] < 40 and mean["mass"] > 5
    still = {"t": [described(fixed.cover / fixed.cover.sum(-1, keepdims=True))]}
    mean = pointing.pointing_table(still, fixed, NAMES).set_index("attribute").loc[samples.ALL_ATTRIBUTES]
    assert mean["pointing"] == mean["swapped"] == 100 and mean["others"] < 60
    subject = {"t": [described(np.repeat(moving.union[:, None] / moving.union.sum(-1)[:, None, None], len(NAMES), 1))]}
    mean = pointing.pointing_table(subject, moving, NAMES).set_index("attribute").loc[samples.ALL_ATTRIBUTES]
    assert abs(mean["pointing"] - mean["others"]) < 2


def test_mass_is_relative_to_area():
    cover = attention_maps.patch_cover((0, 0, 12, 24), 24, 4)  # half of the image
    assert attention_maps.relative_mass(np.full(16, 1 / 16), cover) == pytest.approx(1)
    assert attention_maps.relative_mass(cover / cover.sum(), cover) == pytest.approx(2)
    assert np.isnan(attention_maps.relative_mass(np.full(16, 1 / 16), np.zeros(16)))


def test_intervals_have_the_textbook_width_and_skip_what_is_missing():
    values = np.random.default_rng(0).normal(size=(400, 3))
    values[::2, 2] = np.nan
    frame = pointing.mean_with_interval(values)
    np.testing.assert_allclose(frame["mean"][:3], np.nanmean(values, 0))
    assert frame["mean"][3] == pytest.approx(np.nanmean(values, 0).mean())
    expected = 2 * 1.96 * np.nanstd(values, 0) / np.sqrt([400, 400, 200])
    np.testing.assert_allclose((frame["high"] - frame["low"])[:3], expected, rtol=0.12)
    assert pointing.mean_with_interval(np.full((5, 1), np.nan))["mean"].isna().all()


def test_intervals_over_images_and_seeds_are_those_of_drawing_both():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 60, 2)) + np.array([-0.3, 0.1, 0.2])[:, None, None]
    values[1, :7, 1] = np.nan
    frame = pointing.mean_with_interval(values)
    np.testing.assert_allclose(frame["mean"][:2], np.nanmean(values, (0, 1)))
    draws = [np.nanmean(values[rng.integers(3, size=3)][:, rng.integers(60, size=60)], (0, 1)) for _ in range(4000)]
    np.testing.assert_allclose(frame[["low", "high"]].to_numpy()[:2].T, np.quantile(draws, [0.025, 0.975], axis=0), atol=0.08)
    np.testing.assert_allclose(pointing.mean_with_interval(values[:1]), pointing.mean_with_interval(values[0]))
    one, low, high = pointing.difference_with_interval(values, values[::-1] - 3)
    assert one == pytest.approx(3) and low < 3 < high
    assert pointing.difference_with_interval(values, values - 3) == pytest.approx((3, 3, 3))  # both sides are drawn alike


def test_several_seeds_of_a_tower_are_averaged():
    regions = regions_of(80, 2)
    maps = [regions.cover / regions.cover.sum(-1, keepdims=True), *(random_maps((80, len(NAMES), 36), seed) for seed in (1, 2))]
    table = pointing.pointing_table({"before": [described(maps[0])], "after": [described(one) for one in maps]}, regions, NAMES)
    alone = [pointing.pointing_table({"after": [described(one)]}, regions, NAMES) for one in maps]
    after = table[table["tower"] == "after"].reset_index(drop=True)
    for what in ("pointing", "chance", "others", "swapped", "mass"):
        np.testing.assert_allclose(after[what], np.mean([one[what] for one in alone], 0))
    assert set(after["seeds"]) == {3} and set(table.loc[table["tower"] == "before", "seeds"]) == {1}
    mean = after.set_index("attribute").loc[samples.ALL_ATTRIBUTES]
    assert mean["maps"] == 3 * 80 * len(NAMES)
    assert mean["pointing high"] - mean["pointing low"] > 30, "seeds differ, and the interval says so"


def test_reading_and_looking_are_compared_within_attributes():
    regions = regions_of(60, 2)
    maps = random_maps((60, len(NAMES), 36), 7)
    right = np.random.default_rng(0).uniform(size=(60, len(NAMES))) < 0.5
    perfect = regions.cover / regions.cover.sum(-1, keepdims=True)
    maps[right] = perfect[right]  # looks at the part exactly where it says the right thing
    maps[~right] = (1 - regions.patches[~right]) / (1 - regions.patches[~right]).sum(-1, keepdims=True)
    found = pointing.reading_difference([described(maps)], regions, right[None], 0)
    assert found == (100.0, 100.0, 100.0)
    assert np.isnan(pointing.reading_difference([described(maps)], regions, right[None] | True, 0).difference)


def test_the_words_follow_the_layers_whichever_is_best():
    regions = regions_of(60, 2)
    good, bad = regions.cover / regions.cover.sum(-1, keepdims=True), random_maps((60, len(NAMES), 36))
    for chosen, expected in ((0, "Best is ℓ = 0, the one that training uses, and its lead"), (1, "Best is ℓ = 0, not the ℓ = 1")):
        one = described(good, 0)
        one.maps[1] = bad
        table = pointing.pointing_table({"t": [one]}, regions, NAMES)
        differences = pointing.layer_differences({"t": [one]}, regions, chosen)
        (sentence,) = pointing.layer_sentences(table, differences, chosen)
        assert expected in sentence, sentence
    gap = table[table["attribute"] == samples.ALL_ATTRIBUTES].set_index("layer")["pointing"]
    assert differences["difference"].tolist() == [pytest.approx(gap[1] - gap[0])]


def test_pooler_measures():
    teacher = random_maps((50, 16))
    even = np.full((50, 16), 1 / 16)
    union = np.tile(attention_maps.patch_cover((0, 0, 12, 24), 24, 4), (50, 1))
    half = union / union.sum(-1, keepdims=True)
    readings = {"pf_attention": (teacher, even), "pf_kl": (teacher, teacher), "saga_pf": (half, half)}
    table = pointing.pooler_table(readings, union).set_index("method")
    assert table.loc["pf_attention", "KL"] == pytest.approx(table.loc["pf_attention", "KL even"])
    assert table.loc["pf_kl", "KL"] == pytest.approx(0) and table.loc["pf_attention", "entropy β"] == pytest.approx(np.log(16))
    assert table.loc["saga_pf", "subject β"] == pytest.approx(2) and table.loc["pf_attention", "subject β"] == pytest.approx(1)
    both = {"pf_kl": (np.stack([teacher, teacher]), np.stack([even, teacher]))}  # two seeds
    row, alone = pointing.pooler_table(both, union).set_index("method").loc["pf_kl"], table.loc["pf_kl"]
    assert row["seeds"] == 2 and row["KL low"] == pytest.approx(0) and row["KL even"] == pytest.approx(alone["KL even"])
    assert row["KL"] == pytest.approx(alone["KL even"] / 2) and row["subject β"] == pytest.approx((1 + alone["subject ᾱ"]) / 2)
    words = pointing.pooler_sentences(table.reset_index())
    assert "0 % of the way" in words[0] and "100 % of the way" in words[1]


# ---------------------------------------------------------------------------------- the real thing, in small


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_benchmark(SMALL, tmp_path_factory.mktemp("data"), images_per_class=2)


def test_regions_are_those_that_the_renderer_drew(small):
    spec = benchmark_spec(SMALL)
    indices = [5, 0, 3]
    regions = attention_maps.true_regions(small.test, indices, NAMES, 6)
    classes = benchmark_classes(spec)
    for place, index in enumerate(indices):
        number = 2 + 2 + index // 2  # train and validation classes come first
        rng = np.random.default_rng([spec.seed, number, index % 2])
        style, habitat = STUDIO.toward(FIELD, spec.shift), world._habitat(spec, number, index % 2)
        image, marks = render(DOMAINS["birds"].draw, classes[number], rng, spec.nuisance, style, habitat)
        assert np.array_equal(np.asarray(image), np.asarray(small.test.open(index)))
        for at, name in enumerate(NAMES):
            assert regions.boxes[place][name] == pytest.approx(marks[name], abs=0.051)
            np.testing.assert_allclose(regions.cover[place, at], attention_maps.patch_cover(marks[name], 48, 6), atol=0.03)
        assert (regions.union[place] >= regions.cover[place].max(0) - 0.05).all()


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_what_is_measured_is_told_and_drawn_whatever_the_number_of_seeds(num_seeds, small):
    indices = np.arange(8)
    regions = attention_maps.true_regions(small.test, indices, NAMES, 6)
    truth = [small.test.attributes(int(i)) for i in indices]

    def tower(seed):
        maps = {layer: random_maps((8, len(NAMES), 36), 10 * seed + layer) for layer in (0, 1)}
        said = [{name: true[name] if (n + number) % 2 else "?" for n, name in enumerate(NAMES)} for number, true in enumerate(truth)]
        means = {layer: one.mean(1) for layer, one in maps.items()}
        return attention_maps.Described([""] * 4, said, [True] * 4, maps, means, torch.zeros(8, 36, 4))

    towers = {"pre-trained": [tower(1)]} | {m: [tower(at + s) for s in range(num_seeds)] for m, at in (("pf_kl", 2), ("saga_pf", 5))}
    beta = {method: [random_maps((8, 36), seed) for seed in range(num_seeds)] for method in ("pf_kl", "saga_pf")}
    seeds = {method: list(range(num_seeds)) for method in beta}
    held = attention_maps.HeldOut(small.test, indices, np.array([True, True, False, False]), list(NAMES), 0, seeds, towers, beta, regions)
    assert [one.shape for one in held.readings()["pf_kl"]] == [(num_seeds, 8, 36)] * 2
    poolers = pointing.pooler_table(held.readings(), regions.union)
    assert list(poolers["images"]) == [8, 8] and list(poolers["seeds"]) == [num_seeds] * 2
    table = pointing.pointing_table(held.compared, regions, NAMES)
    told = pointing.conclusions(held, table, poolers)
    right = np.mean([one.right(held.truth, held.names).mean() for one in towers["saga_pf"]])
    assert any(line.startswith(f"SAGA: {100 * right:.0f} % of attributes are named rightly") for line in told)
    covered = "images only" if num_seeds == 1 else "images and seeds;"
    assert told[-1].startswith(("One seed", "2 seeds")[num_seeds - 1]) and covered in told[-1]
    held.seeds["pf_kl"] = [0, 1, 2]
    covered = "images and, where there are several, of seeds" if num_seeds == 1 else "images and seeds;"
    assert covered in pointing.conclusions(held, table, poolers)[-1]
    first, second = figures.attention_overlays(held, 2, "t"), figures.pooler_overlays(held, 2, "t")
    assert len(first.axes) >= 2 * 2 * len(NAMES) and len(second.axes) >= 2 * 4


def test_an_attribute_that_few_images_tell_of_is_left_out_however_many_seeds_read_them():
    values = np.full((3, 20, 2), np.nan)
    values[:, :10, 0], values[:, :2, 1] = 1.0, 1.0  # of the second attribute two images, by three seeds
    other = np.where(np.arange(20)[:, None] >= 10, 0.0, np.nan) * np.ones((3, 1, 2))
    assert pointing.difference_with_interval(values, other) == (1.0, 1.0, 1.0)
    assert np.isnan(pointing.difference_with_interval(values[..., 1:], other[..., 1:])).all()


def test_photographs_have_no_regions(small):
    from dataclasses import replace

    assert attention_maps.true_regions(replace(small.test, class_attributes=None), [0], NAMES, 6) is None


@pytest.fixture(scope="module")
def seen(small):
    config = make_config("smoke", SMALL, "saga_pf", 0)
    tower, supervisor = attention_maps.load_frozen(config)
    pixels = tower.preprocess(small.test.images([0, 1, 2, 5, 4, 7]))
    seen = attention_maps.describe(tower, supervisor, VOCABULARY, pixels, [0, 2], config.max_new_tokens, batch_pairs=2)
    return supervisor, seen, tower, pixels


def test_the_mean_map_is_the_teacher_of_training(seen):
    supervisor, found, tower, pixels = seen
    ids = supervisor.prompt_ids(comparison_prompt(VOCABULARY))
    assert len(found.texts) == 3 and [set(said) for said in found.said] == [set(NAMES)] * 6
    for pair, text in enumerate(found.texts):  # one by one, and by the function that training uses
        answer = supervisor.answer_ids(text)
        tokens = torch.tensor([answer])
        with torch.no_grad():
            prefix = supervisor.prefill(ids, tower(pixels[2 * pair : 2 * pair + 2]))
            for layer in (0, 2):
                _, tap = completion_log_probs(supervisor, prefix.fork(), tokens, torch.ones_like(tokens, dtype=torch.bool), layer)
                teacher = teacher_attention(supervisor, tap, 0, answer, ids).numpy()
                np.testing.assert_allclose(found.teacher[layer][2 * pair : 2 * pair + 2], teacher, atol=1e-5)


def test_maps_are_distributions_that_differ_by_attribute_and_layer(seen):
    found = seen[1]
    for layer in (0, 2):
        assert found.maps[layer].shape == (6, len(NAMES), 36)
        np.testing.assert_allclose(found.maps[layer].sum(-1), 1)
        assert np.abs(found.maps[layer][:, 0] - found.maps[layer][:, 1]).max() > 0.01
    assert np.abs(found.maps[0] - found.maps[2]).max() > 0.05
    truth = [{name: found.said[i][name] if name != NAMES[0] else "?" for name in NAMES} for i in range(6)]
    right = found.right(truth, NAMES)
    assert not right[:, 0].any() and right[:, 1:].all()


def test_the_figure_puts_its_cross_on_the_largest_patch(small):
    maps = random_maps((1, 2, 36))
    maps[0, 1] = np.nan
    boxes = [[(10.0, 10.0, 20.0, 22.0), None]]
    row = figures.OverlayRow(small.test.open(0), "row", maps[0], boxes=boxes[0])
    figure = figures.overlay_grid([row], ["a", "b"], "unit")
    first, second = figure.axes[1], figure.axes[2]
    y, x = divmod(int(maps[0, 0].argmax()), 6)
    for line in first.lines:
        assert [float(line.get_xdata()[0]), float(line.get_ydata()[0])] == [8 * x + 3.5, 8 * y + 3.5]
    assert len(first.lines) == 2 and len(first.patches) == 2 and not second.lines and not second.patches
    assert first.patches[0].get_xy() == (9.5, 9.5) and first.patches[0].get_width() == 10
