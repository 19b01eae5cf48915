"""InternVL through the same path: equal to the stock transformers model, value and gradient, in float64."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import IMAGE_SIZE, VOCABULARY, as_published, build_tiny_checkpoint, random_answer, random_images
from transformers import AutoProcessor, InternVLForConditionalGeneration

from saga_lib import step
from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.config import CHECKPOINTS
from saga_lib.encoder import Encoder
from saga_lib.families.internvl import InternVLTower
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.reading import description_prompt
from saga_lib.supervisor.attention import image_attention
from saga_lib.supervisor.caches import DecodeCache, SharedDecodeCache
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.supervisor.rollouts import Rollouts, Sampling, generate_rollouts
from saga_study.deploy.export import export_encoder
from saga_study.methods import make_config
from saga_study.resolving import open_session
from saga_study.teaching import checkpoints, pretraining
from saga_study.teaching.__main__ import main
from saga_study.teaching.checkpoints import Recipe, build_checkpoint
from saga_study.teaching.pretraining import pretrain

PAIRS, GROUP = 2, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny untrained InternVL as a Hugging Face directory; conftest's `loaded` and `supervisor` come from it."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny_internvl"), "internvl")


@pytest.fixture(scope="module")
def tower(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def stock(checkpoint):
    return InternVLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float64).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompt_ids(supervisor):
    return supervisor.prompt_ids(comparison_prompt(VOCABULARY))


@pytest.fixture(scope="module")
def pixels(tower):
    return tower.preprocess(random_images(2 * PAIRS)).double()  # (4, 3, 48, 48)


def stock_logits(stock, ids, pixels, **options):
    return stock(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **options)


def stock_prompt(processor, prompt, num_images):
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)


def edit_json(path, **changes):
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ------------------------------------------------------------------------------------- prompts and images


@pytest.mark.parametrize("num_images", [1, 2])
def test_prompt_ids_and_pixels_equal_the_stock_processor(checkpoint, supervisor, tower, num_images):
    processor = AutoProcessor.from_pretrained(checkpoint)
    prompt = (comparison_prompt if num_images == 2 else description_prompt)(VOCABULARY)
    images = random_images(num_images)
    expected = processor(text=[stock_prompt(processor, prompt, num_images)], images=images, crop_to_patches=False, return_tensors="pt")
    ids = supervisor.prompt_ids(prompt, num_images)
    assert torch.equal(ids, expected["input_ids"][0])
    start, end = supervisor.tokenizer.convert_tokens_to_ids(["<img>", "</img>"])
    for columns in supervisor.image_columns(ids):
        assert len(columns) == 36 and ids[columns[0] - 1] == start and ids[columns[-1] + 1] == end
    torch.testing.assert_close(tower.preprocess(images), expected["pixel_values"], rtol=0, atol=1e-6)


def test_large_images_are_one_tile_too(tower, monkeypatch):
    monkeypatch.setattr(tower.image_processor, "crop_to_patches", True)
    [wide] = random_images(1, size=(300, 200))
    square = wide.crop((50, 0, 250, 200))
    assert torch.equal(tower.preprocess([wide, wide]), tower.preprocess([square, square.convert("RGBA")]))
    assert tower.preprocess([wide]).shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_tokens_are_those_of_the_stock_model_in_raster_order(tower, stock, pixels):
    with torch.no_grad():
        tokens = tower(pixels)
        assert tokens.deepstack == () and tokens.merged.shape == (4, 36, tower.width)
        expected = stock.get_image_features(pixels).pooler_output
        torch.testing.assert_close(tokens.merged, expected, rtol=0, atol=1e-12)
        for row, column in ((0, 5), (3, 1), (5, 0)):
            marked = pixels[:1].clone()
            marked[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3
            change = (tower(marked).merged - tokens.merged[:1]).norm(dim=-1)[0]
            assert int(change.argmax()) == 6 * row + column


@pytest.mark.parametrize("size, tokens", [(448, 256), (224, 64)])
def test_the_published_sizes_give_the_published_tokens(size, tokens):
    """InternVL3.5-8B's vision configuration, on the meta device: shapes without numbers."""
    published = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "attention_bias": True,
        "image_size": [448, 448], "patch_size": [14, 14], "norm_type": "layer_norm", "use_mean_pooling": True, "use_qk_norm": False,
    }  # fmt: skip
    config = {"vision_config": published, "image_processor": {}, "image_size": size, "downsample_ratio": 0.5, "projector_act": "gelu"}
    with torch.device("meta"):
        tower = InternVLTower.from_config_dict(config | {"width": 4096})
        assert tower(torch.zeros(2, 3, size, size)).merged.shape == (2, tokens, 4096)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (tower.visual, tower.projector)]
    assert millions == pytest.approx([304.0, 33.6], abs=0.1)


def test_in_bfloat16_the_tower_keeps_float32_weights(checkpoint, supervisor, prompt_ids, pixels):
    tower, half = load_supervisor(checkpoint, IMAGE_SIZE, dtype=torch.bfloat16)
    assert {p.dtype for p in tower.parameters()} == {torch.float32} and half.head.weight.dtype == torch.bfloat16
    with torch.no_grad():
        hidden = half.forward_sequences(prompt_ids[None], tower(pixels[:2].float()))
    assert hidden.dtype == torch.bfloat16 and hidden.isfinite().all()


# --------------------------------------------------------------------------------------- values, gradients


def test_full_sequences_equal_the_stock_forward(supervisor, tower, stock, prompt_ids, pixels):
    ids = prompt_ids.expand(PAIRS, -1)
    with torch.no_grad():
        logits = supervisor.head(supervisor.forward_sequences(ids, tower(pixels)))
        expected = stock_logits(stock, ids, pixels).logits
        blind = supervisor.head(supervisor.forward_sequences(ids, tower(pixels.flip(0))))
    assert expected.std() > 0.5 and (blind - expected).abs().max() > 0.1, "the check needs a model that looks at its images"
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_text_alone_equals_the_stock_forward(supervisor, stock):
    ids = supervisor.prompt_ids(comparison_prompt(VOCABULARY), 0)[None]
    with torch.no_grad():
        logits = supervisor.head(supervisor.forward_sequences(ids, None))
        torch.testing.assert_close(logits, stock(input_ids=ids).logits, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def reference(stock, supervisor, prompt_ids, pixels):
    """Completions of different lengths; their log-probs and the gradients of Σ w·log p by stock full forwards."""
    rows = [supervisor.answer_ids(random_answer(seed)) for seed in range(PAIRS * GROUP)]
    rows = [row[: len(row) - 7 * i] if i % 2 else row for i, row in enumerate(rows)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [supervisor.eos_token_id] * (width - len(row)) for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    weights = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts = InternVLTower.stock_modules(stock)
    for module in parts.values():
        module.requires_grad_(True)
    seen = pixels.clone().requires_grad_(True)
    log_probs = torch.zeros(tokens.shape, dtype=torch.float64)
    for row, length in enumerate(map(len, rows)):
        pair = row // GROUP
        ids = torch.cat([prompt_ids, tokens[row, :length]])[None]
        logits = stock_logits(stock, ids, seen[2 * pair : 2 * pair + 2]).logits[0, len(prompt_ids) - 1 : -1]
        scored = logits.log_softmax(-1).gather(-1, tokens[row, :length, None])[:, 0]
        (weights[row, :length] * scored).sum().backward()
        log_probs[row, :length] = scored.detach()
    gradients = {f"{part}.{name}": p.grad.clone() for part, module in parts.items() for name, p in module.named_parameters()}
    stock.zero_grad()
    stock.requires_grad_(False)
    return tokens, mask, weights, log_probs, gradients | {"pixels": seen.grad}


@pytest.mark.parametrize("chunk", [4096, 50])
def test_replay_equals_the_stock_model_in_log_probs_and_gradients(supervisor, tower, prompt_ids, pixels, reference, chunk):
    tokens, mask, weights, expected, expected_gradients = reference
    tower.zero_grad()
    seen = pixels.clone().requires_grad_(True)
    outputs = tower(seen)
    boundary = outputs.boundary()
    log_probs, _ = replay_log_probs(supervisor, prompt_ids, boundary, tokens, mask, chunk=chunk)
    (weights * log_probs).sum().backward()
    torch.autograd.backward(outputs.tensors(), [t.grad for t in boundary.tensors()])
    gradients = {name: p.grad for name, p in tower.named_parameters()} | {"pixels": seen.grad}
    torch.testing.assert_close(log_probs.detach(), expected, rtol=0, atol=1e-10)
    assert (log_probs[~mask] == 0).all()
    assert set(gradients) == set(expected_gradients), "the tower's parameters are the stock vision tower and projector"
    for name, gradient in expected_gradients.items():
        if name.endswith("k_proj.bias"):  # softmax does not notice it
            assert gradient.norm() < 1e-5 * expected_gradients["pixels"].norm() and gradients[name].norm() < 1e-5
        else:
            assert gradient.norm() > 1e-6 and (gradients[name] - gradient).norm() < 1e-6 * gradient.norm(), name
    tower.zero_grad()
    assert all(p.grad is None and not p.requires_grad for p in (*supervisor.language_model.parameters(), *supervisor.head.parameters()))


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("kind", [None, DecodeCache, SharedDecodeCache])
def test_prefill_and_extend_equal_the_stock_forward(supervisor, tower, stock, prompt_ids, pixels, kind):
    tokens = torch.randint(0, 200, (PAIRS * GROUP, 6), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([prompt_ids.expand(len(tokens), -1), tokens], 1)
    with torch.no_grad():
        images = pixels.unflatten(0, (PAIRS, 2)).repeat_interleave(GROUP, 0).flatten(0, 1)
        expected = stock_logits(stock, ids, images).logits[:, len(prompt_ids) - 1 :]
        prefix = supervisor.prefill(prompt_ids, tower(pixels))
        assert prefix.next_position == prefix.length == len(prompt_ids)
        torch.testing.assert_close(supervisor.head(prefix.last_hidden), expected[::GROUP, 0], rtol=0, atol=1e-10)
        if kind is None:
            prefix = prefix.expand(GROUP)
        else:
            prefix.cache = kind(prefix.cache, GROUP, tokens.shape[1] + 1)
        for start, count in ((0, 1), (1, 3), (4, 2)):
            hidden = supervisor.extend(prefix, tokens[:, start : start + count], start)
            torch.testing.assert_close(supervisor.head(hidden), expected[:, 1 + start : 1 + start + count], rtol=0, atol=1e-9)


def test_greedy_rollouts_equal_stock_generate_also_when_rows_end_early(supervisor, tower, stock, prompt_ids, monkeypatch):
    pixels = tower.preprocess(random_images(8, seed=5)).double()
    images = tower(pixels)
    free = generate_rollouts(supervisor, prompt_ids, images, Sampling(1, 12, temperature=0))
    assert len({tuple(row) for row in free.tokens.tolist()}) > 1, "the check needs answers that depend on the images"
    eos = free.tokens[0, 4].item()  # ends some row early
    monkeypatch.setattr(supervisor, "eos_token_id", eos)
    draft = free.tokens.mode(0).values.tolist()
    for options in ({}, {"draft": draft}):
        rollouts = generate_rollouts(supervisor, prompt_ids, images, Sampling(2, 12, temperature=0, **options))
        assert rollouts.finished.any()
        for pair in range(4):
            out = stock.generate(
                input_ids=prompt_ids[None], attention_mask=torch.ones_like(prompt_ids)[None], do_sample=False, max_new_tokens=12,
                pixel_values=pixels[2 * pair : 2 * pair + 2], eos_token_id=eos, pad_token_id=0,
                suppress_tokens=[stock.config.image_token_id],
            )  # fmt: skip
            for row in (2 * pair, 2 * pair + 1):
                assert rollouts.tokens[row][rollouts.mask[row]].tolist() == out[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("layer", [0, 2])
def test_image_attention_equals_stock_eager_attention(checkpoint, supervisor, tower, prompt_ids, pixels, reference, layer):
    tokens, mask, *_ = reference
    eager = InternVLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float64, attn_implementation="eager").eval()
    row, pair = 4, 1
    length = int(mask[row].sum())
    ids = torch.cat([prompt_ids, tokens[row, :length]])[None]
    with torch.no_grad():
        _, tap = replay_log_probs(supervisor, prompt_ids, tower(pixels), tokens, mask, layer=layer)
        out = stock_logits(eager, ids, pixels[2 * pair : 2 * pair + 2], output_attentions=True)
    expected = out.attentions[layer][0].mean(0)  # (S, S), head-averaged
    steps = torch.tensor([0, 3, length - 2])
    for columns in supervisor.image_columns(prompt_ids):
        wanted = expected[len(prompt_ids) + steps][:, columns]
        assert wanted.std() > 1e-3, "the check needs attention that is not uniform"
        torch.testing.assert_close(image_attention(tap, row, steps, columns).double(), wanted, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------ training


def smoke(checkpoint, method, **overrides):
    settings = {"embedding_dim": 16, "batch_size": 16, "pairs_per_wave": 4, "max_new_tokens": 6} | overrides
    return make_config("smoke", "miniature_birds", method, 0, supervisor=str(checkpoint), **settings)


def test_a_step_trains_tower_and_projector_and_leaves_the_supervisor_alone(checkpoint, monkeypatch):
    def by_text(rollouts, same_class, verdict_key, group_size):
        right = [sum(map(ord, text)) % 2 for text in rollouts.texts]
        return torch.tensor(right, dtype=torch.float32).view(-1, group_size)

    monkeypatch.setattr(step, "score", by_text)
    session = open_session(smoke(checkpoint, "saga_pf"))
    language = [p.detach().clone() for p in session.supervisor.language_model.parameters()]
    before = {name: p.detach().clone() for name, p in session.encoder.tower.named_parameters()}
    metrics = session.run_step()
    assert metrics["contributing_pairs"] > 0 and metrics["grad_lm"] > 0
    assert all(torch.equal(a, b) for a, b in zip(language, session.supervisor.language_model.parameters(), strict=True))
    moved = {name for name, p in session.encoder.tower.named_parameters() if not torch.equal(p, before[name])}
    assert moved >= {name for name in before if not name.endswith("k_proj.bias")}
    assert session.evaluate()["num_queries"] == len(session.benchmark.test)


def test_a_step_on_well_formed_answers_teaches_the_pooler_and_can_be_audited(checkpoint, monkeypatch):
    def answers(supervisor, prompt_ids, images, sampling, generator):
        texts = [random_answer(seed, verdict=seed % 2 == 0) for seed in range(len(images.merged) // 2 * sampling.group_size)]
        rows = [supervisor.answer_ids(text) for text in texts]
        tokens = torch.tensor(rows)  # all are of one length
        return Rollouts(tokens, torch.ones_like(tokens, dtype=torch.bool), texts, torch.ones(len(texts), dtype=torch.bool))

    monkeypatch.setattr(step, "generate_rollouts", answers)
    session = open_session(smoke(checkpoint, "saga_pf", audit_every=1))
    pooler = [p.detach().clone() for p in session.encoder.pooler.parameters()]
    metrics = session.run_step()
    assert metrics["json_valid"] == 1 and metrics["grad_lm"] > 0 and metrics["grad_kl"] > 0 and session.audited
    assert not any(torch.equal(a, b) for a, b in zip(pooler, session.encoder.pooler.parameters(), strict=True))


def test_a_frozen_projector_stays_as_it_is(checkpoint):
    session = open_session(smoke(checkpoint, "pf", train_mergers=False))
    tower = session.encoder.tower
    before, patches = [p.detach().clone() for p in tower.projector.parameters()], tower.visual.embeddings.cls_token.detach().clone()
    assert len(tower.merger_parameters()) == len(before) == 6
    session.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, tower.projector.parameters(), strict=True))
    assert not torch.equal(patches, tower.visual.embeddings.cls_token)


def test_an_encoder_survives_saving(checkpoint, tmp_path, monkeypatch):
    encoder = Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "attention", 16)
    images = [*random_images(3), *random_images(2, size=(90, 60))]
    before = encoder.embed(images, batch_size=2)
    encoder.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", None)  # no supervisor is at hand
    loaded = Encoder.from_pretrained(tmp_path)
    assert not any("language" in name or "lm_head" in name for name in loaded.state_dict())
    np.testing.assert_allclose(loaded.embed(images), before, atol=1e-6)
    assert loaded.tower.config_dict() == encoder.tower.config_dict()
    card = (tmp_path / "README.md").read_text()
    assert "| base tower | internvl (3 layers, 48 wide)" in card and "over 36 tokens of 48 dimensions" in card
    made = export_encoder(loaded, tmp_path / "graph.pt2")
    assert made["input_shape"] == (None, 3, IMAGE_SIZE, IMAGE_SIZE)


# -------------------------------------------------------------------------------------------- pre-training

RECIPE = Recipe(
    family="internvl", vision_steps=3, text_steps=2, steps=6, families=20, families_per_batch=4, width=48, vision_depth=3, warmup=1
)  # fmt: skip


def test_a_minuscule_rebuild_makes_a_loadable_checkpoint(tmp_path, monkeypatch):
    tasks = iter(["describe", "text", "compare", "generic"] * 2)
    monkeypatch.setattr(pretraining, "draw_task", lambda *args: next(tasks))
    log = pretrain(RECIPE, tmp_path / "made", lambda text: None)
    assert {"describe", "text", "compare", "generic", "contrastive"} <= set(log[-1])
    assert all(np.isfinite(v) for row in log for v in row.values() if not isinstance(v, str))
    assert read_json(tmp_path / "made" / "recipe.json")["family"] == "internvl"
    assert "A tiny InternVL" in (tmp_path / "made" / "README.md").read_text()
    build_checkpoint(RECIPE, tmp_path / "untrained")
    (tower, supervisor), (untrained, _) = (load_supervisor(tmp_path / name, IMAGE_SIZE) for name in ("made", "untrained"))
    assert torch.equal(supervisor.head.weight, supervisor.language_model.get_input_embeddings().weight)
    assert all(not torch.equal(a, b) for a, b in zip(tower.parameters(), untrained.parameters(), strict=True))


def test_the_default_recipe_is_as_large_as_the_qwen_one(tmp_path):
    sizes = []
    for family in ("qwen3_vl", "internvl"):
        build_checkpoint(Recipe(family=family), tmp_path / family)
        tower, supervisor = load_supervisor(tmp_path / family, IMAGE_SIZE)
        sizes.append(sum(p.numel() for p in (*tower.parameters(), *supervisor.language_model.parameters())))
        assert tower.num_tokens == 36 and tower.width == 96
    assert abs(sizes[1] / sizes[0] - 1) < 0.05


def test_the_shipped_recipes_are_those_of_the_shipped_checkpoints(tmp_path):
    for name, recipe in checkpoints.RECIPES.items():
        if (CHECKPOINTS / name).is_dir():
            recorded = read_json(CHECKPOINTS / name / "recipe.json")
            assert recorded == {key: json.loads(json.dumps(asdict(recipe)))[key] for key in recorded}, name
            assert set(asdict(recipe)) - set(recorded) <= {"family", "patch_size"}  # later fields, at their defaults
    checkpoints.build_checkpoint(checkpoints.RECIPES["birds_internvl"], tmp_path / "internvl")
    tower, supervisor = load_supervisor(tmp_path / "internvl", IMAGE_SIZE)
    assert tower.num_tokens == 9 and tower(tower.preprocess(random_images(1))).merged.shape == (1, 9, 96)
    assert [len(columns) for columns in supervisor.image_columns(supervisor.prompt_ids(comparison_prompt(VOCABULARY)))] == [9, 9]
    with pytest.raises(SagaError, match="brids.*birds"):
        main(["pretrain", "brids", "--into", str(tmp_path / "none")])


# ------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def real_format(checkpoint, tmp_path):
    """The tiny model in the file layout and with the settings of OpenGVLab/InternVL3_5-8B-HF, with a head of its own."""
    return as_published(checkpoint, tmp_path / "InternVL3_5-tiny-HF")


@pytest.mark.parametrize("size", [IMAGE_SIZE, 32])
def test_a_directory_in_the_real_format_equals_the_stock_model(real_format, supervisor, size):
    """Also at a size the position embeddings were not made for: they are interpolated, as at 224 in place of 448."""
    tower, ours = load_supervisor(real_format, size, dtype=torch.float64)
    assert tower.num_tokens == (size // 8) ** 2
    head = load_file(real_format / "model-00001-of-00002.safetensors") | load_file(real_format / "model-00002-of-00002.safetensors")
    assert torch.equal(ours.head.weight, head["language_model.lm_head.weight"].double()), "not tied, though the class ties by default"
    processor = AutoProcessor.from_pretrained(real_format)
    processor.image_seq_length = tower.num_tokens
    stock = InternVLForConditionalGeneration.from_pretrained(real_format, dtype=torch.float64).eval()
    prompt, images = comparison_prompt(VOCABULARY), random_images(2, size=(size, size))
    inputs = processor(
        text=[stock_prompt(processor, prompt, 2)], images=images, crop_to_patches=False, size={"height": size, "width": size},
        return_tensors="pt",
    )  # fmt: skip
    ids, pixels = ours.prompt_ids(prompt), tower.preprocess(images)
    assert torch.equal(ids, inputs["input_ids"][0])
    if size == IMAGE_SIZE:
        assert torch.equal(ids, supervisor.prompt_ids(prompt)), "as the tokenizer that was saved"
    torch.testing.assert_close(pixels, inputs["pixel_values"], rtol=0, atol=1e-6)
    with torch.no_grad():
        logits = ours.head(ours.forward_sequences(ids[None], tower(pixels)))
        expected = stock(**inputs | {"pixel_values": pixels.double()}).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


TEXT_SIZES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "vocab_size": 400,
}  # fmt: skip


@pytest.mark.parametrize(
    "change, size, said",
    [
        ({}, 50, "image size 50 is not a whole number of InternVL tokens; take a multiple of 8 pixels"),
        ({}, 4, "image size 4 is not a whole number"),
        ({"downsample_ratio": 0.4}, 48, "make no square tokens"),
        ({"vision_feature_layer": -2}, 48, r"reads vision layer -2 \(default\) is not supported"),
        ({"vision_feature_select_strategy": "full"}, 48, r"reads vision layer -1 \(full\) is not supported"),
        ({"text_config": {"model_type": "gpt_oss", **TEXT_SIZES}}, 48, "InternVL on gpt_oss is not supported"),
        ({"text_config": {"model_type": "qwen2", "use_sliding_window": True, **TEXT_SIZES}}, 48, "sets use_sliding_window, which is not"),
        ({"model_type": "internvl_chat", "auto_map": {"AutoConfig": "own.Config"}}, 48, "'internvl_chat': did you mean 'internvl'"),
        ({"model_type": None}, 48, "is damaged or incomplete: Unrecognized model"),
        ({"model_type": "llama"}, 48, "unknown supervisor family 'llama'.*internvl, qwen3_vl"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_used_are_one_readable_line(real_format, change, size, said):
    edit_json(real_format / "config.json", **change)
    for path in real_format.glob("*.safetensors"):
        path.unlink()  # no weights are read before the check
    with pytest.raises(SagaError, match=said) as error:
        load_supervisor(real_format, size)
    assert "\n" not in str(error.value)


def test_an_image_processor_that_makes_other_tiles_is_a_readable_error(loaded):
    class Tiling:
        def __call__(self, images, **options):
            return {"pixel_values": torch.zeros(5 * len(images), 3, IMAGE_SIZE, IMAGE_SIZE)}

    tower = loaded[0]
    broken = InternVLTower(tower.visual, tower.projector, Tiling(), IMAGE_SIZE, tower.downsample_ratio, tower.projector_act)
    with pytest.raises(SagaError, match=r"Tiling made pixels of shape \(10, 3, 48, 48\), not one tile per image"):
        broken.preprocess(random_images(2))


def test_an_unknown_family_of_recipe_is_a_readable_error(tmp_path):
    with pytest.raises(SagaError, match="unknown supervisor family 'intern': did you mean 'internvl'"):
        build_checkpoint(Recipe(family="intern"), tmp_path)
