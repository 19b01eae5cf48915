"""The readiness check: pairs by hardness, a verdict with its reason for every kind of supervisor, expected cost."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import VOCABULARY, random_answer, random_images

from saga_lib.common.errors import SagaError
from saga_lib.supervisor.rollouts import Rollouts
from saga_lib.vocabulary import Attribute
from saga_study import assessment
from saga_study.design.expectations import FEW_WRONG, READING_LEAD, START_SAME_CLASS, is_promising
from saga_study.findings import figures
from saga_study.methods import make_config
from saga_study.own_images import outlook, readiness
from saga_study.own_images.outlook import Retrieval, expectation
from saga_study.own_images.readiness import FIX, GO, SWAP, check_readiness
from saga_study.resolving import open_session


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory):
    """Eight classes of four images each."""
    folder, images = tmp_path_factory.mktemp("toys"), iter(random_images(32))
    for c in range(8):
        (folder / f"{c}").mkdir()
        for i in range(4):
            next(images).save(folder / f"{c}" / f"{i}.png")
    return {"data_dir": str(folder), "vocabulary": "miniature_birds", "supervisor": str(checkpoint)}


def session(settings, method="saga_pf", **overrides):
    return open_session(make_config("smoke", "image_folder", method, 0, embedding_dim=16, batch_size=16, **settings | overrides))


@pytest.fixture
def answering(monkeypatch):
    """Return a function that scripts the rollouts of the check: share of right verdicts, share of cut answers, other text."""

    def script(right, cut=0.0, text=None, timed_steps=True, kind=None, unended=0.0):
        truth = {}
        plain = assessment.assess_verdicts

        def assess(tower, supervisor, question, pairs, *args):
            truth["same"] = iter(pairs.same_class)
            return plain(tower, supervisor, question, pairs, *args)

        def answers(supervisor, prompt_ids, images, sampling, generator):
            rng, texts = np.random.default_rng(0), []
            for _ in range(images.merged.shape[0] // 2):
                same = bool(next(truth["same"]))
                says = [kind if kind is not None else same == (rng.uniform() < right) for _ in range(sampling.group_size)]
                texts += [text if text is not None else random_answer(int(rng.integers(99)), s) for s in says]
            texts = [t[:20] if n < cut * len(texts) else t for n, t in enumerate(texts)]
            ids = [supervisor.answer_ids(t)[: -1 if len(t) == 20 or n < unended * len(texts) else None] for n, t in enumerate(texts)]
            import torch

            tokens = torch.full((len(ids), max(map(len, ids))), supervisor.eos_token_id)
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, one in enumerate(ids):
                tokens[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), True
            return Rollouts(tokens, mask, texts, ((tokens == supervisor.eos_token_id) & mask).any(1))

        monkeypatch.setattr(readiness, "assess_verdicts", assess)
        monkeypatch.setattr(assessment, "generate_rollouts", answers)
        monkeypatch.setattr(readiness, "_seconds_without_rollouts", lambda session: (0.5, "" if timed_steps else "it broke"))

    return script


@pytest.mark.parametrize(
    "script, verdict, said",
    [
        ({"right": 0.75}, GO, "100 % of the answers hold a verdict"),
        ({"right": 0.5}, SWAP, "may be guessing"),
        ({"right": 0.5, "kind": True}, SWAP, "it says 'same' whatever it sees"),
        ({"right": 1.0}, FIX, "nearly always right"),
        ({"right": 0.75, "cut": 0.5}, FIX, "are cut at max_new_tokens"),
        ({"right": 0.75, "unended": 0.5}, FIX, "50 % of the answers hold no readable verdict, and 50 % are cut at max_new_tokens"),
        ({"right": 0.75, "text": "They look alike to me."}, SWAP, "does not follow the prompt"),
        ({"right": 0.75, "text": '{"verdict": "yes"}'}, FIX, "no readable verdict"),
        ({"right": 0.75, "timed_steps": False}, FIX, "a training step failed: it broke"),
    ],
)
def test_every_supervisor_gets_a_verdict_and_a_reason(settings, answering, script, verdict, said):
    answering(**script)
    ready = check_readiness(session(settings), 48)
    assert ready.verdict == verdict and said in " ".join(ready.reasons), ready.reasons
    assert "readiness" in figures.readiness_bars(ready.pairs, ready.verdict).get_suptitle()


def test_the_measures_of_a_known_supervisor(settings, answering):
    answering(0.75)
    checked = session(settings)
    ready = check_readiness(checked, 48)
    rewards = ready.report.mean_reward
    assert len(rewards) == 48 and ready.pairs["number of pairs"].tolist() == [24, 8, 8, 8]
    share = ready.value("mixed groups") / 100
    # at least K = 2 of one wave of 8 pairs
    none, one = (1 - share) ** 8, 8 * share * (1 - share) ** 7
    assert ready.value("contributing pairs") == pytest.approx(2 - 2 * none - one)
    assert ready.value("pairs drawn") == 8  # max_waves = 1
    assert ready.value("verdicts right") == pytest.approx(75, abs=12)
    assert ready.value("hours per run") == pytest.approx(3 * (0.5 + 8 * 4 * ready.report.seconds) / 3600)


def test_pairs_come_in_terciles_of_similarity(settings):
    checked = session(settings)
    images, pairs, kinds = readiness.pairs_by_hardness(checked, 48, np.random.default_rng(0))
    labels = checked.benchmark.train.labels[images]
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == (kinds == 0)).all()
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs) == 48
    tokens = checked.encoder.tower(checked.train_pixels[images]).merged.mean(1)
    z = (tokens / tokens.norm(dim=1, keepdim=True)).detach().numpy()
    similarity = (z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1)
    assert similarity[kinds == 1].max() <= similarity[kinds == 2].min() + 1e-6
    assert similarity[kinds == 2].max() <= similarity[kinds == 3].min() + 1e-6


def test_it_runs_for_real_and_says_what_it_cannot_check(settings):
    ready = check_readiness(session(settings), 8)
    assert ready.verdict in (GO, FIX, SWAP) and ready.value("tokens per answer") > 1
    with pytest.raises(SagaError, match="asks its supervisor nothing"):
        check_readiness(session(settings, "pf"), 48)
    with pytest.raises(SagaError, match="too few"):
        check_readiness(session(settings), 4)


def test_the_generic_prompt_is_checked_as_it_is_asked(settings, monkeypatch):
    asked = []
    monkeypatch.setattr(assessment, "generic_prompt", lambda vocabulary: asked.append(vocabulary.name) or "Same?")
    check_readiness(session(settings, prompt="generic"), 8)
    assert asked == [VOCABULARY.name]


# ------------------------------------------------------------------------------------------------ what to expect


def test_retrieval_is_measured_before_the_timed_steps_change_the_weights(settings, answering, monkeypatch):
    answering(0.75)
    checked, order = session(settings), []
    plain = outlook.measure_retrieval
    monkeypatch.setattr(readiness, "measure_retrieval", lambda *args: order.append("retrieval") or plain(*args))
    monkeypatch.setattr(readiness, "_seconds_without_rollouts", lambda session: order.append("steps") or (0.5, ""))
    ready = check_readiness(checked, 48)
    assert order == ["retrieval", "steps"]
    found = plain(checked)
    assert ready.value("R@1 by reading") == pytest.approx(found.by_reading) and ready.value("R@1 of the embedding") == found.by_embedding
    same = ready.report.mean_reward[ready.report.same_class]
    assert ready.value("verdicts right, one class") == pytest.approx(100 * same.mean())
    assert "train images of 4 classes, before training: R@1" in ready.expectation[0] and "what to expect" not in ready.expectation[0]
    assert "expect" in ready.expectation[1] and "notebook 21" in ready.expectation[1]


def test_both_recalls_are_those_of_a_slow_search(settings):
    checked = session(settings)
    found, split = outlook.measure_retrieval(checked, num_images=1000), checked.benchmark.train
    assert (found.images, found.classes) == (len(split), len(split.class_names))
    tower = checked.encoder.tower
    tokens = tower(tower.preprocess(split.images()).to(checked.device))
    z = tokens.merged.detach().mean(1).numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    read = [p.exp().detach().double().numpy() for p in outlook.Reader(checked.supervisor, checked.vocabulary)(tokens)]
    alike = sum(np.log(p @ p.T + 1e-4) for p in read)
    for scores, recall in ((z @ z.T, found.by_embedding), (alike, found.by_reading)):
        np.fill_diagonal(scores, -np.inf)
        assert recall == pytest.approx(100 * np.mean(split.labels[scores.argmax(1)] == split.labels))


def test_whole_classes_are_drawn_and_single_images_left_out(settings):
    split = session(settings).benchmark.train
    part = outlook.some_classes(split, 5, np.random.default_rng(0))
    assert len(part) == 8 and len(part.class_names) == 2 and sorted(set(part.labels)) == [0, 1], "at least two classes, each whole"
    for place, (path, number) in enumerate(zip(part.paths, part.labels, strict=True)):
        assert split.class_names[split.labels[split.paths.index(path)]] == part.class_names[number], place
    alone = replace(split, paths=split.paths[:5], labels=np.array([0, 0, 1, 1, 2]), class_names=split.class_names[:3])
    assert len(outlook.some_classes(alone, 100, np.random.default_rng(0))) == 4
    with pytest.raises(SagaError, match="fewer than two classes of two images"):
        outlook.some_classes(replace(alone, paths=split.paths[:3], labels=np.array([0, 1, 1])), 9, np.random.default_rng(0))


def test_free_text_attributes_leave_reading_unknown_and_say_why(settings):
    checked = session(settings)
    free = Attribute("printed motif", ())
    checked.vocabulary = replace(checked.vocabulary, attributes=(*checked.vocabulary.attributes[:-1], free))
    found = outlook.measure_retrieval(checked)
    assert np.isnan(found.by_reading) and found.by_embedding > 0 and "printed motif" in found.problem
    told = expectation(0.6, 5.0, 0.8, found)
    assert "by reading it is not known" in told[0] and told[1].startswith("expect GRPO to collect a part")
    assert "nan" not in " ".join(told)


@pytest.mark.parametrize(
    "right, error, different, reading, said",
    [
        (START_SAME_CLASS + 0.2, 5.0, 0.9, 85.0, "expect GRPO to collect a part"),
        (START_SAME_CLASS - 0.2, 5.0, 0.9, 85.0, "expect little of GRPO: 10 ± 5 % of the verdicts on pairs of one class are right"),
        (START_SAME_CLASS + 0.02, 5.0, 0.9, 85.0, "cannot be told from so few pairs"),
        (START_SAME_CLASS + 0.2, 5.0, 0.9, 80.0 + READING_LEAD - 5, "expect little of GRPO: reading is 15.0 points of R@1 behind"),
        (START_SAME_CLASS + 0.2, 5.0, FEW_WRONG, 85.0, "only pairs of one class will teach anything"),
    ],
)
def test_the_expectation_follows_the_rule(right, error, different, reading, said):
    told = expectation(right, error, different, Retrieval(100, 10, 80.0, reading))
    assert said in " ".join(told), told
    assert any("notebook 21" in sentence for sentence in told) and (len(told) == 3) == (different >= FEW_WRONG)
    assert ("contrast_pf" in " ".join(told)) == ("expect little" in said)


def test_the_rule_itself():
    assert is_promising(START_SAME_CLASS, READING_LEAD) and is_promising(1.0, float("nan"))
    assert not is_promising(START_SAME_CLASS - 0.01, 0.0) and not is_promising(1.0, READING_LEAD - 0.1)
