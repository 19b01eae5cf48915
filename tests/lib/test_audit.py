"""The gradient audit measures what it says, changes nothing, and its summaries are what a hand computes."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import (  # noqa: F401  (fixtures)
    GROUP,
    TIMINGS,
    Killed,
    buffer_of,
    encoder,
    killed_at,
    pixels,
    prompt_ids,
    random_verdicts,
    record,
    rollouts_of,
    small_world,
    smoke,
)
from tiny import VOCABULARY, random_answer, random_item

from saga_lib import training
from saga_lib.common.errors import SagaError
from saga_lib.losses import group_advantages
from saga_lib.prompts import comparison_answer
from saga_lib.records import Run
from saga_lib.step import Buffer, ReplaySettings, replay_phase
from saga_lib.supervisor.replay import attribute_tokens, replay_log_probs
from saga_study import audit, resolving
from saga_study.audit import TOKEN_TYPES, audit_step, token_kinds
from saga_study.findings import audit_summary, figures
from saga_study.methods import make_config
from saga_study.resolving import open_session, train_run

PAIRS = [[0, 3], [4, 1], [3, 5]]
REWARDS = [[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]
KEYS = VOCABULARY.keys
TRUTH = [(random_item(100), random_item(101)), (random_item(102), random_item(102)), (random_item(104), random_item(105))]


@pytest.fixture
def buffer(supervisor):
    """Different answers, some cut; the second pair is of one class and its last two rollouts say the same."""
    whole = buffer_of(supervisor, PAIRS, REWARDS)
    texts = list(whole.rollouts.texts)
    texts[7] = texts[6]
    same = np.array([False, True, False])
    return Buffer(whole.pairs, same, rollouts_of(supervisor, texts), whole.rewards, whole.advantages)


@pytest.fixture
def tokens(encoder, pixels):  # noqa: F811
    return encoder.tower(pixels).detach()


def rows_of(rows, part, **wanted):
    return [row for row in rows if row["part"] == part and all(row[k] == v for k, v in wanted.items())]


# -------------------------------------------------------------------------------------------- measurement


def one_by_one(supervisor, prompt_ids, tokens, buffer, k, chosen):  # noqa: F811
    """Return J (G, X): the gradient of the log-prob of tokens `chosen(ids)`, rollout by rollout, in float64."""
    jacobians = []
    for g in range(GROUP):
        ids = supervisor.answer_ids(buffer.rollouts.texts[k * GROUP + g])
        images = tokens[torch.as_tensor(buffer.pairs[k])].boundary()
        ids_tensor = torch.tensor([ids])
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, images, ids_tensor, torch.ones_like(ids_tensor).bool())
        places = chosen(ids)
        scored = log_probs[0, places].sum() if places else (0 * log_probs).sum()
        jacobians.append(torch.autograd.grad(scored, images.merged)[0].flatten())
    return torch.stack(jacobians)


def test_slots_equal_independent_autograd(supervisor, prompt_ids, tokens, buffer):  # noqa: F811
    rows = audit_step(supervisor, VOCABULARY, prompt_ids, tokens, buffer, TRUTH, rows_at_once=2 * GROUP)
    assert len(rows) == len(PAIRS) * (24 + len(TOKEN_TYPES) + 1)
    checked = ((0, "item_1", "crown color"), (1, "item_2", "leg color"), (2, "item_2", "bill shape"), (2, "differences", "leg color"))
    for k, section, name in checked:
        J = one_by_one(
            supervisor, prompt_ids, tokens, buffer, k,
            lambda ids, s=(section, name): attribute_tokens(supervisor, ids, KEYS, (*KEYS.items, "differences")).get(s),
        )  # fmt: skip
        A = buffer.advantages[k].double()
        [row] = rows_of(rows, "slot" if section in KEYS.items else "difference", pair=k, item=section, attribute=name)
        assert row["gradient"] == pytest.approx(float((A[:, None] * J).sum(0).norm()), rel=1e-6)
        assert row["gross"] == pytest.approx(float((A.abs() * J.norm(dim=1)).sum()), rel=1e-6)
        dealt = [
            float((A[list(order), None] * J).sum(0).square().sum()) for order in itertools.permutations(range(GROUP))
        ]
        assert row["shuffled"] == pytest.approx(np.sqrt(np.mean(dealt)), rel=1e-6), "the closed form is the mean over all"
        assert row["gradient"] > 0


def test_the_parts_add_up_to_the_grpo_gradient(encoder, supervisor, prompt_ids, pixels, buffer):  # noqa: F811
    """Each image is in one pair here, so that a pair's gradient stands alone at the boundary; |T| and the sign aside."""
    apart = Buffer(np.array([[0, 3], [4, 1]]), buffer.same_class[:2], buffer.rollouts.select(torch.arange(2 * GROUP)),
                   buffer.rewards[:2], buffer.advantages[:2])  # fmt: skip
    result = replay_phase(encoder, supervisor, prompt_ids, encoder.tower(pixels), apart, ReplaySettings(1, 1.0, 0.0))
    rows = audit_step(supervisor, VOCABULARY, prompt_ids, encoder.tower(pixels).detach(), apart, TRUTH[:2])
    num_tokens = int(apart.rollouts.mask.sum())
    for k, pair in enumerate(apart.pairs):
        expected = num_tokens * float(result.gradient.merged[torch.as_tensor(pair)].norm())
        assert rows_of(rows, "all", pair=k)[0]["gradient"] == pytest.approx(expected, rel=1e-6)
    assert all(p.grad is None for p in encoder.parameters())


def test_every_token_has_one_kind_and_kinds_are_what_they_say(supervisor, prompt_ids, tokens, buffer):  # noqa: F811
    text = random_answer(3, True)
    ids = supervisor.answer_ids(text)
    kinds, values = token_kinds(supervisor, VOCABULARY, ids)
    assert len(kinds) == len(ids) and kinds[-1] == "rest"
    said = {kind: "".join(supervisor.decode([i]) for i, k in zip(ids, kinds, strict=True) if k == kind) for kind in set(kinds)}
    answer = json.loads(text)
    for section in KEYS.items:
        assert {n: said[section, n] for n in VOCABULARY.attribute_names} == answer[section]
        assert {n: values[section, n] for n in VOCABULARY.attribute_names} == answer[section]
    assert said["verdict"] == "yes"
    assert {n: said["differences", n] for n in VOCABULARY.attribute_names} == answer["differences"]
    assert "confidence" in said["rest"] and "item_1" in said["rest"]
    rows = audit_step(supervisor, VOCABULARY, prompt_ids, tokens, buffer, TRUTH)
    for part in TOKEN_TYPES:
        assert rows_of(rows, part, pair=0)[0]["gradient"] > 0
    for k in range(len(PAIRS)):  # the parts add up as vectors
        whole = rows_of(rows, "all", pair=k)[0]["gradient"]
        assert whole <= sum(rows_of(rows, part, pair=k)[0]["gradient"] for part in TOKEN_TYPES) * (1 + 1e-9)
        slots = sum(row["gradient"] for row in rows_of(rows, "slot", pair=k))
        assert rows_of(rows, "values", pair=k)[0]["gradient"] <= slots * (1 + 1e-9)


def test_rollouts_that_agree_cancel_and_readings_are_scored(supervisor, prompt_ids, tokens):  # noqa: F811
    """Four times the same lists, only the verdict differs: nothing survives on the values, the verdict remains."""
    item_1, item_2 = random_item(1), random_item(2)
    text = comparison_answer(VOCABULARY, item_1, item_2)
    other = text.replace('"same_species": "no"', '"same_species": "yes"')
    rewards = torch.tensor([[1.0, 0, 1, 0]])
    agreeing = Buffer(
        np.array([[0, 1]]), np.array([False]), rollouts_of(supervisor, [text, other, text, other]), rewards,
        group_advantages(rewards),
    )  # fmt: skip
    wrong = item_1 | {"crown color": next(v for v in ("black", "white") if v != item_1["crown color"])}
    rows = audit_step(supervisor, VOCABULARY, prompt_ids, tokens, agreeing, [(wrong, item_2)])
    for row in rows_of(rows, "slot"):
        assert row["unanimous"] and row["described"] == GROUP
        assert row["gradient"] < 1e-6 * row["gross"] and row["shuffled"] < 1e-6 * row["gross"]
        misread = (row["item"], row["attribute"]) == ("item_1", "crown color")
        assert row["correct"] == (0 if misread else 1)
        truth = wrong[row["attribute"]] != item_2[row["attribute"]]
        assert row["differs"] == truth and row["log_prob"] < 0
    for row in rows_of(rows, "difference"):  # as the lists have it, which the changed truth agrees with everywhere else
        if row["attribute"] != "crown color":
            assert row["correct"] == 1 and row["unanimous"] and row["gradient"] < 1e-6 * row["gross"]
    [verdict] = rows_of(rows, "verdict")
    assert verdict["gradient"] > 0.1 * verdict["gross"]


def test_odd_answers_are_audited_too(supervisor, prompt_ids, tokens):  # noqa: F811
    texts = ["I cannot", '{"item_1": {"crown color": "red"', random_answer(1), '{"differences": ']
    rewards = torch.tensor([[0.0, 0, 1, 0]])
    odd = Buffer(np.array([[0, 1]]), np.array([True]), rollouts_of(supervisor, texts), rewards, group_advantages(rewards))
    item = random_item(2)
    rows = audit_step(supervisor, VOCABULARY, prompt_ids, tokens, odd, [(item, item)])
    [crown] = rows_of(rows, "slot", item="item_1", attribute="crown color")
    assert crown["described"] == 2 and not crown["unanimous"] and crown["correct"] <= 0.5
    assert not any(row["differs"] for row in rows_of(rows, "slot"))
    assert all(np.isfinite(row[name]) for row in rows for name in ("gradient", "gross", "shuffled"))
    in_words = replace(VOCABULARY, differences="key")
    text = random_answer(1).replace('"differences": {', '"differences": "crown color", "x": {')
    kinds, _ = token_kinds(supervisor, in_words, supervisor.answer_ids(text))
    assert "differences" in kinds and ("differences", "crown color") not in kinds
    free = audit_step(supervisor, in_words, prompt_ids, tokens, odd, [(item, item)])
    assert not rows_of(free, "difference") and rows_of(free, "differences")[0]["gradient"] > 0
    assert rows_of(free, "all")[0]["gradient"] == pytest.approx(rows_of(rows, "all")[0]["gradient"])


def test_an_audit_leaves_nothing_behind(supervisor, prompt_ids, tokens, buffer):  # noqa: F811
    before = torch.random.get_rng_state()
    audit_step(supervisor, VOCABULARY, prompt_ids, tokens, buffer, TRUTH)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(t.grad is None and not t.requires_grad for t in tokens.tensors())
    parameters = [*supervisor.language_model.parameters(), *supervisor.head.parameters()]
    assert all(p.grad is None for p in parameters)


# ------------------------------------------------------------------------------------------------ training


def test_a_run_has_the_same_numbers_with_and_without_audit(smoke, random_verdicts, tmp_path):  # noqa: F811
    settings = {"steps": 4, "contributing_pairs": 4}
    train_run(smoke("saga_pf", audit_every=2, **settings), tmp_path / "with")
    train_run(smoke("saga_pf", audit_every=0, **settings), tmp_path / "without")
    assert record(tmp_path / "with") == record(tmp_path / "without")
    weights = [(tmp_path / name / "encoder" / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "without" / "audit.jsonl").exists()
    audit = Run(tmp_path / "with", None).audit
    assert sorted(audit["step"].unique()) == [1, 2, 4]
    assert Run(tmp_path / "without", None).audit.empty
    metrics = Run(tmp_path / "with", None).metrics
    assert metrics["seconds_audit"].notna().tolist() == [True, True, False, True]
    rows = audit[audit["part"] == "slot"]
    assert set(rows["attribute"]) == set(VOCABULARY.attribute_names) and rows["gradient"].gt(0).any() and rows["differs"].notna().all()
    assert len((tmp_path / "with" / "audit.jsonl").read_text().splitlines()) == 3
    summary = audit_summary.summarise(audit.assign(run="a"))
    assert np.isfinite(value(summary, "token type", "values")) and audit_summary.conclusions(summary)
    per_step = audit[audit["part"] == "all"].groupby("step").size()
    logged = metrics.set_index("step")["contributing_pairs"]
    assert all(per_step[step] == logged[step] for step in per_step.index)


def test_the_truth_is_that_of_the_pairs_images(smoke, random_verdicts, monkeypatch):  # noqa: F811
    """Also with a second micro-batch, whose images follow the first's."""

    seen = []
    step = audit.audit_step
    monkeypatch.setattr(audit, "audit_step", lambda *a: seen.append(a) or step(*a))
    config = smoke("saga_pf", max_waves=2, max_micro_batches=2, contributing_pairs=12, audit_every=1)
    session = open_session(config)
    used = []
    draw = session.next_micro_batch
    monkeypatch.setattr(session, "next_micro_batch", lambda: used.append(draw()) or used[-1])
    session.run_step()
    [(_, _, _, tokens, buffer, truth)] = seen
    images = np.concatenate([batch.indices for batch in used])
    assert len(used) == 2 and buffer.pairs.max() >= len(used[0].indices) and len(tokens.merged) == len(images)
    for pair, same, items in zip(buffer.pairs, buffer.same_class, truth, strict=True):
        assert items == tuple(session.benchmark.train.attributes(i) for i in images[pair])
        assert (items[0] == items[1]) == same


def test_resuming_keeps_the_audit_consistent(smoke, random_verdicts, tmp_path):  # noqa: F811
    config = smoke("saga_pf", steps=5, checkpoint_every=2, contributing_pairs=4, audit_every=1)
    train_run(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train_run(config, folder, killed_at(4))
    (folder / "audit.jsonl").open("a").write('{"step": 5, "pair": [0, 0')
    train_run(config, folder)
    assert (folder / "audit.jsonl").read_text() == (tmp_path / "whole" / "audit.jsonl").read_text()
    assert record(folder) == record(tmp_path / "whole")


def test_what_cannot_be_audited_is_refused(smoke, monkeypatch):  # noqa: F811
    assert make_config("miniature", "miniature_birds", "saga_pf", 0).audit_every == 30
    assert make_config("smoke", "miniature_birds", "saga_pf", 0).audit_every == 2
    assert make_config("paper", "cub200", "saga_pf", 0).audit_every == 0
    assert make_config("miniature", "miniature_birds", "pf", 0).audit_every == 0
    assert make_config("miniature", "miniature_birds", "saga_shuffled", 0).audit_every == 0  # notebook 12 looks at SAGA alone
    for method, every in (("pf", 5), ("oracle", 5), ("saga_pf", -1)):
        with pytest.raises(SagaError, match="audit_every"):
            make_config("miniature", "miniature_birds", method, 0, audit_every=every)

    load = resolving.run_benchmark

    def without_truth(*args, **options):
        benchmark = load(*args, **options)
        return replace(benchmark, train=replace(benchmark.train, class_attributes=None))

    monkeypatch.setattr(resolving, "run_benchmark", without_truth)
    with pytest.raises(SagaError, match="no attribute truth"):
        open_session(smoke("saga_pf", audit_every=1))
    open_session(smoke("saga_pf", audit_every=0))


def test_a_library_without_an_audit_says_what_to_do(smoke):  # noqa: F811
    config = smoke("saga_pf", audit_every=1)
    with pytest.raises(SagaError, match="audit_every needs a run that knows how"):
        training.Session(replace(resolving.resolve(config), audit=None))


# ---------------------------------------------------------------------------------------------- summaries


def made_pair(run, step, pair, gradients, differs=None, survives=0.5, types=(8.0, 1.0, 0.5, 0.5), unanimous=(), correct=1.0):
    """Return the rows of one pair with a slot per entry of `gradients`; `differs` None makes it a pair of one class."""
    common = {"run": run, "step": step, "pair": pair, "same_class": differs is None}
    rows = []
    for number, gradient in enumerate(gradients):
        differ = bool(differs and differs[number])
        rows.append(
            common
            | {
                "part": "slot", "gradient": gradient, "gross": gradient / survives, "shuffled": gradient / 2, "item": "item_1",
                "attribute": f"a{number}", "differs": differ, "unanimous": number in unanimous, "correct": correct, "log_prob": -1.0,
            }
        )  # fmt: skip
    if differs is not None:  # the list of differences: the first entry, which differs, has all of the gradient
        entry = {"part": "difference", "gross": 2.0, "shuffled": 1.0, "unanimous": True, "correct": 1.0, "log_prob": -1.0}
        rows += [common | entry | {"attribute": f"b{n}", "gradient": 1.0 - n, "differs": n == 0} for n in range(2)]
    parts = dict(zip(TOKEN_TYPES, types, strict=True)) | {"all": sum(gradients)}
    return rows + [common | {"part": part, "gradient": g, "gross": 1.0, "shuffled": 1.0} for part, g in parts.items()]


def value(summary, measure, group, step="all"):
    return audit_summary.find(summary, measure, group, step)["value"]


@pytest.fixture
def made():
    """Two runs, two steps: differing slots 3, shared 1 (first step); a pair of one class."""
    return pd.DataFrame(
        [
            *made_pair("a", 1, 0, [3, 1, 1, 1], [True, False, False, False], unanimous=(1, 2)),
            *made_pair("a", 1, 1, [2, 2, 2, 2], None, correct=0.5),
            *made_pair("b", 1, 0, [1, 5, 3, 3], [False, False, True, True]),
            *made_pair("b", 2, 0, [4, 2, 2, 0], [True, True, False, False]),
        ]
    )


def test_summaries_have_the_known_answers(made):
    summary = audit_summary.summarise(made)
    assert list(dict.fromkeys(summary["step"])) == [1, 2, "later", "all"]
    later, second = summary[summary["step"] == "later"], summary[summary["step"] == 2]
    assert later["value"].equals(second["value"].set_axis(later.index))  # here one step
    assert value(summary, "share", "differing") == pytest.approx((3 / 6 + 6 / 12 + 6 / 8) / 3)
    # step 1: differing 3, 3, 3; shared 1, 1, 1, 1, 5
    assert value(summary, "gradient ratio", "differing / shared", 1) == pytest.approx(3 / (9 / 5))
    assert value(summary, "surviving ratio", "differing / shared", 1) == pytest.approx(1)
    assert value(summary, "gradient per slot", "shared", 1) == pytest.approx(9 / 5)
    assert value(summary, "share", "differing", 1) == pytest.approx((3 / 6 + 6 / 12) / 2)
    assert value(summary, "share", "chance", 1) == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert value(summary, "share", "above chance", 1) == pytest.approx((1 / 4 + 0) / 2)
    assert value(summary, "top slot", "differing", 1) == pytest.approx(1 / 2)
    assert value(summary, "unanimous", "shared", 1) == pytest.approx(2 / 5)
    assert value(summary, "unanimous", "differing", 1) == 0
    for group in audit_summary.GROUPS:
        assert value(summary, "surviving", group, 1) == pytest.approx(0.5)
        assert value(summary, "against shuffled", group, 1) == pytest.approx(4)
    assert value(summary, "same-class pairs", "number", 1) == pytest.approx(1 / 3)
    assert value(summary, "same-class pairs", "gradient", 1) == pytest.approx(8 / (6 + 8 + 12))
    assert value(summary, "reading accuracy", "all", 1) == pytest.approx((4 + 2 + 4) / 12)
    assert value(summary, "reading accuracy", "same class", 1) == pytest.approx(0.5)
    assert [value(summary, "token type", part) for part in TOKEN_TYPES] == pytest.approx([0.8, 0.1, 0.05, 0.05])
    assert value(summary, "share", "differences: differing", 1) == value(summary, "top slot", "differences: differing", 1) == 1
    assert value(summary, "share", "differences: chance", 1) == 0.5
    assert value(summary, "surviving", "differences: differing", 1) == 0.5 and value(summary, "surviving", "differences: shared", 1) == 0
    assert np.isnan(value(summary, "gradient ratio", "differences: differing / shared", 1))  # nothing to divide by
    # all steps: differing 3, 3, 3, 4, 2; shared 1, 1, 1, 1, 5, 2, 0
    assert value(summary, "gradient ratio", "differing / shared") == pytest.approx((15 / 5) / (11 / 7))
    last = audit_summary.find(summary, "surviving", "same class", 2)
    assert np.isnan(last["value"]) and np.isnan(last["low"])
    assert last["pairs"] == last["runs"] == 0
    ratio = audit_summary.find(summary, "gradient ratio", "differing / shared")
    assert ratio["runs"] == 2 and ratio["pairs"] == 3 and np.isnan(ratio["low"]), "three pairs are too few for an interval"
    assert "too few pairs for an interval" in " ".join(audit_summary.conclusions(summary))


def test_a_concentration_is_split_into_certainty_and_cancellation():
    """Differing slots have twice the gross gradient and lose half as much of it."""
    rows = pd.DataFrame(made_pair("a", 1, 0, [8, 2], [True, False]))
    rows.loc[rows["attribute"] == "a0", "gross"] = 10.0
    rows.loc[rows["attribute"] == "a1", "gross"] = 5.0
    summary = audit_summary.summarise(rows)
    got = [value(summary, f"{name} ratio", "differing / shared") for name in ("gradient", "gross", "surviving")]
    assert got == pytest.approx([4, 2, 2])


def test_intervals_cluster_by_run():
    """Runs that disagree make a wide interval, however many pairs each has; runs that agree a narrow one."""

    def width(of_run):
        rows = [row for run, g in of_run.items() for k in range(20) for row in made_pair(run, 1, k, [g, 1.0], [True, False])]
        row = audit_summary.find(audit_summary.summarise(pd.DataFrame(rows)), "gradient ratio", "differing / shared")
        return row["high"] - row["low"]

    assert width({"a": 3.0, "b": 3.0, "c": 3.0}) == pytest.approx(0)
    assert width({"a": 1.0, "b": 3.0, "c": 5.0}) > 2


def many(gradients, survives=(0.5, 0.5), steps=(1, 2)):
    rows = []
    for run in "abc":
        for step in steps:
            for k in range(6):
                noise = 1 + 0.1 * (k % 3)
                pair = made_pair(run, step, k, [gradients[0] * noise, *(3 * [gradients[1]])], [True, False, False, False])
                for row in pair:
                    if row["part"] == "slot":
                        row["gross"] = row["gradient"] / survives[0 if row["differs"] else 1]
                rows += pair
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gradients", "survives", "said"),
    [
        ((4, 1), (0.5, 0.5), ["as Sec. 3.2 expects", "above chance", "cancellation is not distinguishable"]),
        ((1, 4), (0.5, 0.5), ["the opposite of what Sec. 3.2 expects", "below chance"]),
        ((4, 1), (0.8, 0.2), ["advantages do cancel more on shared", "the larger part"]),
        ((4, 1), (0.6, 0.5), ["advantages do cancel more on shared", "cancellation makes only 1"]),
        ((4, 1), (0.2, 0.8), ["cancel more on differing attributes than", "works against the concentration"]),
        ((1 / 1.1, 1), (0.5, 0.5), ["no concentration is shown", "not distinguishable from chance"]),
    ],
)
def test_conclusions_follow_the_numbers(gradients, survives, said):
    text = " ".join(audit_summary.conclusions(audit_summary.summarise(many(gradients, survives))))
    for words in said:
        assert words in text, text
    assert "most are not" in text and "nan" not in text
    assert "no trend is shown" in text and "18" in text


def test_nothing_audited_is_said_not_raised(made, tmp_path):
    summary = audit_summary.summarise(audit_summary.gather([Run(tmp_path, None)]))
    assert audit_summary.display_table(summary).empty and audit_summary.attribute_table(pd.DataFrame()).empty
    [sentence] = audit_summary.conclusions(summary)
    assert "nothing can be said" in sentence
    only_same = audit_summary.summarise(made[made["same_class"]])
    assert "cannot be judged" in audit_summary.conclusions(only_same)[1]
    figures.audit_curves(only_same, "one class")


def test_tables_and_figure(made):
    summary = audit_summary.summarise(made)
    table = audit_summary.display_table(summary)
    assert len(table) == len(audit_summary.STATISTICS) and list(table)[2:] == [
        "step 1 [95 %]", "step 2 [95 %]", "later steps [95 %]", "all steps [95 %]", "meaning"
    ]  # fmt: skip
    by_attribute = audit_summary.attribute_table(made)
    row = by_attribute[(by_attribute["attribute"] == "a0") & (by_attribute["kind of slot"] == "differing")].iloc[0]
    assert row["slots"] == 2 and row["gradient per slot"] == pytest.approx(3.5) and row["survives"] == pytest.approx(0.5)
    figure = figures.audit_curves(summary, "title")
    assert len(figure.axes) == 9 and all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
