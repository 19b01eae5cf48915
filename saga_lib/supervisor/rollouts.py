"""G sampled answers per pair (Eq. 2) from one shared prefix, all pairs of a wave in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saga_lib import ranks
from saga_lib.prompts import comparison_answer, varied_items
from saga_lib.ranks import Draws
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.caches import DecodeCache, SharedDecodeCache
from saga_lib.supervisor.decoding import FixedDecoder, GrowingDecoder, uses_graphs
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sampling:
    """How the answers of a pair are sampled (App. C).

    `draft` holds, per position of an answer, the token that is expected there (the JSON between two values) or None.
    It is fed along with the token before it, and what follows it counts only if every row did sample it: the
    distribution of the answers stays the same, with fewer forward passes.
    """

    group_size: int  # G, answers per pair
    max_new_tokens: int  # longer answers are cut
    temperature: float = 0.7  # 0 decodes greedily
    top_p: float = 0.95  # mass of the nucleus that tokens are drawn from
    draft: Sequence[int | None] = ()
    fixed: bool | None = None  # decode in buffers of fixed size (`decoding`); None: on a GPU only


@dataclass
class Rollouts:
    """R = B·G completions, pair-major. `mask` covers generated tokens, the end-of-turn token included."""

    tokens: Tensor  # (R, T) int64, right-padded with the end-of-turn id
    mask: Tensor  # (R, T) bool
    texts: list[str]
    finished: Tensor  # (R,) bool, False where the answer was cut at the token limit
    lengths: Tensor = None  # (R,) tokens of the answer; the mask may score fewer (the oracle's has holes)

    def __post_init__(self) -> None:
        if self.lengths is None:
            columns = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
            self.lengths = (self.mask * columns).amax(1)

    def select(self, rows: Tensor) -> Rollouts:
        """Return the given rows, trimmed to their longest answer."""
        width = max(int(self.lengths[rows].max()), 1) if len(rows) else 1
        return Rollouts(
            self.tokens[rows, :width], self.mask[rows, :width], [self.texts[i] for i in rows.tolist()],
            self.finished[rows], self.lengths[rows],
        )  # fmt: skip

    @staticmethod
    def cat(parts: list[Rollouts], pad: int) -> Rollouts:
        width = max(part.tokens.shape[1] for part in parts)

        def padded(tensor: Tensor, value: int | bool) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

        return Rollouts(
            torch.cat([padded(p.tokens, pad) for p in parts]), torch.cat([padded(p.mask, False) for p in parts]),
            [text for p in parts for text in p.texts], torch.cat([p.finished for p in parts]), torch.cat([p.lengths for p in parts]),
        )  # fmt: skip


def expected_tokens(supervisor: Supervisor, answers: Sequence[str]) -> list[int | None]:
    """Return the `draft` for answers like these: per position the token that all of them have there, or None."""
    ids = [supervisor.answer_ids(answer)[:-1] for answer in answers]
    return [place[0] if len(set(place)) == 1 else None for place in zip(*ids, strict=False)]


def comparison_draft(supervisor: Supervisor, vocabulary: Vocabulary) -> list[int | None]:
    """Return the `draft` for comparisons in a vocabulary; empty where its values are free text."""
    items = varied_items(vocabulary)
    pairs = [pair for item in items for pair in ((items[0], item), (item, items[0]))]
    return expected_tokens(supervisor, [comparison_answer(vocabulary, *pair) for pair in pairs])


@torch.inference_mode()
def generate_rollouts(
    supervisor: Supervisor, prompt_ids: Tensor, images: VisualTokens, sampling: Sampling, generator: torch.Generator | Draws | None = None
) -> Rollouts:
    """Sample G completions for each of B pairs (Eq. 2); `images` are the pairs' tokens, (2B, Np, D), row-major.

    The prompt is prefilled once per pair; rows that ended leave the batch. `generator` is on the prompt's device; `Draws` where
    other ranks sample the rest of the pairs.
    """
    device, ends = prompt_ids.device, torch.tensor(supervisor.ends, device=prompt_ids.device)
    group_size, max_new_tokens, draft = sampling.group_size, sampling.max_new_tokens, sampling.draft
    prefix = supervisor.prefill(prompt_ids, images)
    last_hidden = prefix.last_hidden.repeat_interleave(group_size, 0)
    if sampling.fixed or (sampling.fixed is None and device.type == "cuda"):
        decoder = FixedDecoder(supervisor, prefix, group_size, max_new_tokens, uses_graphs(device))
    else:
        cache_class = SharedDecodeCache if device.type == "cpu" else DecodeCache
        decoder = GrowingDecoder(supervisor, replace(prefix, cache=cache_class(prefix.cache, group_size, max_new_tokens)))
    del prefix  # a prompt's own cache is no longer needed
    rows = last_hidden.shape[0]
    tokens = torch.full((rows, max_new_tokens), supervisor.eos_token_id, device=device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    live = torch.arange(rows, device=device)
    ahead = [last_hidden]  # hidden states whose next token is still to be sampled
    for step in range(max_new_tokens):
        logits = supervisor.head(ahead.pop(0))
        logits[:, supervisor.image_token_id] = float("-inf")  # a sampled placeholder would stand for an image
        chosen = sample(logits, sampling.temperature, sampling.top_p, generator)
        tokens[live, step], mask[live, step] = chosen, True
        going = ~torch.isin(chosen, ends)
        if step + 1 == max_new_tokens or not going.any():
            break
        if ahead and going.all() and (chosen == draft[step]).all():
            continue
        if ahead:
            decoder.crop(1)
        if going.sum() < len(live):
            kept = going.nonzero()[:, 0]
            decoder.keep_rows(kept)
            live, chosen = live[kept], chosen[kept]
        following = draft[step + 1] if step + 1 < min(len(draft), max_new_tokens) else None
        fed = chosen[:, None]
        if following is not None:
            fed = torch.cat([fed, torch.full_like(fed, following)], 1)
        ahead = list(decoder.extend(fed).unbind(1))
    width = int(mask.sum(1).max())
    with torch.inference_mode(False):  # normal tensors again, which a replay may save for its backward
        tokens, mask = tokens[:, :width].clone(), mask[:, :width].clone()
        finished = (torch.isin(tokens, ends) & mask).any(1)
    return Rollouts(tokens, mask, [supervisor.decode(row[m].tolist()) for row, m in zip(tokens, mask, strict=True)], finished)


def gathered_rollouts(own: Rollouts | None, supervisor: Supervisor, max_new_tokens: int) -> Rollouts:
    """Return the rollouts of all ranks, those of one after the other; `own` is None where a rank has no pairs."""
    if ranks.size() == 1:
        return own
    empty = torch.zeros(0, max_new_tokens, dtype=torch.int64, device=supervisor.device)
    widest = Rollouts(empty, empty.bool(), [], empty.bool().any(1))
    own = Rollouts.cat([own, widest] if own else [widest], supervisor.eos_token_id)
    tokens, mask, finished = (ranks.gathered(part.int()) for part in (own.tokens, own.mask, own.finished))
    whole = Rollouts(tokens.long(), mask.bool(), ranks.gathered_list(own.texts), finished.bool())
    return whole.select(torch.arange(len(tokens), device=tokens.device))


def nucleus(logits: Tensor, temperature: float, top_p: float, widths: Sequence[int] = (1, 32)) -> tuple[Tensor, Tensor]:
    """Return probabilities (R, n), largest first and 0 outside the nucleus of mass `top_p`, and their ids (R, n).

    n is the first of `widths` that holds every row's nucleus, else the size of the vocabulary: most tokens of an
    answer are certain, and hardly one needs a full sort.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    vocabulary = probabilities.shape[-1]
    for width in (*(w for w in widths if w < vocabulary), vocabulary):
        ordered, ids = probabilities.topk(width)
        mass = ordered.cumsum(-1)
        if width == vocabulary or (mass[:, -1] >= top_p).all():
            return ordered.masked_fill(mass - ordered >= top_p, 0), ids


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | Draws | None) -> Tensor:
    """Draw one id per row of logits (R, V) from the nucleus of mass `top_p`; temperature 0 takes the largest."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_p == 1:
        generator = generator.generator if isinstance(generator, Draws) else generator
        return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]
    probabilities, ids = nucleus(logits, temperature, top_p)
    mass = probabilities.cumsum(-1)
    drawn = generator(len(mass)) if isinstance(generator, Draws) else torch.rand(len(mass), 1, device=mass.device, generator=generator)
    choice = (mass < (1 - drawn) * mass[:, -1:]).sum(-1, keepdim=True)  # 1 - drawn is in (0, 1]: never an excluded id
    return ids.gather(-1, choice)[:, 0]
