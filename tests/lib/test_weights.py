"""Weights that leave a part of a model at random, or are themselves left out, are refused in one line."""

import json
import re
from functools import partial

import pytest
import torch
from changed_models import FAMILIES, IMAGE_SIZE, as_pickle, as_shards, copied, edit_json, edit_weights
from hypothesis import given
from hypothesis import strategies as st

from saga_lib.common.errors import SagaError
from saga_lib.common.weights import check_fit
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(part):
    def change(weights):
        kept = {name: tensor for name, tensor in weights.items() if part not in name}
        assert kept.keys() != weights.keys()
        return kept

    return change


def cut(end):
    def change(weights):
        [name] = [name for name in weights if name.endswith(end)]
        return weights | {name: weights[name][:-1]}

    return change


def also(old, new):
    """Add a weight whose name has the end `new` where that of another has the end `old`."""

    def change(weights):
        name = next(name for name in weights if name.endswith(old))
        return weights | {name.removesuffix(old) + new: torch.zeros(3)}

    return change


def layers(count, kind="text_config", field="num_hidden_layers"):
    types = {"layer_types": ["full_attention"] * count} if kind == "text_config" else {}
    return lambda folder: edit_json(folder / "config.json", **{kind: {field: count, **types}})


VISION = {"qwen3_vl": {"field": "depth"}, "internvl": {"field": "num_hidden_layers"}}
OF_WEIGHTS = {
    "wrapped once": (prefixed("module."), "remove 'module.' from the names"),
    "compiled": (prefixed("_orig_mod."), "remove '_orig_mod.' from the names"),
    "both": (prefixed("module._orig_mod."), "remove 'module._orig_mod.' from the names"),
    "of a trainer": (prefixed("base_model.model."), "remove 'base_model."),
    "a layer is missing": (without("layers.1."), "11 of the model's .* e.g. model.language_model.layers.1.input_layernorm.weight"),
    "a matrix is missing": (without("layers.2.mlp.up_proj"), "1 of the model's .* e.g. model.language_model.layers.2.mlp.up_proj.weight"),
    "the last norm is missing": (without("norm.weight"), "weights are not there"),
    "embeddings and tied head are missing": (without("embed_tokens"), "2 of the model's"),
    "a smaller vocabulary": (cut("embed_tokens.weight"), "another shape .* for "),
    "a matrix is cut": (cut("layers.1.mlp.up_proj.weight"), r"1 weights have another shape .*layers.1.mlp.up_proj.weight of shape \("),
    "biases that the model has not": (also("self_attn.k_proj.weight", "self_attn.k_proj.bias"), "no place for 1 weights"),
    "a scale of quantised weights": (also("mlp.up_proj.weight", "mlp.up_proj.weight_scale"), "no place for 1 weights"),
}  # fmt: skip
def within(path, wrapper):
    """Put a wrapper behind every module whose path fits."""
    return lambda weights: {re.sub(rf"({path})", rf"\1{wrapper}", name): w for name, w in weights.items()}


def times(factor, part):
    return lambda weights: {name: w * factor if part in name else w for name, w in weights.items()}


LAYER = r"(?:layers|blocks|layer)\.\d+\."
OF_WEIGHTS |= {
    "layers wrapped": (within(LAYER, "_fsdp_wrapped_module."), "remove '_fsdp_wrapped_module.' from the names"),
    "layers compiled": (within(LAYER, "_orig_mod."), "remove '_orig_mod.' from the names"),
    "layers checkpointed": (within(LAYER, "_checkpoint_wrapped_module."), "remove '_checkpoint_wrapped_module.' from the names"),
    "adapted matrices": (within("q_proj.", "base_layer."), "remove 'base_layer.' from the names"),
    "with adapters": (also("q_proj.weight", "q_proj.lora_A.default.weight"), "no place for 1 weights"),
    "experts": (also("mlp.up_proj.weight", "mlp.experts.0.up_proj.weight"), "no place for 1 weights"),
    "a further part of the language model": (also("layers.0.mlp.up_proj.weight", "memory.weight"), "no place for 1 weights"),
    "not a number": (times(float("nan"), "layers.1.mlp.up_proj"), "1 weights hold NaN or infinity, e.g. model.language_model.layers.1.mlp"),
    "infinite": (times(float("inf"), "1.weight"), "weights hold NaN or infinity"),
    "quantised": (lambda weights: {name: w.to(torch.int8) if "up_proj" in name else w for name, w in weights.items()},
                  "holds quantised weights, e.g. .*up_proj.weight in model.safetensors; take the model in bfloat16"),
    "emptied": (lambda weights: {name: w.new_zeros(0) if "up_proj" in name else w for name, w in weights.items()}, "another shape"),
    "the text alone": (lambda weights: {name: w for name, w in weights.items() if "language_model" in name}, "weights are not there"),
}  # fmt: skip


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def without_size(part, field):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        del content[part][field]
        (folder / "config.json").write_text(json.dumps(content))

    return change


OF_CONFIGURATION = {
    "no text_config": (config(text_config=None), "config.json is not the model's: 'hidden_size' is missing"),
    "a text for text_config": (config(text_config="qwen3"), "config.json is not the model's|is damaged or incomplete"),
    "no vision_config": (config(vision_config=None), "config.json is not the model's: 'hidden_size' is missing"),
    "no heads": (without_size("text_config", "num_attention_heads"), "config.json is not the model's: 'num_attention_heads' is missing"),
    "no patch_size": (without_size("vision_config", "patch_size"), "config.json is not the model's: 'patch_size' is missing"),
    "quantised": (config(quantization_config={"quant_method": "fp8"}), "config.json says that weights are quantised"),
    "a window": (config(text_config={"use_sliding_window": True, "sliding_window": 16}), "sliding.window"),
    "more layers": (layers(5), "22 of the model's"),
    "fewer layers": (layers(2), r"no place for 11 weights, e.g. model.language_model.layers.2\."),
    "an untied head": (lambda f: edit_json(f / "config.json", tie_word_embeddings=False, text_config={"tie_word_embeddings": False}),
                       "1 of the model's .* e.g. lm_head.weight"),
}  # fmt: skip


def refused(folder, said):
    with pytest.raises(SagaError, match=said) as error:
        load_supervisor(folder, IMAGE_SIZE)
    line = str(error.value)
    assert "\n" not in line and len(line) < 400 and str(folder) in line


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", OF_WEIGHTS)
def test_weights_that_do_not_fit_a_supervisor_are_refused(tmp_path, family, what):
    change, said = OF_WEIGHTS[what]
    folder = copied(family, tmp_path / "model")
    edit_weights(folder, change)
    refused(folder, said)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", [*OF_CONFIGURATION, "more vision layers", "fewer vision layers"])
def test_a_configuration_of_another_model_is_refused(tmp_path, family, what):
    folder = copied(family, tmp_path / "model")
    if "vision" in what:
        field = VISION[family]["field"]
        depth = json.loads((folder / "config.json").read_text())["vision_config"][field]
        layers(depth + (1 if "more" in what else -1), "vision_config", field)(folder)
        refused(folder, "weights are not there" if "more" in what else "no place for")
    else:
        change, said = OF_CONFIGURATION[what]
        change(folder)
        refused(folder, said)


@pytest.mark.parametrize("kept", [slice(-1), slice(0)])
def test_deepstack_features_that_the_configuration_leaves_out_are_refused(tmp_path, kept):
    folder = copied("qwen3_vl", tmp_path / "model")
    indexes = json.loads((folder / "config.json").read_text())["vision_config"]["deepstack_visual_indexes"]
    edit_json(folder / "config.json", vision_config={"deepstack_visual_indexes": indexes[kept]})
    refused(folder, "no place for .* e.g. model.visual.deepstack_merger_list")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [
    lambda folder: edit_weights(folder, lambda weights: {name.removeprefix("model."): w for name, w in weights.items()}),
    lambda folder: edit_weights(folder, lambda w: w | {name: torch.zeros(2) for name in ("score.weight", "mtp.layers.0.proj.weight")}),
    as_shards, partial(as_shards, pickled=True), as_pickle,
], ids=["as the base model", "with further heads", "shards", "pickled shards", "pickled"])  # fmt: skip
def test_weights_that_fit_are_loaded_as_they_are(tmp_path, family, change):
    (stock, known), folder = load_supervisor(copied(family, tmp_path / "stock"), IMAGE_SIZE), copied(family, tmp_path / "model")
    change(folder)
    tower, supervisor = load_supervisor(folder, IMAGE_SIZE)
    assert all(torch.equal(w, stock.state_dict()[name]) for name, w in tower.state_dict().items())
    expected = known.language_model.state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in supervisor.language_model.state_dict().items())


# ------------------------------------------------------------------------------------------------ the rule


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        parts = [{"norm": torch.nn.BatchNorm1d(2), "fc": torch.nn.Linear(2, 2)} for _ in range(3)]
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict(part) for part in parts)
        self.register_buffer("table", torch.zeros(2), persistent=False)


NAMES = sorted(Small().state_dict())


@given(st.sets(st.sampled_from(NAMES)), st.from_regex(r"([a-z_]{1,9}\.){1,3}", fullmatch=True))
def test_any_missing_weight_is_refused_and_any_prefix_found(left, prefix):
    missing = [name for name in NAMES if name not in left]
    fits = all(name.endswith("num_batches_tracked") for name in missing)
    if fits:
        return check_fit("weights", Small(), missing, [])
    with pytest.raises(SagaError, match=r"^weights: \d+ of the model's 21 weights are not there, e.g. layers"):
        check_fit("weights", Small(), missing, [])
    with pytest.raises(SagaError) as error:
        check_fit("weights", Small(), NAMES, [prefix + name for name in NAMES])
    assert f"remove {prefix!r} from" in str(error.value)
    with pytest.raises(SagaError, match="put 'layers.' before the names"):
        check_fit("weights", Small(), NAMES, [name.removeprefix("layers.") for name in NAMES])


@pytest.mark.parametrize("name, allowed", [
    ("head.weight", True), ("other.layers.0.fc.weight", True), ("table", True), ("layers.7.fc.weight", False), ("layers.0.fc.scale", False),
    ("layers.11.norm.bias", False), ("layers.0.fc.lora_A.default.weight", False), ("layers.0.experts.1.weight", False),
    ("layers.0.fc.inv_freq", True), ("teacher.layers.0.fc.weight", True),
])  # fmt: skip
def test_which_further_weights_are_left_out(name, allowed):
    if allowed:
        check_fit("weights", Small(), [], [name])
    else:
        with pytest.raises(SagaError, match=f"no place for 1 weights, e.g. {name}"):
            check_fit("weights", Small(), [], [name])
    with pytest.raises(SagaError, match="no place for 1 weights"):
        check_fit("weights", Small(), [], [name], strict=True)


# ------------------------------------------------------------------------------------- encoders and timm's towers


@pytest.mark.parametrize("change, said", [
    (prefixed("module."), "remove 'module.'"), (without("tower.visual.blocks.1."), "are not there"),
    (times(float("nan"), "pooler.out.bias"), "1 weights hold NaN or infinity, e.g. pooler.out.bias"),
    (cut("pooler.out.bias"), r"pooler.out.bias of shape \(15,\) for \(16,\)"),
    (lambda weights: weights | {"pooler.query": torch.zeros(3)}, "no place for 1 weights, e.g. pooler.query"),
])  # fmt: skip
def test_an_encoder_whose_weights_do_not_fit_is_refused(tmp_path, change, said):
    folder = tmp_path / "encoder"
    Encoder(load_supervisor(copied("qwen3_vl", tmp_path / "model"), IMAGE_SIZE)[0], "mean", 16).save_pretrained(folder)
    edit_weights(folder, change)
    with pytest.raises(SagaError, match=f"model.safetensors.*: .*{said}"):
        Encoder.from_pretrained(folder)


def test_layers_that_a_configuration_leaves_out_are_refused_under_the_names_of_the_base_model(tmp_path):
    folder = copied("qwen3_vl", tmp_path / "model")
    edit_weights(folder, lambda weights: {name.removeprefix("model."): w for name, w in weights.items()})
    layers(2)(folder)
    refused(folder, "no place for 11 weights")


@pytest.mark.parametrize("changes, said", [
    ({"image_fit": "squash"}, "unknown image fit 'squash'"),
    ({"tower": {"image_processor": {"image_mean": [0.5]}}}, "describes no encoder|cuts other patches"),
    ({"tower": {"image_processor": {"resample": 99}}}, "describes no encoder|cuts other patches"),
    ({"tower": "qwen"}, "config.json describes no encoder"), ({"tower": {"family": "qwen"}}, "unknown tower family 'qwen'"),
    ({"tower": {"image_size": 50}}, "image size 50 is not a whole number of Qwen3-VL tokens"),
    ({"tower": {"vision_config": 5}}, "config.json describes no encoder"), ({"embedding_dim": "wide"}, "config.json describes no encoder"),
    ({"pooler": "gem"}, "unknown pooler 'gem'"),
])  # fmt: skip
def test_a_damaged_description_of_an_encoder_is_one_line(tmp_path, changes, said):
    Encoder(load_supervisor(copied("qwen3_vl", tmp_path / "model"), IMAGE_SIZE)[0], "mean", 16).save_pretrained(tmp_path / "encoder")
    edit_json(tmp_path / "encoder" / "config.json", **changes)
    with pytest.raises(SagaError, match=said) as error:
        Encoder.from_pretrained(tmp_path / "encoder")
    assert "\n" not in str(error.value)


def test_an_encoder_whose_weights_are_a_pointer_is_one_line(tmp_path):
    Encoder(load_supervisor(copied("qwen3_vl", tmp_path / "model"), IMAGE_SIZE)[0]).save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 9\n")
    with pytest.raises(SagaError, match="model.safetensors is a pointer of Git LFS, not the file itself; run git lfs pull in"):
        Encoder.from_pretrained(tmp_path / "encoder")


def test_an_encoder_given_by_one_of_its_files_is_one_line(tmp_path):
    Encoder(load_supervisor(copied("qwen3_vl", tmp_path / "model"), IMAGE_SIZE)[0]).save_pretrained(tmp_path / "encoder")
    for path in (tmp_path / "encoder").iterdir():
        with pytest.raises(SagaError, match=f"is a file; an encoder is a folder, here {tmp_path / 'encoder'}"):
            Encoder.from_pretrained(path)
    for absent in (tmp_path / "absent", "x" * 5000, "a\0b", "owner/name"):
        with pytest.raises(SagaError, match="does not exist|is neither a folder nor on the hub"):
            Encoder.from_pretrained(absent)


@pytest.mark.parametrize("change, said", [
    (lambda weights: weights, ""), (lambda weights: weights | {"head.weight": torch.zeros(3, 64)}, ""),
    (prefixed("vision."), "remove 'vision.'"), (without("blocks.1."), "are not there"),
    (also("blocks.0.attn.qkv.weight", "blocks.77.attn.qkv.weight"), "no place for 1"),
    (cut("norm.weight"), "size mismatch|cannot be loaded"),
], ids=["its own", "with a classifier", "wrapped", "a block is missing", "a further block", "cut"])  # fmt: skip
def test_weights_that_do_not_fit_a_timm_tower_are_refused(tmp_path, monkeypatch, change, said):
    import timm

    create = timm.create_model
    stock = create("test_vit", img_size=IMAGE_SIZE, num_classes=0).state_dict()
    weights = change({name: torch.randn(tensor.shape) for name, tensor in stock.items()})
    torch.save(weights, tmp_path / "weights.pth")
    monkeypatch.setattr(timm, "create_model", partial(create, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")}))
    if not said:
        tower = TimmTower.create("test_vit", IMAGE_SIZE)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in tower.model.state_dict().items())
    else:
        with pytest.raises(SagaError, match=said) as error:
            TimmTower.create("test_vit", IMAGE_SIZE)
        assert "\n" not in str(error.value) and "test_vit" in str(error.value)
    assert torch.nn.Module.load_state_dict.__qualname__ == "Module.load_state_dict"  # as torch has it
