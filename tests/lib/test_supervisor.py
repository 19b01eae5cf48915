"""The fast path through the supervisor equals the stock transformers model, value and gradient, in float64."""

import json

import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, as_published, random_answer, random_images
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from saga_lib.common.errors import SagaError
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.reading import description_prompt
from saga_lib.supervisor.attention import capture_attention, image_attention
from saga_lib.supervisor.base import Prefix
from saga_lib.supervisor.caches import DecodeCache, SharedDecodeCache
from saga_lib.supervisor.replay import attribute_tokens, replay_log_probs, teacher_attention
from saga_lib.supervisor.rollouts import Rollouts, Sampling, comparison_draft, generate_rollouts, nucleus, sample
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import load_vocabulary

PAIRS, GROUP = 2, 3


@pytest.fixture(scope="module")
def tower(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def stock(checkpoint):
    """The model as transformers loads it."""
    return Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def eager(checkpoint):
    """The same with eager attention, the only one that returns attention weights (its softmax is float32)."""
    return Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float64, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def prompt_ids(supervisor):
    return supervisor.prompt_ids(comparison_prompt(VOCABULARY))


@pytest.fixture(scope="module")
def pixels(tower):
    return tower.preprocess(random_images(2 * PAIRS))  # (4, 36, 192)


@pytest.fixture
def restore_eos(supervisor):
    before = supervisor.eos_token_id
    yield
    supervisor.eos_token_id = before


def stock_inputs(stock, ids, pixels):
    """Return the arguments of a stock forward over rows `ids` (B, S) and their images `pixels` (n, patches, d)."""
    side = int(pixels.shape[1] ** 0.5)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == stock.config.image_token_id).int(),
        "pixel_values": pixels.flatten(0, 1).double(),
        "image_grid_thw": torch.tensor([[1, side, side]]).expand(len(pixels), -1),
    }


def completions(supervisor, count):
    """Return right-padded tokens and mask (R, T) of different lengths: true answers, cut ones and a single token."""
    rows = [supervisor.answer_ids(random_answer(seed)) for seed in range(count)]
    rows = [row[: len(row) - 7 * i] if i % 2 else row for i, row in enumerate(rows)]
    rows[-1] = rows[-1][:1]
    width = max(map(len, rows))
    tokens = torch.full((count, width), supervisor.eos_token_id)
    mask = torch.zeros(count, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    return tokens, mask


def tower_gradients(tower):
    return {name: p.grad.clone() for name, p in tower.visual.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("num_images", [1, 2])
def test_prompt_ids_and_pixels_equal_the_stock_processor(checkpoint, supervisor, tower, num_images):
    processor = AutoProcessor.from_pretrained(checkpoint)
    prompt = (comparison_prompt if num_images == 2 else description_prompt)(VOCABULARY)
    images = random_images(num_images)
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    expected = processor(text=[text], images=images, return_tensors="pt")
    assert torch.equal(supervisor.prompt_ids(prompt, num_images), expected["input_ids"][0])
    ours = tower.preprocess(images)
    assert ours.shape == (num_images, 36, 192)
    torch.testing.assert_close(ours.flatten(0, 1), expected["pixel_values"], rtol=0, atol=1e-6)


def test_preprocess_crops_to_the_centre_square_and_accepts_any_mode(tower):
    [wide] = random_images(1, size=(96, 48))
    square = wide.crop((24, 0, 72, 48))
    torch.testing.assert_close(tower.preprocess([wide]), tower.preprocess([square]))
    assert tower.preprocess([square.convert("L"), square.convert("RGBA"), square.resize((100, 80))]).shape[0] == 3


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_positions_equal_get_rope_index(supervisor, stock, num_images):
    ids = supervisor.prompt_ids(comparison_prompt(VOCABULARY), num_images)
    ids = torch.cat([ids, torch.tensor(supervisor.answer_ids(random_answer(0)))])[None]
    grid = torch.tensor([[1, 6, 6]] * num_images) if num_images else None
    types = (ids == supervisor.image_token_id).int()
    expected, delta = stock.model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=torch.ones_like(ids)
    )
    ours = supervisor.positions(ids)
    assert torch.equal(ours, expected.to(ours.dtype))
    assert int(ours.max()) + 1 == ids.shape[1] + int(delta)
    if num_images:
        assert int(ours.max()) + 1 < ids.shape[1], "an image must advance positions by its side, not by its tokens"


def test_image_columns_are_the_placeholders_in_order(supervisor, prompt_ids):
    first, second = supervisor.image_columns(prompt_ids)
    assert len(first) == len(second) == 36
    assert first[-1] < second[0]
    assert (prompt_ids[torch.cat([first, second])] == supervisor.image_token_id).all()


def test_full_sequences_equal_the_stock_forward(supervisor, tower, stock, prompt_ids, pixels):
    ids = prompt_ids.expand(PAIRS, -1)
    with torch.no_grad():
        logits = supervisor.head(supervisor.forward_sequences(ids, tower(pixels)))
        expected = stock(**stock_inputs(stock, ids, pixels)).logits
    assert expected.std() > 0.5, "the check needs a model whose logits are not uniform"
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------- replay


@pytest.fixture(scope="module")
def reference(stock, supervisor, prompt_ids, pixels):
    """Log-probs and tower gradients of Σ w·log p, one stock full-sequence forward per completion."""
    tokens, mask = completions(supervisor, PAIRS * GROUP)
    weights = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    stock.requires_grad_(False)
    stock.model.visual.requires_grad_(True)
    stock.model.visual.zero_grad()
    log_probs = torch.zeros(tokens.shape, dtype=torch.float64)
    for row in range(len(tokens)):
        length, pair = int(mask[row].sum()), row // GROUP
        ids = torch.cat([prompt_ids, tokens[row, :length]])[None]
        logits = stock(**stock_inputs(stock, ids, pixels[2 * pair : 2 * pair + 2])).logits[0, len(prompt_ids) - 1 : -1]
        scored = logits.log_softmax(-1).gather(-1, tokens[row, :length, None])[:, 0]
        (weights[row, :length] * scored).sum().backward()
        log_probs[row, :length] = scored.detach()
    gradients = {name: p.grad.clone() for name, p in stock.model.visual.named_parameters()}
    stock.model.visual.zero_grad()
    return tokens, mask, weights, log_probs, gradients


def replay_gradients(supervisor, tower, prompt_ids, pixels, tokens, mask, weights, chunk=4096):
    """Return log-probs and tower gradients of the fast path, gradients meeting at boundary tensors."""
    tower.zero_grad()
    outputs = tower(pixels)
    boundary = outputs.boundary()
    log_probs, _ = replay_log_probs(supervisor, prompt_ids, boundary, tokens, mask, chunk=chunk)
    (weights * log_probs).sum().backward()
    torch.autograd.backward(outputs.tensors(), [t.grad for t in boundary.tensors()])
    gradients = tower_gradients(tower)
    tower.zero_grad()
    return log_probs.detach(), gradients


def relative_error(ours, expected):
    """Return the largest ‖ours - expected‖ / ‖expected‖ over tensors."""
    return max(float((ours[name] - e).norm() / e.norm().clamp_min(1e-12)) for name, e in expected.items())


def test_replay_equals_the_stock_model_in_log_probs_and_gradients(supervisor, tower, prompt_ids, pixels, reference):
    tokens, mask, weights, expected, expected_gradients = reference
    log_probs, gradients = replay_gradients(supervisor, tower, prompt_ids, pixels, tokens, mask, weights)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-10)
    assert (log_probs[~mask] == 0).all()
    assert set(gradients) == set(expected_gradients), "every tower tensor, mergers included, must get a gradient"
    live = {name: g for name, g in expected_gradients.items() if g.norm() > 1e-8}
    assert len(live) > 0.8 * len(expected_gradients)
    assert relative_error(gradients, live) < 1e-5
    language = [*supervisor.language_model.parameters(), *supervisor.head.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in language)


def test_a_detached_cache_gives_other_gradients(supervisor, tower, prompt_ids, pixels, reference, monkeypatch):
    """Control: were the gradient through the shared prefix lost, the test above would notice."""
    tokens, mask, weights, expected, expected_gradients = reference
    expand = Prefix.expand

    def detached(prefix, group_size):
        for layer in prefix.cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return expand(prefix, group_size)

    monkeypatch.setattr(Prefix, "expand", detached)
    log_probs, gradients = replay_gradients(supervisor, tower, prompt_ids, pixels, tokens, mask, weights)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-10)
    assert relative_error(gradients, {n: g for n, g in expected_gradients.items() if g.norm() > 1e-8}) > 0.1


def test_replay_reads_deepstack_features(supervisor, tower, prompt_ids, pixels, reference):
    tokens, mask, _, expected, _ = reference
    with torch.no_grad():
        images = tower(pixels)
        blind = VisualTokens(images.merged, tuple(torch.zeros_like(f) for f in images.deepstack))
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, blind, tokens, mask)
    assert (log_probs - expected).abs().max() > 1e-2


def test_chunked_log_probs_equal_unchunked_ones(supervisor, tower, prompt_ids, pixels, reference):
    tokens, mask, weights, *_ = reference
    whole = replay_gradients(supervisor, tower, prompt_ids, pixels, tokens, mask, weights)
    parts = replay_gradients(supervisor, tower, prompt_ids, pixels, tokens, mask, weights, chunk=3)
    torch.testing.assert_close(parts[0], whole[0], rtol=0, atol=1e-12)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_log_probs_never_holds_more_logits_than_a_chunk(supervisor):
    seen = []
    handle = supervisor.head.register_forward_hook(lambda *args: seen.append(args[2].shape[0]))
    hidden = torch.randn(2, 5, supervisor.head.in_features, dtype=torch.float64, requires_grad=True)
    try:
        supervisor.log_probs(hidden, torch.zeros(2, 5, dtype=torch.long), chunk=4).sum().backward()
    finally:
        handle.remove()
    assert max(seen) == 4
    assert sum(seen) == 20, "each chunk is recomputed in the backward, so that its logits need not be kept"


def test_replay_of_contained_images_only_reaches_those(supervisor, tower, prompt_ids, pixels, reference):
    tokens, mask, *_ = reference
    boundary = tower(pixels).boundary()
    log_probs, _ = replay_log_probs(supervisor, prompt_ids, boundary, tokens, mask)
    log_probs[:GROUP].sum().backward()  # the rollouts of the first pair
    for tensor in boundary.tensors():
        assert (tensor.grad[:2].flatten(1).norm(dim=1) > 0).all()
        assert (tensor.grad[2:] == 0).all()


# ----------------------------------------------------------------------------------------------- rollouts


def stock_greedy(stock, prompt_ids, pixels, eos, max_new_tokens):
    out = stock.generate(
        **stock_inputs(stock, prompt_ids[None], pixels), do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=eos, pad_token_id=0, suppress_tokens=[stock.config.image_token_id],
    )  # fmt: skip
    return out[0, len(prompt_ids) :].tolist()


def test_greedy_rollouts_equal_stock_generate_also_when_rows_end_early(
    supervisor, tower, stock, prompt_ids, restore_eos, monkeypatch
):
    pixels = tower.preprocess(random_images(8, seed=5))
    images = tower(pixels)
    free = generate_rollouts(supervisor, prompt_ids, images, Sampling(1, 14, temperature=0))
    # let a token that some rows say at different times be the end of turn, so that rows end early
    rows = free.tokens.tolist()
    first_use = {t: [row.index(t) if t in row else 99 for row in rows] for t in free.tokens.unique().tolist()}
    eos = max(first_use, key=lambda t: len({step for step in first_use[t] if step > 0}))
    assert len({step for step in first_use[eos] if step > 0}) > 1, "the check needs rows that end at different steps"
    supervisor.eos_token_id = eos

    widths, extend = [], type(supervisor).extend

    def counted(self, prefix, ids, start=0):
        widths.append(len(ids))
        return extend(self, prefix, ids, start)

    monkeypatch.setattr(type(supervisor), "extend", counted)
    rollouts = generate_rollouts(supervisor, prompt_ids, images, Sampling(2, 14, temperature=0))
    assert rollouts.tokens.shape[0] == 8 and widths[0] <= 8 and widths[-1] < widths[0], "finished rows must leave"
    for pair in range(4):
        expected = stock_greedy(stock, prompt_ids, pixels[2 * pair : 2 * pair + 2], eos, 14)
        for row in (2 * pair, 2 * pair + 1):
            assert rollouts.tokens[row][rollouts.mask[row]].tolist() == expected
            assert rollouts.finished[row].item() == (expected[-1] == eos)
            assert rollouts.texts[row] == supervisor.decode(expected)
    assert (rollouts.tokens[~rollouts.mask] == eos).all()


@pytest.mark.parametrize("kind", [DecodeCache, SharedDecodeCache])
def test_decoding_equals_the_stock_forward_also_when_rows_leave(supervisor, tower, stock, prompt_ids, kind):
    pairs, group = 4, 3
    pixels = tower.preprocess(random_images(2 * pairs, seed=3))
    tokens = torch.randint(0, 200, (pairs * group, 9), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([prompt_ids.expand(len(tokens), -1), tokens], 1)
    with torch.no_grad():
        expected = stock(**stock_inputs(stock, ids, pixels.view(pairs, 2, 36, -1).repeat_interleave(group, 0).flatten(0, 1)))
        expected = expected.logits[:, len(prompt_ids) :]
        prefix = supervisor.prefill(prompt_ids, tower(pixels))
        prefix.cache = kind(prefix.cache, group, tokens.shape[1] + 1)
        rows, start, shapes = torch.arange(pairs * group), 0, set()
        # tokens fed at once; rows that then leave: none, one, its whole pair, so many that the rest move together, …
        for count, leaving in ((1, []), (2, [4]), (1, [3, 5]), (2, [0, 2, 6, 9, 10, 11]), (1, [1]), (2, [])):
            fed = tokens[rows, start : start + count]
            wrong = torch.zeros_like(fed[:, :1])  # fed along and forgotten
            hidden = supervisor.extend(prefix, torch.cat([fed, wrong], 1), start)[:, :-1]
            prefix.cache.crop(1)
            torch.testing.assert_close(
                supervisor.head(hidden), expected[rows, start : start + count], rtol=0, atol=1e-9
            )
            start += count
            kept = torch.tensor([i for i, row in enumerate(rows.tolist()) if row not in leaving])
            prefix.cache.keep_rows(kept)
            rows = rows[kept]
            shapes.add(prefix.cache.layers[0][0].shape[:3])
    assert start == 9 and rows.tolist() == [7, 8]
    assert len(shapes) > 1, "buffers must shrink as rows leave"


def test_a_draft_saves_forward_passes_and_changes_no_answer(supervisor, tower, prompt_ids, restore_eos, monkeypatch):
    images = tower(tower.preprocess(random_images(8, seed=5)))
    passes, extend = [], type(supervisor).extend

    def counted(self, prefix, ids, start=0):
        passes.append(ids.shape)
        return extend(self, prefix, ids, start)

    def answers(draft, images=images, **options):
        passes.clear()
        generator = torch.Generator().manual_seed(4)
        return generate_rollouts(supervisor, prompt_ids, images, Sampling(GROUP, 12, draft=draft, **options), generator)

    monkeypatch.setattr(type(supervisor), "extend", counted)
    plain = answers(())
    supervisor.eos_token_id = plain.tokens[3, 6].item()  # some rows end early
    plain = answers(())
    assert plain.lengths.min() < plain.lengths.max() == 12
    common = plain.tokens.mode(0).values.tolist()
    for draft in (common, common[:5], [None, *common[1:3], None, *common[4:]], [7] * 40):
        drafted = answers(draft)
        assert torch.equal(drafted.tokens, plain.tokens) and torch.equal(drafted.mask, plain.mask)
    supervisor.eos_token_id = -1
    alike = answers((), images[:2], temperature=0)
    assert len(passes) == 11
    assert torch.equal(answers(alike.tokens[0].tolist(), images[:2], temperature=0).tokens, alike.tokens)
    assert len(passes) == 6, "every second token is fed along with the one before"


def test_the_draft_of_comparisons_is_what_all_true_answers_have_in_common(supervisor):
    draft = comparison_draft(supervisor, VOCABULARY)
    for seed in range(20):
        ids = supervisor.answer_ids(random_answer(seed))
        assert len(draft) == len(ids) - 1
        assert all(expected in (None, token) for expected, token in zip(draft, ids, strict=False))
    values = [place for places in attribute_tokens(supervisor, ids).values() for place in places]
    assert all(draft[place] is None for place in values)
    assert sum(token is not None for token in draft) > len(draft) / 2
    assert comparison_draft(supervisor, load_vocabulary("cars")) == [], "free texts have nothing to rely on"


def test_truncated_rollouts_are_flagged(supervisor, tower, prompt_ids, pixels):
    rollouts = generate_rollouts(supervisor, prompt_ids, tower(pixels), Sampling(2, 5, temperature=0))
    assert rollouts.tokens.shape == (2 * PAIRS, 5)
    assert not rollouts.finished.any() and rollouts.mask.all()


def test_rows_that_end_with_the_last_allowed_token_are_finished(supervisor, tower, prompt_ids, pixels, restore_eos):
    def draw():
        generator = torch.Generator().manual_seed(4)
        return generate_rollouts(supervisor, prompt_ids, tower(pixels[:2]), Sampling(1, 3, 2.0, 1.0), generator)

    first = draw().tokens[0].tolist()
    assert first[2] not in first[:2]
    supervisor.eos_token_id = first[2]
    again = draw()
    assert again.tokens[0].tolist() == first and again.finished.all()


def test_sampled_rollouts_depend_on_the_generator_alone(supervisor, tower, prompt_ids, pixels):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate_rollouts(supervisor, prompt_ids, tower(pixels), Sampling(GROUP, 6), generator).tokens

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert len({tuple(row) for row in draw(1)[:GROUP].tolist()}) > 1, "rollouts of a pair must differ"


def test_select_and_cat_keep_rows_together():
    def made(lengths, eos=9):
        width = max(lengths)
        mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        tokens = torch.where(mask, torch.arange(1, width + 1)[None], eos)
        return Rollouts(tokens, mask, [f"text {n}" for n in lengths], torch.tensor([n < 5 for n in lengths]))

    part = made([5, 2, 3]).select(torch.tensor([1, 2]))
    assert part.tokens.tolist() == [[1, 2, 9], [1, 2, 3]] and part.texts == ["text 2", "text 3"]
    both = Rollouts.cat([part, made([4])], pad=9)
    assert both.tokens.tolist() == [[1, 2, 9, 9], [1, 2, 3, 9], [1, 2, 3, 4]]
    assert both.mask.sum(1).tolist() == [2, 3, 4]
    assert both.finished.tolist() == [True, True, True] and not made([5]).finished.any()


def test_select_keeps_scattered_masks_whole():
    """The oracle's mask covers attribute values only, which do not stand at the beginning."""
    mask = torch.tensor([[False, True, False, False, True, False]])
    tokens = torch.arange(6)[None]
    part = Rollouts(tokens, mask, ["x"], torch.tensor([True])).select(torch.tensor([0]))
    assert part.tokens[part.mask].tolist() == [1, 4]


# ----------------------------------------------------------------------------------------------- sampling


KNOWN = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])


def frequencies(temperature, top_p, draws=40_000):
    generator = torch.Generator().manual_seed(0)
    ids = sample(KNOWN.log().expand(draws, -1), temperature, top_p, generator)
    return torch.bincount(ids, minlength=len(KNOWN)) / draws


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_sample_honours_temperature(temperature):
    expected = KNOWN ** (1 / temperature)
    torch.testing.assert_close(frequencies(temperature, 1.0), expected / expected.sum(), rtol=0, atol=0.012)


def test_sample_draws_from_the_smallest_nucleus_that_holds_top_p():
    drawn = frequencies(1.0, 0.8)  # 0.5 + 0.25 < 0.8 <= 0.5 + 0.25 + 0.15
    torch.testing.assert_close(drawn[:3], KNOWN[:3] / KNOWN[:3].sum(), rtol=0, atol=0.012)
    assert (drawn[3:] == 0).all()


@pytest.mark.parametrize(("sharpness", "certain", "columns"), [(1.0, 20, 1), (4.0, 19, 32), (0.3, 19, 342)])
def test_a_nucleus_found_among_few_ids_is_that_of_the_full_sort(sharpness, certain, columns):
    logits = sharpness * torch.randn(20, 342, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits[:certain, 5] = 40
    found, ids = nucleus(logits, 0.7, 0.95)
    assert found.shape == ids.shape == (20, columns)
    everything = (logits.float() / 0.7).softmax(-1)
    ordered, order = everything.sort(-1, descending=True)
    inside = (ordered.cumsum(-1) - ordered < 0.95).gather(-1, order.argsort(-1))
    assert torch.equal(torch.zeros_like(everything).scatter(-1, ids, found), everything * inside)


def test_sample_applies_temperature_before_the_nucleus():
    assert (frequencies(0.3, 0.8)[1:] == 0).all()  # sharpened, the first value alone holds 0.89
    assert frequencies(5.0, 0.8)[3] > 0


def test_sample_keeps_the_most_likely_token_for_any_top_p():
    assert frequencies(1.0, 1e-6)[0] == 1


def test_sample_at_temperature_0_is_greedy():
    assert sample(KNOWN.log()[None].flip(1), 0, 0.95, None).tolist() == [4]


# ---------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_image_attention_equals_stock_eager_attention(supervisor, tower, eager, prompt_ids, pixels, reference, layer):
    tokens, mask, *_ = reference
    with torch.no_grad():
        _, tap = replay_log_probs(supervisor, prompt_ids, tower(pixels), tokens, mask, layer=layer)
    row, pair = 4, 1
    length = int(mask[row].sum())
    ids = torch.cat([prompt_ids, tokens[row, :length]])[None]
    with torch.no_grad():
        out = eager(**stock_inputs(eager, ids, pixels[2 * pair : 2 * pair + 2]), output_attentions=True)
    expected = out.attentions[layer][0].mean(0)  # (S, S), head-averaged
    steps = torch.tensor([0, 3, length - 2])
    for columns in supervisor.image_columns(prompt_ids):
        ours = image_attention(tap, row, steps, columns)
        wanted = expected[len(prompt_ids) + steps][:, columns]
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-7)
        assert wanted.std() > 1e-3, "the check needs attention that is not uniform"
    everything = image_attention(tap, row, steps, torch.arange(len(prompt_ids) + length - 1))
    torch.testing.assert_close(everything.sum(-1), torch.ones(3))


def test_capture_ends_with_its_context(supervisor, tower, prompt_ids, pixels):
    images = tower(pixels[:2]).detach()
    with capture_attention(1) as tap:
        supervisor.prefill(prompt_ids, images)
    before = tap.query
    supervisor.prefill(prompt_ids, images)
    assert tap.query is before and not before.requires_grad


def eager_teacher(supervisor, eager, prompt_ids, pixels, ids, layer):
    """Eqs. 6-7 by hand from the stock model's attention."""
    full = torch.cat([prompt_ids, torch.tensor(ids)])[None]
    with torch.no_grad():
        out = eager(**stock_inputs(eager, full, pixels), output_attentions=True)
    attention = out.attentions[layer][0].mean(0)
    maps = []
    for section, columns in zip(("item_1", "item_2"), supervisor.image_columns(prompt_ids), strict=True):
        rows = []
        for (where, _), places in attribute_tokens(supervisor, ids).items():
            for t in places if where == section else ():
                row = attention[len(prompt_ids) + t - 1, columns]  # the step that generates token t
                rows.append(row / row.sum())
        maps.append(torch.stack(rows).mean(0))
    return torch.stack(maps)


def test_teacher_attention_equals_eq_6_by_hand(supervisor, tower, eager, prompt_ids, pixels):
    ids = supervisor.answer_ids(random_answer(0))
    tokens = torch.tensor([ids])
    with torch.no_grad():
        _, tap = replay_log_probs(supervisor, prompt_ids, tower(pixels[:2]), tokens, torch.ones_like(tokens).bool(), 1)
    teacher = teacher_attention(supervisor, tap, 0, ids, prompt_ids)
    assert teacher.shape == (2, 36)
    torch.testing.assert_close(teacher.sum(1), torch.ones(2))
    torch.testing.assert_close(
        teacher.double(), eager_teacher(supervisor, eager, prompt_ids, pixels[:2], ids, 1), rtol=1e-4, atol=1e-6
    )
    assert (teacher[0] - teacher[1]).abs().max() > 1e-3


def test_teacher_attention_tells_the_images_apart(supervisor, tower, prompt_ids, pixels):
    """A bright patch in image b moves the map of b in the patch's place, and swapping the images swaps its row."""
    ids = supervisor.answer_ids(random_answer(0))
    tokens = torch.tensor([ids])

    def maps(images):
        _, tap = replay_log_probs(supervisor, prompt_ids, images, tokens, torch.ones_like(tokens).bool(), 1)
        return teacher_attention(supervisor, tap, 0, ids, prompt_ids)

    with torch.no_grad():
        plain = tower(pixels[:2])
        marked = VisualTokens(plain.merged.clone(), plain.deepstack)
        marked.merged[1, 17] *= 30
        change = maps(marked) - maps(plain)
        swapped = maps(marked[torch.tensor([1, 0])]) - maps(plain[torch.tensor([1, 0])])
    assert change[1].abs().argmax() == 17 and change[1].abs().max() > change[0].abs().max()
    assert swapped[0].abs().argmax() == 17 and swapped[0].abs().max() > swapped[1].abs().max()


def test_teacher_attention_is_none_without_descriptions_of_both(supervisor, tower, prompt_ids, pixels):
    ids = supervisor.answer_ids('{"item_1": {"bill shape": "cone"}, "same_species": "yes"}')
    tokens = torch.tensor([ids])
    with torch.no_grad():
        _, tap = replay_log_probs(supervisor, prompt_ids, tower(pixels[:2]), tokens, torch.ones_like(tokens).bool())
    assert teacher_attention(supervisor, tap, 0, ids, prompt_ids) is None


# ---------------------------------------------------------------------------------------- attribute tokens


def test_attribute_tokens_of_an_answer_are_its_values(supervisor):
    text = random_answer(3)
    ids = supervisor.answer_ids(text)
    places = attribute_tokens(supervisor, ids)
    answer = json.loads(text)
    assert list(places) == [(s, name) for s in ("item_1", "item_2") for name in VOCABULARY.attribute_names]
    for (section, name), indices in places.items():
        assert supervisor.decode([ids[i] for i in indices]) == answer[section][name]
        assert len(indices) == 1, "values are single tokens of the miniature tokenizer"


def test_token_offsets_cover_the_text(supervisor):
    ids = supervisor.answer_ids(random_answer(3))
    text, offsets = supervisor.decode(ids), supervisor.token_offsets(ids)
    assert len(offsets) == len(ids)
    assert "".join(text[a:b] for a, b in offsets) == text
    assert all(text[a:b] == supervisor.decode([i]) for i, (a, b) in zip(ids, offsets, strict=True))


@pytest.mark.parametrize("value", ["été", "日本", "a 🐦 b"])
def test_attribute_tokens_of_a_text_with_multi_byte_characters(supervisor, value):
    ids = supervisor.answer_ids(json.dumps({"item_1": {"bill shape": value, "leg color": "blue"}}, ensure_ascii=False))
    offsets = supervisor.token_offsets(ids)
    text = supervisor.decode(ids)
    assert value in text
    assert all(0 <= a <= b <= len(text) for a, b in offsets)
    places = attribute_tokens(supervisor, ids)
    assert supervisor.decode([ids[i] for i in places["item_1", "leg color"]]) == "blue"
    assert supervisor.decode([ids[i] for i in places["item_1", "bill shape"]]) == value, (
        "no byte of a value may be lost"
    )


# ------------------------------------------------------------------------------------------------- loading


def test_a_directory_as_published_equals_the_stock_model(checkpoint, tmp_path):
    """In the file layout and with the settings of Qwen/Qwen3-VL-8B-Instruct, whose stock image size would enlarge ours."""
    folder = as_published(checkpoint, tmp_path / "Qwen3-VL-tiny")
    tower, ours = load_supervisor(folder, IMAGE_SIZE, dtype=torch.float64)
    assert not torch.equal(ours.head.weight, ours.language_model.get_input_embeddings().weight)
    processor = AutoProcessor.from_pretrained(folder)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
    prompt, images = comparison_prompt(VOCABULARY), random_images(2)
    content = [{"type": "image"}] * 2 + [{"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    edge = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    inputs = processor(text=[text], images=images, images_kwargs={"size": edge}, return_tensors="pt")
    ids, pixels = ours.prompt_ids(prompt), tower.preprocess(images)
    assert torch.equal(ids, inputs["input_ids"][0])
    torch.testing.assert_close(pixels.flatten(0, 1), inputs["pixel_values"], rtol=0, atol=1e-6)
    with torch.no_grad():
        logits = ours.head(ours.forward_sequences(ids[None], tower(pixels)))
        expected = stock(**stock_inputs(stock, ids[None], pixels)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_in_bfloat16_the_tower_keeps_float32_weights(checkpoint):
    tower, half = load_supervisor(checkpoint, IMAGE_SIZE, dtype=torch.bfloat16)
    assert {p.dtype for p in tower.parameters()} == {torch.float32} and half.head.weight.dtype == torch.bfloat16


def test_unknown_and_damaged_supervisors_are_readable_errors(tmp_path, checkpoint):
    with pytest.raises(SagaError, match="neither a local folder nor an available hub id"):
        load_supervisor(tmp_path / "absent", IMAGE_SIZE)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    with pytest.raises(SagaError, match="is damaged or incomplete") as error:
        load_supervisor(broken, IMAGE_SIZE)
    assert "\n" not in str(error.value)
    config = json.loads((checkpoint / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(SagaError, match="unknown supervisor family 'llama'.*qwen3_vl"):
        load_supervisor(broken, IMAGE_SIZE)
