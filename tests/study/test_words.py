"""Words for pictures: scores against stock forwards, precision against scikit-learn, the learnt map against its closed form."""

import json
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny import IMAGE_SIZE, random_images

from saga_lib.common.errors import SagaError
from saga_lib.datasets.splits import Benchmark, Split
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.reading import Reader, description_answer
from saga_lib.supervisor.replay import attribute_tokens
from saga_lib.vocabulary import Attribute, load_vocabulary
from saga_study.deploy import words
from saga_study.deploy.words import Descriptions, WordMap, describe_images, descriptions_of, parse_words
from saga_study.findings import attention_maps, claims, figures, phrases
from saga_study.findings.phrases import READ, SEARCHED, SHUFFLED
from saga_study.findings.samples import POOLED
from saga_study.methods import make_config
from saga_study.search import main

VOCABULARY = load_vocabulary("miniature_birds")
VALUES = {a.name: a.values for a in VOCABULARY.attributes}

# ------------------------------------------------------------------------------------------------ what words mean


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("red crown and barred wing", {"crown color": "red", "wing pattern": "barred"}),
        ("a HOOKED bill with orange legs", {"bill shape": "hooked", "leg color": "orange"}),
        ("crown color: red; wing pattern: barred", {"crown color": "red", "wing pattern": "barred"}),
        ("hooked, red", {"bill shape": "hooked", "crown color": "red"}),
        ("tipped & pink breast", {"tail pattern": "tipped", "breast color": "pink"}),
    ],
)  # fmt: skip
def test_phrases_are_understood(text, meant):
    assert parse_words(text, VALUES) == meant


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("striped wing", "unknown words 'striped wing': did you mean"),
        ("spotted", "may mean 'breast pattern: spotted' or 'wing pattern: spotted'"),
        ("crown colour: red", "unknown attribute 'crown colour': did you mean 'crown color'"),
        ("crown color: reed", "unknown value of crown color 'reed': did you mean 'red'"),
        ("red crown and yellow crown", "'red' and 'yellow' of crown color"),
        (" , ", "say nothing; give some such as 'cone bill shape and black crown color'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named_with_the_nearest(text, told):
    with pytest.raises(SagaError, match=told):
        parse_words(text, VALUES)


def test_a_value_that_holds_an_and_stays_whole():
    values = {"crown": ("black", "white", "black and white"), "leg": ("red", "black")}
    assert parse_words("black and white crown", values) == {"crown": "black and white"}
    assert parse_words("black crown and red leg", values) == {"crown": "black", "leg": "red"}


# ------------------------------------------------------------------------------------------- phrases and their scores


def stock_log_p(supervisor, reader, image, attribute):
    """Return log p of an attribute's values by a stock forward each: at every token, among those that some value goes on with."""
    start = next(t[0] for (_, name), t in attribute_tokens(supervisor, reader._answer).items() if name == attribute.name)
    texts = [description_answer(VOCABULARY, reader._item | {attribute.name: value}) for value in attribute.values]
    answers = [supervisor.answer_ids(text) for text in texts]
    scores = []
    for answer in answers:
        ids = torch.cat([reader.prompt_ids, torch.tensor(answer)])[None]
        logits = supervisor.head(supervisor.forward_sequences(ids, image)[0, len(reader.prompt_ids) - 1 :])
        total = 0.0
        for place in range(start, len(answer)):
            allowed = sorted({other[place] for other in answers if other[start:place] == answer[start:place]})
            if len(allowed) > 1:
                total += float(logits[place, allowed].log_softmax(-1)[allowed.index(answer[place])])
        scores.append(total)
    return np.array(scores)


@pytest.fixture(scope="module")
def seen(loaded):
    """Pixels of seven images, as the tiny model's tower takes them."""
    return loaded[0].preprocess(random_images(7))


@torch.no_grad()
def test_scores_are_log_probabilities_of_stock_forwards_against_their_mean(loaded, seen):
    tower, supervisor = loaded
    read = describe_images(tower, supervisor, VOCABULARY, seen.split(3))
    reader, attributes = Reader(supervisor, VOCABULARY), [VOCABULARY.attributes[n] for n in (1, 5)]
    log_p = {a.name: np.stack([stock_log_p(supervisor, reader, tower(seen[n : n + 1]), a) for n in range(7)]) for a in attributes}
    before = Descriptions(read.values, [p[:4] for p in read.shares])
    chosen = [(("crown color", "red"),), (("crown color", "blue"), ("wing pattern", "barred"))]
    scores = phrases.reading_scores(read, before, chosen)
    for row, phrase in zip(scores, chosen, strict=True):
        expected = np.zeros(7)
        for name, value in phrase:
            own = log_p[name][:, VALUES[name].index(value)]
            expected += own - np.log(np.exp(own[:4]).mean())
        np.testing.assert_allclose(row, expected, atol=1e-4)
        assert np.ptp(expected) > 0.01, "images are told apart"


def test_precisions_are_those_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    relevant = rng.uniform(size=(30, 50)) < 0.2
    relevant[:, 7] = True
    for scores in (rng.normal(size=(30, 50)), rng.integers(0, 4, (30, 50)).astype(float), np.zeros((30, 50))):
        expected = [average_precision_score(truth, row) for truth, row in zip(relevant, scores, strict=True)]
        np.testing.assert_allclose(phrases.average_precisions(scores, relevant), expected)
    best = [sorted(range(50), key=lambda n, row=row: (-row[n], n))[:10] for row in scores]
    assert phrases.precisions(scores, relevant).tolist() == [np.mean([relevant[q, n] for n in row]) for q, row in enumerate(best)]


def classes(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: str(rng.choice(own)) for name, own in VALUES.items()} for _ in range(count)]


def test_phrases_are_drawn_from_what_classes_have_and_their_images_are_those_of_the_truth(tmp_path):
    there = classes()
    for own in there:
        own["leg color"] = "black"  # all have it: nothing to search for
    drawn = phrases.draw_phrases(VOCABULARY, there, most=20)
    sizes = [len(phrase) for phrase in drawn]
    assert len(set(drawn)) == len(drawn) and sizes.count(2) == sizes.count(3) == 20
    assert {p for p in drawn if len(p) == 1} == {((n, own[n]),) for own in there for n in VALUES} - {(("leg color", "black"),)}
    assert phrases.draw_phrases(VOCABULARY, there, 20, seed=1) != drawn == phrases.draw_phrases(VOCABULARY, there, 20)
    every = len({tuple((n, own[n]) for n in names) for names in combinations(VALUES, 2) for own in there})
    assert sum(len(p) == 2 for p in phrases.draw_phrases(VOCABULARY, there, 10**6)) == every
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 3))
    split = Split("test", [tmp_path / f"{n}.png" for n in range(36)], labels, [f"c{n}" for n in range(12)], there)
    two = phrases.first_images(split, 2)
    assert np.bincount(two.labels).tolist() == [2] * 12 and len(phrases.first_images(split, 0)) == 36
    assert two.paths[0] == split.paths[np.flatnonzero(labels == 0)[0]]
    found = phrases.relevant_images(drawn, two)
    assert found.tolist() == [[all(there[c][n] == v for n, v in phrase) for c in two.labels] for phrase in drawn]
    assert found.any(1).all() and not found.all(1).any()
    assert phrases.say(drawn[0]) == f"{drawn[0][0][1]} {drawn[0][0][0]}"


# --------------------------------------------------------------------------------------------------------- the map


def planted(num=300, dim=40, noise=0.3, seed=0):
    """Return descriptions of two attributes, and embeddings that hold both along random directions."""
    rng = np.random.default_rng(seed)
    values = {"bill": ("cone", "hooked", "needle"), "wing": ("plain", "barred")}
    true = [rng.integers(len(own), size=num) for own in values.values()]
    shares = [np.eye(len(own), dtype=np.float32)[one] for own, one in zip(values.values(), true, strict=True)]
    embeddings = np.concatenate(shares, 1) @ rng.normal(size=(5, dim)) + noise * rng.normal(size=(num, dim)) + rng.normal(size=dim)
    return Descriptions(values, shares), (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), true


def test_the_map_is_the_ridge_regression_of_descriptions_on_embeddings(monkeypatch):
    said, embeddings, _ = planted()
    monkeypatch.setattr(words, "RIDGES", [0.5])
    made = WordMap.learn(said, embeddings)
    x, y = embeddings - embeddings.mean(0), said.matrix() - said.matrix().mean(0)
    expected = torch.linalg.solve(torch.tensor(x.T @ x + 0.5 * np.eye(40), dtype=torch.float64), torch.tensor(x.T @ y, dtype=torch.float64))
    np.testing.assert_allclose(made.directions, expected.numpy().T, atol=1e-4)
    query = made.embed([{"Wing": "BARRED", "bill": "cone"}])
    np.testing.assert_allclose(query, made.directions[[0]] + made.directions[[4]])
    for bad, told in (({"wings": "plain"}, "did you mean 'wing'"), ({"wing": "bared"}, "did you mean 'barred'")):
        with pytest.raises(SagaError, match=told):
            made.embed([bad])
    with pytest.raises(SagaError, match="3 embeddings for 300 descriptions"):
        WordMap.learn(said, embeddings[:3])


def test_one_search_finds_what_is_described_and_little_after_a_shuffle():
    said, embeddings, (bill, wing) = planted()
    taught, query = slice(0, 200), [{"bill": "hooked", "wing": "barred"}]
    truth = ((bill == 1) & (wing == 1))[None, 200:]

    def precision(rows):
        own = Descriptions(said.values, [share[rows] for share in said.shares])
        return phrases.average_precisions(WordMap.learn(own, embeddings[taught]).embed(query) @ embeddings[200:].T, truth)[0]

    assert precision(taught) > 0.95
    assert np.mean([precision(np.random.default_rng(seed).permutation(200)) for seed in range(20)]) < 0.5


def test_a_map_survives_the_disk_and_damage_is_named(tmp_path):
    said, embeddings, _ = planted()
    made = WordMap.learn(said, embeddings, "digest")
    made.save(tmp_path)
    loaded = WordMap.load(tmp_path)
    assert np.array_equal(loaded.directions, made.directions) and (loaded.values, loaded.encoder) == (made.values, "digest")
    with pytest.raises(SagaError, match="knows no words yet"):
        WordMap.load(tmp_path / "other")
    record = json.loads((tmp_path / "words.json").read_text())
    for change, told in (
        ({"format": 9}, "is not the one"), ({"values": {"wing": ["plain"]}}, "does not fit"), ({"sha256": "0"}, "is not the one"),
        ({"values": None}, "damaged or incomplete"),
    ):  # fmt: skip
        (tmp_path / "words.json").write_text(json.dumps(record | change))
        with pytest.raises(SagaError, match=told):
            WordMap.load(tmp_path)
    (tmp_path / "words.json").write_text(json.dumps(record))
    (tmp_path / "words.safetensors").unlink()
    with pytest.raises(SagaError, match="damaged or incomplete"):
        WordMap.load(tmp_path)


def test_free_texts_become_values_once_two_images_have_them():
    said = [{"wing": "Barred", "leg": "red"}, {"wing": "barred "}, {"wing": "plain"}, {"wing": "plain", "leg": "blue"}, {"wing": "odd"}]
    found = descriptions_of(said, ["wing", "leg", "bill"])
    assert found.values == {"wing": ("barred", "plain")}
    assert found.matrix().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    with pytest.raises(SagaError, match="the same of all 3 images"):
        descriptions_of([{"wing": "plain"}] * 3, ["wing"])


def test_a_vocabulary_of_free_texts_is_described_in_the_models_own_words(loaded, seen, monkeypatch):
    tower, supervisor = loaded
    free = replace(VOCABULARY, attributes=(Attribute("wing color"), Attribute("leg color")))
    texts = ['{"item_1": {"wing color": "Blue", "leg color": "red"}}', '{"item_1": {"wing color": "blue"}}', "no JSON"]
    texts += ['{"item_1": {"wing color": "grey"}}', '{"item_1": {"wing color": "grey", "leg color": 3}}', "{}", '{"item_1": "x"}']
    left = iter(texts)
    monkeypatch.setattr(Reader, "describe", lambda self, images: [supervisor.answer_ids(next(left)) for _ in range(len(images.merged))])
    found = describe_images(tower, supervisor, free, seen.split(3))
    assert found.values == {"wing color": ("blue", "grey")}
    assert found.matrix().argmax(1).tolist()[:5] == [0, 0, 0, 1, 1] and found.matrix().sum(1).tolist() == [1, 1, 0, 1, 1, 0, 0]


# ---------------------------------------------------------------------------------------------------- the notebook


class FakeRun:
    def __init__(self, method, seed, encoder):
        self.config, self.key, self._encoder = make_config("miniature", "miniature_birds", method, seed), f"{method}{seed}", encoder

    def encoder(self):
        return self._encoder


@pytest.fixture
def measured(tmp_path, checkpoint, monkeypatch):
    """Two methods, one with two seeds, on twelve unseen classes of random images; and the split."""
    splits = []
    for number, name in enumerate(("train", "test")):
        paths = [tmp_path / f"{name}{n}.png" for n in range(36)]
        for path, image in zip(paths, random_images(36, seed=number), strict=True):
            image.save(path)
        splits.append(Split(name, paths, np.repeat(np.arange(12), 3), [f"{name} {n}" for n in range(12)], classes(seed=number)))
    monkeypatch.setattr(phrases, "run_benchmark", lambda config: Benchmark("b", "miniature_birds", *splits, "0"))
    monkeypatch.setattr(attention_maps, "load_frozen", lambda config: load_supervisor(checkpoint, IMAGE_SIZE))
    encoders = []
    for seed in range(3):
        torch.manual_seed(seed)
        encoders.append(Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "mean", 16).eval())
        with torch.no_grad():
            next(encoders[-1].tower.parameters()).mul_(1 + 0.3 * seed)
    runs = {"pre-trained": [FakeRun("pre-trained", 0, encoders[0])], "infonce": [FakeRun("infonce", s, encoders[s]) for s in (2, 1)]}
    return phrases.measure_words(runs, 2, "infonce", most=15), splits, encoders


@torch.no_grad()
def test_every_tower_and_map_is_measured_on_the_same_phrases(measured, checkpoint):
    found, (train, test), encoders = measured
    gallery = phrases.first_images(test, 2)
    tower, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    said = describe_images(tower, supervisor, VOCABULARY, [tower.preprocess(train.images())])
    for seed in (1, 2):  # rows are in the order of seeds
        encoder = encoders[seed]
        read = describe_images(encoder.tower, supervisor, VOCABULARY, [encoder.tower.preprocess(gallery.images())])
        scores = phrases.reading_scores(read, said, found.phrases)
        expected = [average_precision_score(truth, row) for truth, row in zip(found.relevant, scores, strict=True)]
        np.testing.assert_allclose(found.ap[READ]["infonce"][seed - 1], expected, atol=1e-3)
        embeddings = {split.name: encoder.embed(split.images()) for split in (train, gallery)}
        queries = WordMap.learn(said, embeddings["train"]).embed(map(dict, found.phrases))
        expected = [average_precision_score(truth, row) for truth, row in zip(found.relevant, queries @ embeddings["test"].T, strict=True)]
        np.testing.assert_allclose(found.ap[SEARCHED]["infonce"][seed - 1], expected, atol=1e-3)
    assert [run.config.seed for run in found.runs["infonce"]] == [1, 2] and found.ap[READ]["pre-trained"].shape == (1, len(found.phrases))
    assert not np.allclose(found.ap[SEARCHED]["infonce"], found.ap[SHUFFLED]["infonce"])
    assert found.costs["images"] == 24 and found.costs["train"] == 36 and min(found.costs.values()) >= 0
    assert phrases.cost_table([found]).shape == (3, 4)


def test_tables_say_what_was_measured(measured):
    found, *_ = measured
    table = phrases.word_table([found])
    row = table[(table["method"] == "infonce") & (table["way"] == READ) & (table["words"] == 2)].iloc[0]
    means = 100 * found.ap[READ]["infonce"][:, found.sizes == 2].mean(1)
    assert row["mAP"] == pytest.approx(means.mean()) and row["mAP std"] == pytest.approx(means.std(ddof=1)) and row["seeds"] == 2
    assert row["chance"] == pytest.approx(100 * found.relevant[found.sizes == 2].mean()) and row["runs"] == "infonce1 infonce2"
    changes = phrases.difference_table([found, replace(found, dataset="miniature_aircraft")], "infonce")
    one = changes[(changes["method"] == "infonce") & (changes["against"] == "pre-trained") & (changes["metric"] == phrases.METRICS[READ])]
    assert one["benchmark"].tolist() == ["miniature_birds", "miniature_aircraft", POOLED]
    gain = 100 * (found.ap[READ]["infonce"].mean() - found.ap[READ]["pre-trained"].mean())
    assert one["difference"].tolist() == pytest.approx([gain] * 3) and (one["low"] < one["difference"]).all()
    control = changes[changes["against"] == SHUFFLED]
    assert set(control["method"]) == {"pre-trained", "infonce"} and set(control["metric"]) == {phrases.METRICS[SEARCHED]}
    for shown in (phrases.display_words(table, "miniature"), phrases.display_sizes(table), phrases.display_differences(changes)):
        assert len(shown) and "nan" not in shown.to_string()
    said = phrases.word_sentences(table, changes)
    assert "chance" in said[0] and any("1 to 2 seeds" in one or "One seed" in one for one in said)
    assert len(figures.word_dots(table, "t").axes) == 1
    assert len(figures.word_gallery(found, phrases.first_of_each_size(found), "t").axes) == 3 * 2 * 8


def test_without_truth_the_notebook_says_so(measured, monkeypatch):
    _, (train, test), _ = measured
    photographs = [Split(s.name, s.paths, s.labels, s.class_names) for s in (train, test)]
    monkeypatch.setattr(phrases, "run_benchmark", lambda config: Benchmark("b", "birds", *photographs, "0"))
    assert phrases.measure_words({"pf": [SimpleNamespace(config=make_config("paper", "cub200", "pf", 0))]}, 2) is None
    table, changes = phrases.word_table([]), phrases.difference_table([], "pf")
    assert phrases.word_sentences(table, changes) == [phrases.NOT_MEASURED]
    for shown in (
        phrases.display_words(table, "paper"), phrases.display_sizes(table), phrases.display_differences(changes), phrases.cost_table([]),
    ):  # fmt: skip
        assert len(shown) == 1
    assert figures.word_dots(table, "t").axes


def test_claims_on_words_follow_their_intervals(tmp_path):
    study = tmp_path / "study"
    row = {"label": "", "benchmark": POOLED, "low": -3.0, "high": -1.0, "difference": -2.0, "seeds": 3}
    rows = [
        row | {"method": "infonce", "against": "pre-trained", "metric": phrases.METRICS[READ]},
        row | {"method": "saga_infonce", "against": "infonce", "metric": phrases.METRICS[READ]},
        row | {"method": "infonce", "against": SHUFFLED, "metric": phrases.METRICS[SEARCHED], "low": -1.0, "high": 2.0},
        row | {"method": "infonce", "against": "pre-trained", "metric": phrases.METRICS[SEARCHED], "low": 1.0, "high": 2.0},
    ]  # fmt: skip
    (study / "tables").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(study / "tables" / "19_differences_values.csv", index=False)
    own = [claim for claim in claims.CLAIMS if claim.notebook == "19_words"]
    verdicts = claims.claims_table(study, own)["verdict"].tolist()
    assert verdicts == [claims.REPRODUCED, claims.CONTRADICTED, claims.OPEN]
    assert claims.claims_table(study, own)["measured [95 %]"][0].startswith("+2.0 points of mAP of words, read")


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def searchable(tmp_path, checkpoint):
    """An index of a dozen images and one damaged file, made by the command; and its encoder."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(random_images(12)):
        image.save(folder / f"{number:02d}.png")
    torch.manual_seed(0)
    encoder = Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "attention", 16).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    assert main(["build", str(folder), "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "index")]) == 0
    return tmp_path / "index", folder, encoder


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # behind the bars of a model that was loaded
    assert said.startswith("error: ")
    return said


def test_words_are_learnt_from_the_index_and_found_by_one_search(searchable, checkpoint, capsys, tmp_path):
    index, folder, encoder = searchable
    assert "knows no words yet" in refused(capsys, "query", index, "--words", "red crown")
    assert "nothing to search for" in refused(capsys, "query", index)
    learn = ["words", str(index), "--supervisor", str(checkpoint), "--vocabulary", "miniature_birds"]
    assert main(learn) == 0
    assert "words learnt from 12 images" in capsys.readouterr().out
    (folder / "00.png").write_bytes(b"")  # no longer an image; the words need none
    outputs = ["--csv", str(tmp_path / "hits.csv"), "--html", str(tmp_path / "hits.html"), "--k", "4"]
    assert main(["query", str(index), "--words", "red crown and barred wing", "--words", "hooked", *outputs]) == 0
    shown = capsys.readouterr().out
    assert "red crown and barred wing" in shown
    lines = (tmp_path / "hits.csv").read_text().splitlines()[1:]
    images = random_images(12)
    made, embeddings = WordMap.load(index), encoder.embed(images)
    query = made.embed([{"crown color": "red", "wing pattern": "barred"}])[0]
    cosines = embeddings @ query / np.linalg.norm(query)
    best = np.argsort(-cosines)[:4]
    assert [line.split(",")[3] for line in lines[:4]] == [f"{n:02d}.png" for n in best]
    assert [float(line.split(",")[2]) for line in lines[:4]] == pytest.approx(cosines[best], abs=1e-3)
    page = (tmp_path / "hits.html").read_text()
    assert "red crown and barred wing" in page and "gone" not in page.split("hooked")[0].split("hit 1")[0]
    assert main(["query", str(index), str(folder / "01.png"), "--words", "hooked", "--k", "1"]) == 0
    assert "01.png" in capsys.readouterr().out
    assert "did you mean 'red'" in refused(capsys, "query", index, "--words", "crown color: rad")
    replace(made, encoder="other").save(index)
    assert "learnt for another encoder" in refused(capsys, "query", index, "--words", "hooked")


def test_words_beside_the_encoder_serve_every_index_of_it(searchable, capsys):
    index, folder, encoder = searchable
    said, *_ = planted(num=12)
    from saga_study.deploy.index import encoder_digest

    made = WordMap.learn(said, encoder.embed(random_images(12)), encoder_digest(encoder))
    made.save(index.parent / "encoder")
    assert main(["query", str(index), "--words", "cone bill", "--k", "2"]) == 0
    assert "cone bill" in capsys.readouterr().out


def test_words_need_readable_images(searchable, checkpoint, capsys):
    index, folder, _ = searchable
    learn = ["words", index, "--supervisor", checkpoint, "--vocabulary", "miniature_birds"]
    assert "learnt from at least 2" in refused(capsys, *learn, "--images", "1")
    for path in list(folder.iterdir())[1:]:
        path.write_bytes(b"no image")
    assert "1 of 12 can be read" in refused(capsys, *learn)
