"""Notebooks 13-16 without a kernel: their cells run on a small folder of images, and wrong parameters are one line."""

import shutil
from pathlib import Path

import nbformat
import pytest
from tiny import IMAGE_SIZE, random_images

from saga_lib.common.errors import SagaError
from saga_lib.vocabulary import load_vocabulary
from saga_study.parameters import check_parameters
from saga_study.paths import NOTEBOOKS, study_folder

SMALL = {"PROFILE": "smoke"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six classes of six images each."""
    folder, images = tmp_path_factory.mktemp("photos"), iter(random_images(36))
    for c in range(6):
        (folder / f"toy {c}").mkdir()
        for i in range(6):
            next(images).save(folder / f"toy {c}" / f"{i}.png")
    return folder


@pytest.fixture
def own(folder, checkpoint):
    return SMALL | {"DATA_DIR": str(folder), "VOCABULARY": "miniature_birds", "SUPERVISOR": str(checkpoint)}


def run(number, capsys=None, **parameters):
    """Run a notebook's cells in this process; return what they left in their namespace."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    check_parameters(path, parameters)
    space: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)  # noqa: S102  (the notebooks of this repository)
            if "parameters" in cell.metadata.get("tags", []):
                space.update(parameters)
    return space


def refusal(number, **parameters):
    with pytest.raises(SagaError) as error:
        run(number, **parameters)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_readiness(own, capsys):
    ready = run(14, **own, NUM_PAIRS=8)["ready"]
    shown = capsys.readouterr().out
    assert ready.verdict.upper() in shown and "hours for 3 steps" in shown
    made = study_folder("by-hand-smoke")
    assert (made / "tables" / "14_readiness.csv").is_file() and (made / "figures" / "14_readiness.png").is_file()


def test_your_dataset_then_search(own, folder, tmp_path, capsys):
    space = run(15, **own)
    table, made = space["table"], study_folder("by-hand-smoke")
    assert table["method"].tolist() == ["pre-trained", "pf", "saga_pf"] and table["steps"].tolist() == [0, 3, 3]
    assert not [name for name in space["main"] if "paper" in name]
    assert list((made / "exports").glob("15_*.pt2")) and (made / "figures" / "15_gallery.png").is_file()
    assert "all differences are to it" in capsys.readouterr().out
    found = run(16, **own, NUM_QUERIES=2, K=3)  # the run of 15, not trained again
    assert len(found["table"]) == 6 and found["encoder"].pooler_name == "attention"
    assert not (found["table"]["query"] == found["table"]["name"]).any()
    assert "data:image/jpeg" in (made / "search" / "gallery.html").read_text()
    query = tmp_path / "query.png"
    shutil.copy(folder / "toy 0" / "0.png", query)
    encoder = next(study_folder("by-hand").glob("runs/*/encoder"))
    asked = run(16, **SMALL, ENCODER=str(encoder), IMAGES=str(folder), QUERIES=[str(query)], INDEX="HNSW32", K=99)
    assert len(asked["table"]) == 35 and asked["table"]["similarity"][0] == pytest.approx(1, abs=1e-4)


def test_the_class_of_a_hit_is_the_first_folder_below_data_dir(own, checkpoint, tmp_path):
    """Not the folder of the session it was photographed in."""
    from saga_lib.encoder import Encoder
    from saga_lib.families.loading import load_supervisor

    images = iter(random_images(36))
    for c in range(6):
        for session in ("morning", "evening"):
            place = tmp_path / "photos" / f"toy {c}" / session
            place.mkdir(parents=True)
            for i in range(3):
                next(images).save(place / f"{i}.png")
    Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0]).save_pretrained(tmp_path / "encoder")
    found = run(16, **own | {"DATA_DIR": str(tmp_path / "photos"), "ENCODER": str(tmp_path / "encoder")}, NUM_QUERIES=3, K=35)
    pictures, results = found["pictures"], found["results"]
    assert len(results) == 3 and len(pictures) == 3 * 36
    for number, (query, hits) in enumerate(results.items()):
        own_class = Path(query).parts[-3]
        assert own_class.startswith("toy") and pictures[36 * number].caption == own_class
        frames = [picture.frame for picture in pictures[36 * number + 1 : 36 * (number + 1)]]
        assert frames == [hit.path.parts[-3] == own_class for hit in hits] and sum(frames) == 5


@pytest.fixture
def papers(own):
    """The paper's profile with settings made small: what runs is its path, with its defaults for what is not named."""
    small = {
        "steps": 2, "image_size": IMAGE_SIZE, "embedding_dim": 16, "batch_size": 8, "batch_images_per_class": 2, "pairs_per_wave": 4,
        "group_size": 4, "contributing_pairs": 2, "max_new_tokens": 24, "attention_layer": 1,
    }  # fmt: skip
    return own | {"PROFILE": "paper", "SETTINGS": [f"{name}={value}" for name, value in small.items()]}


def test_readiness_training_and_search_at_the_papers_profile(papers, capsys):
    assert run(14, **papers, NUM_PAIRS=8)["ready"].verdict.upper() in capsys.readouterr().out
    assert run(15, **papers, STEPS=0)["table"]["steps"].tolist() == [0, 2, 2]
    asked = run(16, **papers, STEPS=0, NUM_QUERIES=2, K=3)  # the run of 15
    assert len(asked["table"]) == 6 and asked["own"].config("saga_pf").replay_rows == 2


def test_discovery_at_the_papers_profile(papers, scripted):
    blank = papers | {"VOCABULARY": "", "ITEM": "toy", "KIND": "toy", "NUM_PAIRS": 24, "SEEDS": [0]}
    found = run(13, **blank, TRAIN=True, VARIANTS=["discovered", "generic"])
    assert found["shown"]["method"].tolist() == ["discovered", "generic"] and found["configs"]["generic"][0].profile == "paper"


def test_a_vocabulary_is_discovered_without_one(own, scripted, capsys):
    parameters = own | {"VOCABULARY": "", "ITEM": "toy", "KIND": "toy", "NUM_PAIRS": 24, "SEEDS": [0]}
    space = run(13, **parameters, TRAIN=True, VARIANTS=["discovered", "generic"])
    kept = space["found"].vocabulary.attribute_names
    assert len(kept) == 1 and kept[0] in ("toy shape", "toy look")
    folder = study_folder("by-hand-smoke") / "vocabularies"
    assert load_vocabulary(folder / "discovered.yaml").attribute_names == kept
    assert space["shown"]["method"].tolist() == ["discovered", "generic"] and len(space["configs"]["generic"]) == 1
    assert f"1 kept: {kept[0]}" in capsys.readouterr().out
    planned = run(13, **parameters)["shown"]  # no hand-written one to compare with, one attribute cannot be shuffled
    assert planned["vocabulary"].tolist() == ["short", "grown", "discovered", "generic"]
    assert "TRAIN and FULL are False" in planned["state"][0]


@pytest.mark.parametrize("number", [13, 14, 15, 16])
@pytest.mark.parametrize(
    "change, said",
    [
        ({"DATA_DIR": "/does/not/exist"}, "DATA_DIR /does/not/exist does not exist"),
        ({"VOCABULARY": "brids"}, "did you mean 'birds'"),
        ({"SUPERVISOR": "/does/not/exist"}, "neither a local folder nor an available hub id"),
        ({"PROFILE": "smok"}, "unknown profile 'smok': did you mean 'smoke'"),
        ({"DATADIR": "x"}, "did you mean 'DATA_DIR'"),
        ({"SUPERVISOR": None}, "SUPERVISOR must be of type str"),
        ({"SETTINGS": ["stps=3"]}, "unknown run setting 'stps': did you mean 'steps'"),
        ({"SETTINGS": ["steps"]}, "SETTINGS takes name=value"),
    ],
)
def test_wrong_parameters_of_all_are_one_line(own, number, change, said):
    assert said in refusal(number, **own | change)


@pytest.mark.parametrize(
    "number, change, said",
    [
        (13, {"ASK": "politely"}, "unknown way to ask"),
        (13, {"VARIANTS": ["generik"]}, "did you mean 'generic'"),
        (13, {"NUM_PAIRS": 4}, "too few"),
        (13, {}, "the supervisor proposed no attribute"),  # it is untrained
        (14, {"METHOD": "pf"}, "asks its supervisor nothing"),
        (14, {"PROMPT": "free"}, "unknown prompt 'free'"),
        (14, {"NUM_PAIRS": 3}, "too few"),
        (15, {"METHODS": ["pf", "saga"]}, "unknown method 'saga'"),
        (15, {"METHODS": ["saga_pf"]}, "unknown baseline among METHODS 'pf'"),
        (15, {"METHODS": ["pf", "oracle"]}, "no attribute truth|has no attribute"),
        (15, {"SEEDS": []}, "no run of"),
        (15, {"EXPORT": "onxx"}, "did you mean 'onnx'"),
        (15, {"STEPS": -1}, "STEPS must be at least 0, got -1"),
        (15, {"TEST_FRACTION": 1.5}, "TEST_FRACTION must be above 0, below 1, got 1.5"),
        (16, {"ENCODER": "/does/not/exist"}, "config.json does not exist"),
        (16, {"IMAGES": "/does/not/exist"}, "folder /does/not/exist does not exist"),
        (16, {"QUERIES": ["/no.jpg"]}, "image /no.jpg does not exist"),
        (16, {"K": 0}, "K must be at least 1, got 0"),
        (16, {"INDEX": "flat"}, "index 'flat' is unknown to faiss"),
    ],
)
def test_wrong_parameters_are_one_line(own, number, change, said):
    message = refusal(number, **own | change)
    assert any(part in message for part in said.split("|")), message


@pytest.mark.parametrize("number", [14, 16])
def test_bad_files_and_places_are_one_line(own, number, tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_text("name: toys\n\titem: toy\n")
    assert "bad.yaml, line 2: not valid YAML (a tab" in refusal(number, **own | {"VOCABULARY": str(tmp_path / "bad.yaml")})
    (tmp_path / "empty").mkdir()
    assert "no image is in it" in refusal(number, **own | {"DATA_DIR": str(tmp_path / "empty")})
    assert "set VOCABULARY" in refusal(number, **own | {"VOCABULARY": ""})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAGA_RESULTS", str(tmp_path / "file"))
    assert "cannot write into" in refusal(number, **own)
