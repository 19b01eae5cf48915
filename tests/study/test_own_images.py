"""Your own images as a benchmark of training: settings, content addresses, and what a person gets wrong."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
from tiny import random_images

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_lib.prompts import generic_prompt
from saga_lib.vocabulary import VOCABULARY_FOLDER, load_vocabulary
from saga_study.datasets.loading import load_benchmark, run_benchmark
from saga_study.findings.table_1 import export_remark
from saga_study.methods import Profile, describe, make_config
from saga_study.own_images.folder import EXAMPLE_CLASSES, EXAMPLE_IMAGES, example_folder, own_images, user_path
from saga_study.own_images.vocabulary_files import save_vocabulary
from saga_study.resolving import open_session, resolve, supervisor_source, train_run
from saga_study.runs.store import load_run, train_or_load

PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "real" / "cub200_2011_mini"


@pytest.fixture
def folder(tmp_path):
    """Six classes of four different images each."""
    images = iter(random_images(24, size=(60, 52)))
    for c in range(6):
        place = tmp_path / "toys" / f"toy {c}"
        place.mkdir(parents=True)
        for i in range(4):
            next(images).save(place / f"{i}.png")
    return tmp_path / "toys"


@pytest.fixture
def settings(folder, checkpoint):
    return {"data_dir": str(folder), "vocabulary": "miniature_birds", "supervisor": str(checkpoint)}


def smoke(method, **settings):
    return make_config("smoke", "image_folder", method, 0, embedding_dim=16, batch_size=8, pairs_per_wave=4, **settings)


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data_dir": ""}, "needs data_dir, a folder of class sub-folders, or a CSV"),
        ({"vocabulary": ""}, "needs vocabulary, a name or a YAML file"),
        ({"prompt": "free"}, "unknown prompt 'free'"),
        ({"dataset": "cub200"}, "data_dir is for dataset image_folder, not for cub200"),
        ({"data_dirs": "x"}, "did you mean 'data_dir'"),
    ],
)
def test_wrong_settings_are_one_line(change, said):
    settings = {"dataset": "image_folder", "data_dir": "photos", "vocabulary": "birds"} | change
    with pytest.raises(SagaError, match=said):
        make_config("miniature", settings.pop("dataset"), "pf", 0, **settings)


def test_only_rollouts_about_known_attributes_are_audited(settings):
    assert smoke("saga_pf", **settings).audit_every == 0
    assert make_config("miniature", "miniature_birds", "saga_pf", 0, prompt="generic").audit_every == 0
    for options in ({"prompt": "generic"}, {"prompt": "generic", "language_signal": "grpo", "audit_every": 5}):
        with pytest.raises(SagaError, match="neither an oracle nor an audit"):
            make_config("miniature", "miniature_birds", "oracle", 0, **options)


def test_paths_become_absolute_and_names_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = make_config("miniature", "image_folder", "pf", 0, data_dir="photos", vocabulary="birds")
    assert (config.data_dir, config.vocabulary) == (str(tmp_path / "photos"), "birds")
    assert make_config("miniature", "image_folder", "pf", 0, data_dir="p", vocabulary="v.yaml").vocabulary == str(tmp_path / "v.yaml")
    inside = replace(config, data_dir=str(REPOSITORY / "data" / "photos"))  # records name no machine's folders
    assert inside.to_dict()["data_dir"] == "data/photos" and RunConfig.from_dict(inside.to_dict()) == inside
    assert describe(config) == "photos pf seed 0" and describe(replace(config, data_dir="/x/my.csv")) == "my pf seed 0"


def test_the_miniature_supervisor_goes_with_its_vocabularies_only(settings):
    config = replace(smoke("pf", **settings), supervisor="miniature")
    assert supervisor_source(config).endswith("birds")
    with pytest.raises(SagaError, match="not trained on anything like vocabulary .*mugs.yaml .it knows miniature_birds.*name another"):
        supervisor_source(replace(config, vocabulary="mugs.yaml"))
    for name in ("birds", "cars", "aircraft"):
        with pytest.raises(SagaError, match=f"vocabulary {name} is the paper's.*SUPERVISOR.* knows miniature_{name}"):
            supervisor_source(replace(config, vocabulary=name))
    with pytest.raises(SagaError, match="load_image_folder"):
        load_benchmark("image_folder")


# -------------------------------------------------------------------------------------------- content addresses


def key(config):
    return resolve(config).key


def test_the_address_holds_the_content_and_not_the_place(folder, settings, tmp_path):
    first = key(smoke("pf", **settings))
    shutil.copytree(folder, tmp_path / "moved")
    assert key(smoke("pf", **settings | {"data_dir": str(tmp_path / "moved")})) == first
    assert key(smoke("pf", **settings, split_seed=1)) != first and key(smoke("pf", **settings, test_fraction=0.34)) != first
    random_images(1, seed=9)[0].save(folder / "toy 0" / "0.png")
    assert key(smoke("pf", **settings)) != first


def test_the_address_holds_the_vocabulary_s_content(settings, tmp_path):
    vocabulary = load_vocabulary("miniature_birds")
    keys = []
    for number, one in enumerate((vocabulary, vocabulary, replace(vocabulary, attributes=vocabulary.attributes[1:]))):
        save_vocabulary(one, tmp_path / f"{number}.yaml")
        keys.append(key(smoke("pf", **settings | {"vocabulary": str(tmp_path / f"{number}.yaml")})))
    assert keys[0] == keys[1] != keys[2]
    birds = make_config("smoke", "miniature_birds", "pf", 0, vocabulary=str(tmp_path / "2.yaml"))
    assert len(load_vocabulary(run_benchmark(birds).vocabulary).attributes) == len(vocabulary.attributes) - 1


# ----------------------------------------------------------------------------------------------------- training


def test_the_card_says_on_what_was_trained(folder, checkpoint):
    own = own_images(str(folder), "birds", str(checkpoint))
    assert own.card("saga_pf", "k") == {"trained on": "toys", "method": "saga_pf", "run": "k"}
    assert "nothing" in own.card("pre-trained", "k")["trained on"]


@pytest.mark.parametrize("method", ["pf", "saga_pf"])
def test_a_folder_trains_and_is_found_again(settings, method):
    config = smoke(method, **settings)
    run = train_or_load(config)
    assert run.evaluation["num_queries"] == 12 and run.evaluation["steps"] == 3
    assert load_run("by-hand", config).key == run.key == run.folder.name
    assert "| trained on | toys |" in (run.folder / "encoder" / "README.md").read_text()


def test_a_csv_trains(folder, settings, tmp_path):
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name},{'test' if p.parent.name > 'toy 2' else 'train'}" for p in folder.rglob("*.png")]
    (tmp_path / "toys.csv").write_text("\n".join(["path,label,split", *rows]))
    run = train_run(smoke("pf", **settings | {"data_dir": str(tmp_path / "toys.csv")}), tmp_path / "run")
    assert run.evaluation["num_classes"] == 3


def test_the_generic_prompt_is_asked_without_attributes(settings):
    config = smoke("saga_pf", **settings, prompt="generic")
    session = open_session(config)
    asked = session.benchmark.vocabulary
    assert session.draft == [] and session.prompt_ids.tolist() == session.supervisor.prompt_ids(
        generic_prompt(load_vocabulary(asked))
    ).tolist()  # fmt: skip
    metrics = session.run_step()
    assert metrics["pairs_drawn"] == 4 and metrics.get("loss_kl", 0) == 0


@pytest.mark.parametrize("count, said", [(0, "no image is in it"), (1, "too few classes"), (2, "test split of toys has 6 images")])
def test_what_cannot_be_trained_is_said_before_a_model_is_loaded(folder, settings, count, said):
    for place in folder.iterdir():
        for path in sorted(place.iterdir())[count:]:
            path.unlink()
    with pytest.raises(SagaError, match=said) as error:
        open_session(replace(smoke("pf", **settings), supervisor="/does/not/exist"))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ notebook parameters


def test_an_example_stands_in_for_own_images(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGA_DATA", str(tmp_path / "data"))
    example = own_images(profile="paper")
    assert example.is_example and example.profile == Profile("miniature") and example.vocabulary == "miniature_birds"
    assert example_folder(tmp_path / "data") == example.source
    benchmark, checks = example.load()
    assert len(benchmark.train) + len(benchmark.test) == EXAMPLE_CLASSES * EXAMPLE_IMAGES
    assert not (checks["severity"] == "error").any()
    assert example.config("saga_pf", 3, steps=2).seed == 3 and example.config("pf").supervisor == "miniature"
    (tmp_path / "file").write_text("")
    with pytest.raises(SagaError, match="cannot write .*SAGA_DATA"):
        example_folder(tmp_path / "file" / "data")


def test_data_dir_in_another_form_of_unicode_is_found(folder):
    place = folder.rename(folder.with_name("Vo\u0308gel"))
    shutil.copy(VOCABULARY_FOLDER / "birds.yaml", place.with_name("Mo\u0308wen.yaml"))
    own = own_images(str(folder.with_name("V\u00f6gel")), str(folder.with_name("M\u00f6wen.yaml")))
    assert own.source == place and len(own.load()[0].train) == 12


def test_own_images_are_looked_for_where_one_is_and_then_in_the_repository(folder, checkpoint, monkeypatch, tmp_path):
    (tmp_path / "here" / "2024").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert user_path(2024) == tmp_path / "here" / "2024", "papermill makes a number of it"
    assert user_path("docs") == REPOSITORY / "docs" and user_path(str(folder)) == folder
    with pytest.raises(SagaError, match=f"DATA_DIR {REPOSITORY}/data/none does not exist, nor is it in {tmp_path}/here"):
        own_images("data/none", "birds")
    own = own_images(str(folder), "birds", str(checkpoint), "paper", 0.25, 4)
    assert not own.is_example and own.profile == Profile("paper") and own.name == "toys"
    config = own.config("pf")
    assert (config.data_dir, config.test_fraction, config.split_seed, config.supervisor) == (str(folder), 0.25, 4, str(checkpoint))
    assert own_images(str(folder), "birds", "some/hub-id").config("pf").supervisor == "some/hub-id"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("photos",), "set VOCABULARY to a YAML file"),
        ((0, "birds"), "DATA_DIR .*/0 does not exist"),
        ((False, "birds"), "DATA_DIR .*/False does not exist"),
        (([], "birds"), r"DATA_DIR .*/\[\] does not exist"),
        (("x" * 5000, "birds"), "DATA_DIR .*x does not exist"),
        (("a\0b", "birds"), "DATA_DIR .*/a.x00b does not exist"),
        (("/does/not/exist", "birds"), "DATA_DIR /does/not/exist does not exist"),
        (("", "brids"), "did you mean 'birds'"),
        (("", "/no/such.yaml"), "no/such.yaml does not exist"),
        (("", "", "", "tiny"), "unknown profile 'tiny'"),
    ],
)
def test_wrong_parameters_are_one_line(arguments, said):
    with pytest.raises(SagaError, match=said):
        own_images(*arguments)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="photographs of CUB-200-2011 are not there")
def test_real_photographs_load(checkpoint):
    own = own_images(str(PHOTOGRAPHS), "birds", str(checkpoint))
    benchmark, checks = own.load()
    assert len(benchmark.train.class_names) >= 2 and not (checks["severity"] == "error").any()


def test_the_export_says_whether_another_retrieved_better():
    table = pd.DataFrame({"method": ["pre-trained", "pf", "saga_pf"], "label": ["pre-trained", "PF", "SAGA (PF)"],
                          "R@1": [0.5, 0.7, 0.6], "R@1 std": [0.0, 0.01, 0.01], "seeds": [1, 3, 3]})  # fmt: skip
    assert "PF has a higher R@1 here" in export_remark(table, "saga_pf") and "EXPORT_METHOD pf" in export_remark(table, "saga_pf")
    assert export_remark(table, "pf").startswith("No other method of the table has a higher R@1 here; expect a little less elsewhere")
    assert "nothing was trained" in export_remark(table, "pre-trained")
