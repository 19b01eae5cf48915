"""A model's files: all of them are part of a run's address, and what is wrong with them is one line."""

import json
import pickle

import pytest
import torch
from changed_models import FAMILIES, IMAGE_SIZE, as_pickle, as_shards, copied, edit_json

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.model_files import model_files
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import CHECKPOINTS
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower
from saga_lib.records import run_inputs
from saga_study.methods import make_config
from saga_study.planner import architecture, estimate

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17\n"


def address(folder):
    return run_inputs(make_config("smoke", "miniature_birds", "pf", 0), str(folder), "0")["supervisor"]


# -------------------------------------------------------------------------------------------------- addresses


def test_shipped_checkpoints_have_the_addresses_of_the_runs_that_are_committed():
    """Which are part of these runs' names."""
    recorded = {}
    for path in sorted((REPOSITORY / "results").glob("*/runs/*/config.json")):
        run = json.loads(path.read_text())
        if run["config"]["supervisor"] == "miniature":
            recorded.setdefault(run["config"]["dataset"].split("+")[0].removeprefix("miniature_"), set()).add(run["inputs"]["supervisor"])
    assert {"birds", "cars", "aircraft"} <= recorded.keys()
    for domain in ("birds", "cars", "aircraft"):
        assert recorded[domain] == {address(CHECKPOINTS / domain)}


def change_a_shard(folder, pickled):
    shard = as_shards(folder, pickled)[1]
    before = address(folder)
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    return before


def change_pickle(folder):
    path = as_pickle(folder)
    before = address(folder)
    path.unlink()
    torch.save({"x": torch.zeros(2)}, path)
    return before


def change_file(name):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"a": 1}')
        before = address(folder)
        (folder / name).write_text('{"a": 2}')
        return before

    return change


OF_A_MODEL = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/thinking.jinja", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "qwen.tiktoken", "pytorch_model.bin", "pytorch_model-00001-of-00004.bin", "model-00001-of-00004.safetensors", "model.safetensors",
)  # fmt: skip
CHANGES = {name: change_file(name) for name in OF_A_MODEL} | {
    "a shard in a folder": lambda f: change_a_shard(f, False), "a pickled shard in a folder": lambda f: change_a_shard(f, True),
    "a pickle": change_pickle,
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_every_file_that_a_model_is_read_from_is_part_of_the_address(tmp_path, what):
    folder = copied("qwen3_vl", tmp_path / "model")
    before = CHANGES[what](folder)
    assert address(folder) != before


@pytest.mark.parametrize("name", ["weights/own.safetensors", "weights/own.safetensors.index.json", "own.bin"])
def test_weights_that_the_configuration_names_are_part_of_the_address(tmp_path, name):
    folder = copied("qwen3_vl", tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "weights").mkdir(exist_ok=True)
    (folder / name).write_text('{"weight_map": {"a": "weights/shard.safetensors"}}')
    edit_json(folder / "config.json", transformers_weights=name)
    before = address(folder)
    (folder / name).write_text('{"weight_map": {"b": "weights/shard.safetensors"}}')
    assert address(folder) != before
    if name.endswith("json"):
        before = address(folder)
        (folder / "weights" / "shard.safetensors").write_text("1")
        assert address(folder) != before


def test_what_a_model_is_not_read_from_is_no_part_of_it(tmp_path):
    folder = copied("qwen3_vl", tmp_path / "model")
    before = address(folder)
    for name in ("README.md", "modeling_own.py", "picture.png", ".gitattributes", "checkpoint-500/model.safetensors", "log/events.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("anything")
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")  # as the hub's cache has them once a blob is deleted
    (folder / "folder.json").mkdir()
    assert address(folder) == before == address(CHECKPOINTS / FAMILIES["qwen3_vl"])
    (folder / "tokenizer.json").rename(folder / "other.json")
    assert address(folder) != before


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 7}}', "{}"])
def test_a_damaged_index_still_has_an_address(tmp_path, index):
    folder = copied("qwen3_vl", tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(index)
    assert folder / "model.safetensors.index.json" in model_files(folder) and address(folder)


# ------------------------------------------------------------------------------------- damaged and incomplete folders


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def shorten(name, kept):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def remove(*patterns):
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


def shards_without_one(pickled):
    return lambda folder: as_shards(folder, pickled)[1].unlink()


def empty_shard(folder):
    as_shards(folder)[0].write_bytes(b"")


def as_hub_cache(folder):
    snapshot = folder / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(snapshot / path.name)


DAMAGED = {
    "a shard is missing": (shards_without_one(False), r"1 of 2 files of weights are not there, e.g. more/model-00002-of-00002.safetensors"),
    "a pickled shard is missing": (shards_without_one(True), r"1 of 2 files .* e.g. more/pytorch_model-00002-of-00002.bin"),
    "a shard is empty": (empty_shard, "model-00001-of-00002.safetensors is empty"),
    "an index without names": (lambda f: (as_shards(f), write("model.safetensors.index.json", "{}")(f)), "index.json names no files"),
    "an index that is not JSON": (lambda f: (as_shards(f), write("model.safetensors.index.json", "{")(f)), "index.json is not JSON"),
    "no weights": (remove("*.safetensors"), "it has no weights, neither model.safetensors nor"),
    "weights of another name": (lambda f: (f / "model.safetensors").rename(f / "best.safetensors"), "it has no weights"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors is empty"),
    "weights cut in the header": (shorten("model.safetensors", 5000), "model.safetensors cannot be read, download it again"),
    "weights cut at the end": (shorten("model.safetensors", -5000), "model.safetensors cannot be read, download it again"),
    "weights that are a page": (write("model.safetensors", "<html>404 Not Found</html>"), "model.safetensors cannot be read"),
    "weights are a pointer": (write("model.safetensors", POINTER), "model.safetensors is a pointer of Git LFS.* run git lfs pull in"),
    "the tokenizer is a pointer": (write("tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
    "pickled weights are a pointer": (lambda f: (as_pickle(f), write("pytorch_model.bin", POINTER)(f)), "bin is a pointer of Git LFS"),
    "pickled weights are cut": (lambda f: (as_pickle(f), shorten("pytorch_model.bin", 9999)(f)), "is damaged or incomplete"),
    "config.json is cut": (shorten("config.json", 300), "config.json is not JSON"),
    "config.json is empty": (write("config.json", ""), "config.json is not JSON"),
    "config.json is a list": (write("config.json", "[1, 2]"), "config.json is not a JSON object"),
    "config.json is binary": (write("config.json", b"\xff\xfe\0\0"), "config.json is not JSON"),
    "generation_config.json is cut": (shorten("generation_config.json", 30), "generation_config.json is not JSON"),
    "tokenizer.json is cut": (shorten("tokenizer.json", 3000), "tokenizer.json is not JSON"),
    "tokenizer_config.json is a number": (write("tokenizer_config.json", "7"), "tokenizer_config.json is not a JSON object"),
    "processor_config.json is cut": (shorten("processor_config.json", 100), "processor_config.json is not JSON"),
    "no config.json": (remove("config.json"), "has no config.json: it is no model's folder"),
    "no tokenizer": (remove("tokenizer*"), r"it has no tokenizer \(tokenizer.json\)"),
    "no tokenizer.json": (remove("tokenizer.json"), r"it has no tokenizer \(tokenizer.json\)"),
    "no image processor": (remove("processor_config.json"), r"it has no image processor \(preprocessor_config.json\)"),
    "nothing": (remove("*"), "has no config.json"),
    "a folder of the hub's cache": (as_hub_cache, "has no config.json; the model is in .*snapshots/0123456789abcdef"),
    "adapters": (write("adapter_config.json", '{"base_model_name_or_path": "x"}'), r"holds adapters \(adapter_config.json\), not a model"),
    "no model_type": (lambda f: edit_json(f / "config.json", model_type=None), "Unrecognized model|model type"),
    "an unknown family": (lambda f: edit_json(f / "config.json", model_type="llava"), "unknown supervisor family 'llava'"),
    "weights elsewhere": (lambda f: edit_json(f / "config.json", transformers_weights="../x.safetensors"), "is damaged or incomplete"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_folder_is_one_line(tmp_path, family, what):
    change, said = DAMAGED[what]
    folder = copied(family, tmp_path / "model")
    change(folder)
    with pytest.raises(SagaError, match=said) as error:
        load_supervisor(folder, IMAGE_SIZE)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_file_of_a_model_in_place_of_its_folder_is_one_line(tmp_path, name):
    folder = copied("qwen3_vl", tmp_path / "model")
    with pytest.raises(SagaError, match=f"{name} is a file; a model is a folder, here {folder}"):
        load_supervisor(folder / name, IMAGE_SIZE)
    with pytest.raises(SagaError, match=f"{name} is a file; a model is a folder"):
        address(folder / name)


@pytest.mark.parametrize("what", ["config.json is cut", "config.json is a list", "no config.json", "a folder of the hub's cache"])
def test_the_planner_says_the_same_of_a_folder(tmp_path, what):
    change, said = DAMAGED[what]
    folder = copied("qwen3_vl", tmp_path / "model")
    change(folder)
    with pytest.raises(SagaError, match=said):
        architecture(str(folder))


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "b" * 300, "no/such/model", "owner/absent", "../absent", "a model"])
def test_names_that_are_no_models_are_one_line(name):
    with pytest.raises(SagaError, match="is neither a local folder nor an available hub id"):
        load_supervisor(name, IMAGE_SIZE)
    with pytest.raises(SagaError, match="unknown model without a local folder"):
        architecture(name)
    assert address(name)


def test_a_tokenizer_that_the_planner_cannot_read_is_one_line(tmp_path):
    folder = copied("qwen3_vl", tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SagaError, match="tokenizer.json cannot be read") as error:
        estimate(make_config("smoke", "miniature_birds", "pf", 0, supervisor=str(folder)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes, said", [
    ({"text_config": None}, "has no 'hidden_size'"), ({"text_config": 3}, "cannot be read"), ({"vision_config": []}, "cannot be read"),
    ({"vision_config": {"patch_size": 0}}, "cannot be read"), ({"vision_config": {"patch_size": "8"}}, "cannot be read"),
    ({"model_type": ["a"]}, "unknown supervisor family"),
])  # fmt: skip
def test_the_planner_reads_a_strange_configuration_or_says_so_in_one_line(tmp_path, changes, said):
    folder = copied("qwen3_vl", tmp_path / "model")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(SagaError, match=said) as error:
        architecture(str(folder))
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- code never runs


class RunsCode:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (eval, (f"open({self.path!r}, 'w').close()",))


@pytest.fixture
def planted(tmp_path):
    """A file that planted code would create."""
    return tmp_path / "code-ran"


def test_pickled_weights_with_code_are_refused_and_not_run(tmp_path, planted):
    pickle.loads(pickle.dumps(RunsCode(planted)))
    assert planted.is_file(), "it is dangerous"
    planted.unlink()
    folder = copied("qwen3_vl", tmp_path / "model")
    as_pickle(folder, extra=RunsCode(planted))
    with pytest.raises(SagaError, match="its pickled weights hold more than tensors, which would run as code"):
        load_supervisor(folder, IMAGE_SIZE)
    assert not planted.exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("file, changes, refused", [
    ("config.json", {"auto_map": {"AutoConfig": "planted.A", "AutoModelForImageTextToText": "planted.B"}}, False),
    ("config.json", {"auto_map": {"AutoConfig": "planted.A"}, "model_type": "own"}, True),
    ("processor_config.json", {"auto_map": {"AutoProcessor": "planted.A"}, "processor_class": "Own"}, True),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["planted.A", None]}, "tokenizer_class": "Own"}, None),
    ("generation_config.json", {"custom_generate": "planted.py"}, None),
])  # fmt: skip
def test_code_that_comes_with_a_model_is_not_run(tmp_path, planted, family, file, changes, refused):
    folder = copied(family, tmp_path / "model")
    edit_json(folder / file, **changes)
    for place in (folder, folder / "custom_generate"):
        place.mkdir(exist_ok=True)
        for name in ("planted.py", "generate.py"):
            (place / name).write_text(f"open({str(planted)!r}, 'w').close()\nclass A: pass\nB = A\n")
    try:
        load_supervisor(folder, IMAGE_SIZE)
        assert refused is not True
    except SagaError as error:
        assert refused is not False and "\n" not in str(error)
    assert not planted.exists()


# ------------------------------------------------------------------------------------------------ unknown names


@pytest.mark.parametrize("name, meant", [
    ("vit_smal_patch14_dinov2", "vit_small_patch14_dinov2"), ("resnet_50", "resnet50"), ("VIT_BASE_PATCH16_224", "vit_base_patch16_224"),
    ("vit_smal_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2"), ("", ""), ("x" * 5000, ""), ("convnext-tiny", "convnext_tiny"),
])  # fmt: skip
def test_a_slip_in_a_timm_name_is_one_short_line_with_the_closest(name, meant):
    with pytest.raises(SagaError, match="unknown timm model") as error:
        TimmTower.create(name, IMAGE_SIZE, pretrained=False)
    line = str(error.value)
    assert len(line) < 400 and "\n" not in line and meant in line and line.count(",") <= 3


def test_few_names_are_all_listed():
    assert "known: a, b, c" in str(unknown_name("letter", "d", "cab"))
    assert str(unknown_name("number", "1000", map(str, range(1000)))).endswith("the closest of the 1,000 known are 100, 10, 910")
