"""Every way of decoding draws the same greedy tokens, and a captured step computes what it computes uncaptured."""

import gc

import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, random_images

from saga_lib import towers
from saga_lib.config import CHECKPOINTS
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.supervisor import decoding, rollouts
from saga_lib.supervisor.decoding import FixedDecoder
from saga_lib.supervisor.rollouts import Sampling, comparison_draft, generate_rollouts

PAIRS, GROUP, LENGTH = 4, 3, 24
WAYS = {"growing": (False, False), "fixed": (True, False), "captured": (True, True)}  # buffers of fixed size?, replayed as graphs?


class Asked:
    """A supervisor in one precision with a prompt and the tokens of a wave's images."""

    def __init__(self, folder, device, dtype):
        self.tower, self.supervisor = load_supervisor(folder, IMAGE_SIZE, device, dtype)
        self.device = device
        self.prompt_ids = self.supervisor.prompt_ids(comparison_prompt(VOCABULARY))
        pixels = self.tower.preprocess(random_images(2 * PAIRS, seed=5)).to(device)
        with torch.no_grad(), self.precision():
            self.images = self.tower(pixels)

    def precision(self):
        low = self.supervisor.head.weight.dtype == torch.bfloat16
        return towers.autocast(self.device) if low else torch.autocast(self.device.type, enabled=False)

    def answers(self, way, monkeypatch, **sampling):
        fixed, captured = WAYS[way]
        monkeypatch.setattr(rollouts, "uses_graphs", lambda device: captured)
        options = {"temperature": 0.0, "max_new_tokens": LENGTH} | sampling
        generator = torch.Generator(device=self.device).manual_seed(4)
        with self.precision():
            return generate_rollouts(self.supervisor, self.prompt_ids, self.images, Sampling(GROUP, fixed=fixed, **options), generator)

    def log_p(self, row, tokens):
        """Return log p (n, V) of what may follow each of the first n tokens of a row, by a forward pass of the whole sequence."""
        pair = self.images[slice(2 * (row // GROUP), 2 * (row // GROUP) + 2)]
        ids = torch.cat([self.prompt_ids, tokens])[None]
        with torch.no_grad(), self.precision():
            hidden = self.supervisor.forward_sequences(ids, pair)[0, len(self.prompt_ids) - 1 :]
            return self.supervisor.head(hidden).double().log_softmax(-1)


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Spans and batches so small that an answer of a few tokens sees several of each."""
    monkeypatch.setattr(decoding, "SPAN", 8)
    monkeypatch.setattr(decoding, "FEWEST_ROWS", 2)


@pytest.fixture(scope="module")
def exact(tiny_checkpoint, device):
    return Asked(tiny_checkpoint, device, torch.float64)


@pytest.fixture(scope="module")
def low(tiny_checkpoint, device):
    return Asked(tiny_checkpoint, device, torch.bfloat16)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_draws_the_greedy_tokens_of_whole_sequences(exact, way, ends, monkeypatch):
    """In float64, where there are no ties: those of a forward pass over all tokens so far, also when rows end and tokens are drafted."""
    monkeypatch.setattr(exact.supervisor, "eos_token_id", -1)
    monkeypatch.setattr(exact.supervisor, "further_ends", [])
    growing = exact.answers("growing", monkeypatch).tokens
    if ends:
        monkeypatch.setattr(exact.supervisor, "eos_token_id", growing[GROUP, LENGTH // 2].item())
    drafts = ((), growing.mode(0).values.tolist()) if way != "growing" else ((),)
    for draft in drafts:
        drawn = exact.answers(way, monkeypatch, draft=draft)
        assert ends == bool(drawn.lengths.min() < LENGTH), "the check needs rows that end early"
        for row in range(0, PAIRS * GROUP, GROUP):
            tokens = drawn.tokens[row, : drawn.lengths[row]]
            expected = exact.log_p(row, tokens)[: len(tokens)]
            expected[:, exact.supervisor.image_token_id] = -torch.inf
            assert torch.equal(expected.argmax(-1), tokens)
        again = drawn.tokens.view(PAIRS, GROUP, -1)
        assert torch.equal(again, again[:, :1].expand_as(again)), "greedy rows of a pair are alike"


@pytest.mark.parametrize("way", ["fixed", "captured"])
def test_sampled_tokens_are_the_same_whatever_the_way(exact, way, monkeypatch):
    options = {"temperature": 0.7, "top_p": 0.95}
    drawn, growing = (exact.answers(name, monkeypatch, **options) for name in (way, "growing"))
    assert torch.equal(drawn.tokens, growing.tokens) and drawn.texts == growing.texts
    assert len({tuple(row) for row in drawn.tokens.tolist()}) > PAIRS, "rows of a pair must differ"


@pytest.mark.parametrize("way", WAYS)
def test_in_bf16_greedy_tokens_part_at_ties_alone(low, exact, way, monkeypatch):
    """Where two ways choose different tokens, float64 finds them equally likely up to what bf16 can tell of a logit."""
    monkeypatch.setattr(low.supervisor, "eos_token_id", -1)
    growing, drawn = (low.answers(name, monkeypatch).tokens for name in ("growing", way))
    for row in (growing != drawn).any(1).nonzero()[:, 0].tolist():
        first = int((growing[row] != drawn[row]).int().argmax())
        log_p = exact.log_p(row, growing[row, :first])[-1]
        logits = log_p - log_p.min()
        assert (log_p[growing[row, first]] - log_p[drawn[row, first]]).abs() < 2**-4 * logits.max()
    assert (growing[:, 0] == drawn[:, 0]).float().mean() > 0.5


@pytest.mark.parametrize("name", ["birds", "birds_internvl"])
def test_a_taught_supervisor_answers_the_same_in_bf16_whatever_the_way(name, device, monkeypatch):
    """It is nearly certain of most tokens, so that rounding seldom decides."""
    asked = Asked(CHECKPOINTS / name, device, torch.bfloat16)
    draft = comparison_draft(asked.supervisor, VOCABULARY)
    growing = asked.answers("growing", monkeypatch, max_new_tokens=72)
    assert growing.finished.all()
    for way in ("fixed", "captured"):
        drawn = asked.answers(way, monkeypatch, max_new_tokens=72, draft=draft)
        same = [ours == theirs for ours, theirs in zip(drawn.texts, growing.texts, strict=True)]
        assert drawn.finished.all() and sum(same) >= 0.75 * len(same)


def test_captured_and_eager_steps_agree(low, monkeypatch):
    """Hidden states, step by step, as spans grow, rows leave and one or two tokens are fed at a time."""
    tokens = torch.randint(0, 200, (PAIRS * GROUP, LENGTH), generator=torch.Generator().manual_seed(0)).to(low.device)
    with torch.inference_mode(), low.precision():
        decoders = [
            FixedDecoder(low.supervisor, low.supervisor.prefill(low.prompt_ids, low.images), GROUP, LENGTH + 1, graphs)
            for graphs in (False, True)
        ]
        rows, start = torch.arange(len(tokens), device=low.device), 0
        for count, leaving in ((1, []), (1, []), (2, [4]), (1, [3, 5]), (2, []), (1, [0, 2, 6, 9, 10]), (1, []), (2, [1]), (1, [])):
            fed = tokens[rows, start : start + count]
            eager, captured = (decoder.extend(fed) for decoder in decoders)
            assert eager.isfinite().all()
            error = (captured - eager).float().norm() / eager.float().norm()
            assert error < 2**-7, f"{error:.2g} after {start} tokens"
            start += count
            kept = torch.tensor([i for i, row in enumerate(rows.tolist()) if row not in leaving], device=low.device)
            for decoder in decoders:
                decoder.keep_rows(kept)
            rows = rows[kept]
    assert len(decoders[1]._captured) > 3 and not decoders[0]._captured


def test_waves_leave_no_memory_behind(low, monkeypatch):
    """Graphs have memory of their own, which must go with the wave's decoder."""
    used = []
    for _ in range(4):
        low.answers("captured", monkeypatch)
        gc.collect()
        used.append(torch.cuda.memory_allocated() if low.device.type == "cuda" else 0)
    assert used[-1] <= used[1] + 2**20
