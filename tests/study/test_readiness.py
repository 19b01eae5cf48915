"""The readiness check: pairs by hardness, a verdict with its reason for every kind of supervisor, expected cost."""

import numpy as np
import pytest
from tiny import VOCABULARY, random_answer, random_images

from saga_lib.common.errors import SagaError
from saga_lib.supervisor.rollouts import Rollouts
from saga_study import assessment
from saga_study.findings import figures
from saga_study.methods import make_config
from saga_study.own_images import readiness
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
