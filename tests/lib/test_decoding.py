"""Decoding in buffers of fixed size: the tokens and logits of decoding in a growing cache, step by step the same computation."""

from types import SimpleNamespace

import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, build_tiny_checkpoint, random_images

from saga_lib.common.errors import SagaError
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.supervisor import decoding
from saga_lib.supervisor.decoding import FixedDecoder, uses_graphs
from saga_lib.supervisor.rollouts import Sampling, generate_rollouts

PAIRS, GROUP = 4, 3


@pytest.fixture(scope="module", params=["qwen3_vl", "internvl"])
def loaded(request, tmp_path_factory):
    """A tiny supervisor of each family in float64."""
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return load_supervisor(folder, IMAGE_SIZE, dtype=torch.float64)


@pytest.fixture(scope="module")
def prompt_ids(supervisor):
    return supervisor.prompt_ids(comparison_prompt(VOCABULARY))


@pytest.fixture(scope="module")
def images(loaded):
    tower = loaded[0]
    with torch.no_grad():
        return tower(tower.preprocess(random_images(2 * PAIRS, seed=5)).double())


@pytest.fixture(autouse=True)
def sizes(supervisor, prompt_ids, monkeypatch):
    """Spans and batches so small that an answer of a dozen tokens sees several of each; no end of turn."""
    monkeypatch.setattr(decoding, "SPAN", 4)
    monkeypatch.setattr(decoding, "FEWEST_ROWS", 2)
    monkeypatch.setattr(supervisor, "eos_token_id", -1)


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs played on the CPU: what was recorded is computed again from the same addresses into the same address."""
    recorded = []

    def capture(self, ids, places, span):
        ids, places = ids.clone(), places.clone()
        hidden = self.forward(ids, places, span)
        recorded.append((*ids.shape, span))
        return SimpleNamespace(replay=lambda: hidden.copy_(self.forward(ids, places, span))), ids, places, hidden

    monkeypatch.setattr(FixedDecoder, "_capture", capture)
    monkeypatch.setattr("saga_lib.supervisor.rollouts.uses_graphs", lambda device: True)
    return recorded


def drawn(supervisor, prompt_ids, images, fixed, **options):
    generator = torch.Generator().manual_seed(4)
    return generate_rollouts(supervisor, prompt_ids, images, Sampling(GROUP, 12, fixed=fixed, **options), generator)


@pytest.mark.parametrize("captured", [False, True])
def test_answers_are_those_of_a_growing_cache_also_when_rows_end_and_tokens_are_drafted(
    supervisor, prompt_ids, images, monkeypatch, captured, request
):
    recorded = request.getfixturevalue("graphs") if captured else []
    plain = drawn(supervisor, prompt_ids, images, False)
    monkeypatch.setattr(supervisor, "eos_token_id", plain.tokens[3, 6].item())  # some rows end early
    plain = drawn(supervisor, prompt_ids, images, False)
    assert plain.lengths.min() < plain.lengths.max() == 12, "the check needs rows that end early"
    common = plain.tokens.mode(0).values.tolist()
    for draft in ((), common, [None, *common[1:3], None, *common[4:]]):
        recorded.clear()
        same = drawn(supervisor, prompt_ids, images, True, draft=draft)
        assert torch.equal(same.tokens, plain.tokens) and torch.equal(same.mask, plain.mask) and same.texts == plain.texts
        if captured:
            assert len({span for *_, span in recorded}) > 1, "attention's view must grow"
            assert len(set(recorded)) == len(recorded), "each shape is recorded once"
            assert (2 in {count for _, count, _ in recorded}) == bool(draft)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_are_those_of_the_full_sequence_as_rows_leave(loaded, prompt_ids, images, dtype, tolerance):
    _, supervisor = loaded
    language_model, head = supervisor.language_model.to(dtype), supervisor.head.to(dtype)
    try:
        tokens = torch.randint(0, 200, (PAIRS * GROUP, 9), generator=torch.Generator().manual_seed(0))
        ids = torch.cat([prompt_ids.expand(len(tokens), -1), tokens], 1)
        pairs = torch.arange(2 * PAIRS).view(PAIRS, 2).repeat_interleave(GROUP, 0).flatten()
        with torch.no_grad():
            expected = head(supervisor.forward_sequences(ids, images[pairs]))[:, len(prompt_ids) :]
            decoder = FixedDecoder(supervisor, supervisor.prefill(prompt_ids, images), GROUP, tokens.shape[1] + 1, graphs=False)
            addresses = [buffer.data_ptr() for layer in decoder.layers for buffer in layer]
            rows, start, sizes = torch.arange(len(tokens)), 0, set()
            for count, leaving in ((1, []), (2, [4]), (1, [3, 5]), (2, [0, 2, 6, 9, 10, 11]), (1, [1]), (2, [])):
                fed = torch.cat([tokens[rows, start : start + count], torch.zeros(len(rows), 1, dtype=torch.long)], 1)
                logits = head(decoder.extend(fed)[:, :-1])  # the last was fed along and is forgotten
                decoder.crop(1)
                torch.testing.assert_close(logits, expected[rows, start : start + count], rtol=0, atol=tolerance)
                start += count
                kept = torch.tensor([i for i, row in enumerate(rows.tolist()) if row not in leaving])
                decoder.keep_rows(kept)
                rows = rows[kept]
                sizes.add(decoder.rows)
        assert len(sizes) > 1, "the batch must shrink as rows leave"
        assert addresses == [buffer.data_ptr() for layer in decoder.layers for buffer in layer], "no buffer may move"
    finally:
        language_model.double(), head.double()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_is_one_graph_however_long_the_answer(supervisor, prompt_ids, images, backend):
    """What a CUDA graph cannot hold – decisions by value, shapes that depend on the step – would break this compilation too."""
    from torch import _dynamo as dynamo
    from torch._dynamo.testing import CompileCounterWithBackend

    with torch.inference_mode():
        decoder = FixedDecoder(supervisor, supervisor.prefill(prompt_ids, images), GROUP, 40, graphs=False)
        dynamo.reset()
        compiled, traced = [], CompileCounterWithBackend(backend)
        step = torch.compile(decoder.forward, fullgraph=True, dynamic=False, backend=traced)
        for place in range(len(prompt_ids), len(prompt_ids) + 30):
            ids, places = torch.full((PAIRS * GROUP, 1), place % 50), torch.tensor([place])
            expected = decoder.forward(ids, places, decoder.total)
            compiled.append((step(ids, places, decoder.total) - expected).abs().max().item())
        assert traced.frame_count == 1, "recompiled as the answer grew"
        assert max(compiled) < 1e-12
        step(ids.repeat(1, 2), torch.tensor([place, place + 1]), decoder.total)
        assert traced.frame_count == 2
    dynamo.reset()


def test_a_failed_capture_is_one_line_with_the_way_around(supervisor, prompt_ids, images, monkeypatch):
    def fail(self, ids, places, span):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(FixedDecoder, "_capture", fail)
    monkeypatch.setattr("saga_lib.supervisor.rollouts.uses_graphs", lambda device: True)
    with pytest.raises(SagaError, match=r"captured as a CUDA graph \(CUDA error: .* capturing\); SAGA_CUDA_GRAPHS=0 does without$"):
        drawn(supervisor, prompt_ids, images, True)


def test_graphs_are_for_gpus_that_want_them(monkeypatch):
    assert uses_graphs(torch.device("cuda")) and not uses_graphs(torch.device("cpu"))
    monkeypatch.setenv("SAGA_CUDA_GRAPHS", "0")
    assert not uses_graphs(torch.device("cuda"))
