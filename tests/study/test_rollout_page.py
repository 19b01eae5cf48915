"""The page of rollouts: what a token sends against a graph of its own, whether what is described is true, and the page in a browser."""

import base64
import json
import re
import time

import numpy as np
import pytest
import torch
from browser import chromium
from tiny import VOCABULARY, random_images

from saga_lib.datasets.splits import Split
from saga_lib.prompts import comparison_answer, comparison_prompt
from saga_lib.step import Buffer
from saga_lib.supervisor.replay import replay_log_probs
from saga_study.findings.rollout_page import rollout_page
from saga_study.findings.token_gradients import (
    FALSE,
    TRUE,
    Moment,
    PairRollouts,
    moments_of_training,
    pairs_to_show,
    token_norms,
    value_marks,
)
from saga_study.methods import make_config
from saga_study.resolving import open_session

HOSTILE = "</script><script>document.title='broken'</script>"
TRUTH = [{a.name: a.values[0] for a in VOCABULARY.attributes}, {a.name: a.values[1] for a in VOCABULARY.attributes}]


@pytest.fixture
def asked(loaded):
    tower, supervisor = loaded
    with torch.no_grad():
        images = tower(tower.preprocess(random_images(2)).double())
    return supervisor, supervisor.prompt_ids(comparison_prompt(VOCABULARY)), images


def test_a_token_sends_what_a_graph_of_its_own_says(asked):
    """Each token's gradient anew, from the answer cut behind it, in float64."""
    supervisor, prompt_ids, images = asked
    ids = torch.tensor(supervisor.answer_ids(comparison_answer(VOCABULARY, *TRUTH))[:12])
    norms = token_norms(supervisor, prompt_ids, images, ids, -1.5)
    assert norms.shape == (12, 2, images.merged.shape[1]) and norms.dtype == np.float32
    for place in range(12):
        leaves = images.boundary()
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, leaves, ids[None, : place + 1], torch.ones(1, place + 1, dtype=torch.bool))
        [gradient] = torch.autograd.grad(log_probs[0, place], leaves.merged)
        np.testing.assert_allclose(norms[place], 1.5 * gradient.norm(dim=-1).numpy(), rtol=1e-5, atol=1e-9)
    assert not token_norms(supervisor, prompt_ids, images, ids, 0.0).any(), "without an advantage nothing is sent"


def test_described_values_are_marked_by_the_truth(asked):
    supervisor, *_ = asked
    said = [dict(TRUTH[0]), dict(TRUTH[1], **{"leg color": TRUTH[0]["leg color"]})]
    ids = supervisor.answer_ids(comparison_answer(VOCABULARY, *said))
    marks = value_marks(supervisor, ids, VOCABULARY.keys, TRUTH)
    false = supervisor.decode([token for token, mark in zip(ids, marks, strict=True) if mark == FALSE])
    assert false.strip() == TRUTH[0]["leg color"] and marks.count(TRUE) >= 15
    assert value_marks(supervisor, ids, VOCABULARY.keys, []) == [0] * len(ids)


def test_pairs_are_the_most_evenly_divided_of_both_kinds():
    rewards = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    same = np.array([True, True, False, False, False])
    buffer = Buffer(np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]), same, None, rewards, rewards)
    assert pairs_to_show(buffer, 10 * np.arange(10)) == [(60, 70), (40, 50), (20, 30)]
    only_same = Buffer(buffer.pairs[:2], same[:2], None, rewards[:2], rewards[:2])
    assert pairs_to_show(only_same, np.arange(10)) == [(2, 3), (0, 1)]


def test_moments_are_before_after_some_steps_and_after_training(checkpoint):
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint), embedding_dim=16, batch_size=16)
    session = open_session(config)
    trained = open_session(config).encoder
    moments = moments_of_training(session, [(0, 1), (0, 40)], [1], trained, group_size=2)
    assert [moment.name for moment in moments] == ["before training", "after 1 steps", "after all 3 steps"] and session.step == 1
    for moment in moments:
        for pair in moment.pairs:
            assert len(pair.tokens) == len(pair.norms) == len(pair.marks) == 2
            assert [len(tokens) for tokens in pair.tokens] == [len(norms) for norms in pair.norms]
    first, last = moments[0].pairs[0], moments[2].pairs[0]
    assert first.tokens == last.tokens, "an untrained encoder, asked with the same draws, answers the same"


# ---------------------------------------------------------------------------------------------------- the page

PATCHES = 9


def made_up(seed, right):
    rng = np.random.default_rng(seed)
    tokens = [['{"', "plain" if good else "spotted", HOSTILE, '"}'] for good in right]
    norms = [rng.uniform(size=(4, 2, PATCHES)).astype(np.float32) for _ in right]
    marks = [[0, TRUE if good else FALSE, 0, 0] for good in right]
    return PairRollouts(tokens, [float(good) for good in right], [1.0 if good else -1.0 for good in right], norms, marks)


@pytest.fixture
def page_file(tmp_path):
    paths = []
    for number, image in enumerate(random_images(4)):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    attributes = [{"wing": "plain", "leg": "red"}, {"wing": "spotted", "leg": "red"}]
    split = Split("train", paths, np.array([0, 0, 1, 1]), ["first", HOSTILE], attributes)
    before = Moment("before training", [made_up(0, (1, 0)), made_up(1, (1, 1))])
    moments = [before, Moment(HOSTILE, [made_up(2, (0, 1)), made_up(3, (1, 0))])]
    path = tmp_path / "tokens.html"
    path.write_text(rollout_page(moments, split, [(0, 2), (0, 1)], f"Tokens {HOSTILE}", "a note"), encoding="utf-8")
    return path, moments


def test_the_page_holds_all_it_shows(page_file):
    path, moments = page_file
    text = path.read_text(encoding="utf-8")
    assert HOSTILE not in text and "http://" not in text and "https://" not in text
    content = json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.S)[1])
    assert content["pairs"][0]["same"] is False and content["pairs"][1]["same"] is True
    assert content["pairs"][0]["attributes"] == [["wing", "plain", "spotted"], ["leg", "red", "red"]]
    packed = np.frombuffer(base64.b64decode(content["rollouts"][1][0]["norms"][1]), np.uint8).reshape(4, 2, PATCHES)
    largest = max(norms.max() for norms in moments[1].pairs[0].norms)
    assert np.abs(packed / 255 - moments[1].pairs[0].norms[1] / largest).max() <= 0.5 / 255 + 1e-6


def test_clicking_through_the_page_in_a_browser(page_file, tmp_path):
    path, moments = page_file
    heat = "[...document.querySelectorAll('.heat')].map((one) => [...one.children].map((i) => Number(i.style.opacity)))"
    said = "document.getElementById('said').innerText"
    with chromium(tmp_path / "profile") as page:
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.resize(1280, 900)
        page.open(path.as_uri())
        assert page.run("document.title") == f"Tokens {HOSTILE}" and page.run("document.querySelectorAll('.answer').length") == 2
        assert page.run("[...document.querySelectorAll('.picture img')].every((one) => one.naturalWidth >= 200)")
        assert page.run(heat) == [[], []] and "Point at a token" in page.run(said)

        def check(moment, pair, answer, token):
            own = moments[moment].pairs[pair]
            wanted = 0.85 * own.norms[answer][token] / max(norms.max() for norms in own.norms)
            np.testing.assert_allclose(page.run(heat), wanted, atol=0.004)
            told = page.run(said)
            assert told.startswith(f"answer {answer + 1}, token {token + 1} ") and f"A = {own.advantages[answer]:.2f}" in told

        page.click(".answer:nth-child(2) .token:nth-of-type(3)")  # the head is the first button
        check(0, 0, 1, 1)
        assert [page.run(f"document.querySelectorAll('.token.{kind}').length") for kind in ("true", "false")] == [1, 1]
        page.press("ArrowRight")
        check(0, 0, 1, 2)
        page.click("#moments button:nth-child(2)")
        page.click("#pairs button:nth-child(2)")
        assert page.run("location.hash") == "#1-1" and page.run("document.querySelector('#facts strong').innerText") == "one class"
        page.click(".answer:nth-child(1) .token:nth-of-type(2)")
        check(1, 1, 0, 0)
        page.click(".answer:nth-child(1) .head")
        assert "all tokens" in page.run(said)
        page.open(f"{path.as_uri()}#1-0")
        for _ in range(100):  # the page loads anew
            if page.run("document.querySelector('#facts strong')?.innerText") == "two classes":
                break
            time.sleep(0.05)
        assert page.run("document.querySelector('#facts strong').innerText") == "two classes"
        page.resize(500, 900)
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is wider than the page"
        assert not page.problems and all(address.startswith("file:") for address in page.requests)
