"""What the frozen language model reads from each image by itself, with gradient, and losses on these readings.

A *reading* of an image is, for each attribute, the model's distribution over the attribute's values at the place where an answer names
it. The gradient flows through the frozen model into the image's tokens, as GRPO's does, but nothing is sampled and no pairs are drawn:
one forward and one backward pass per image. The losses use class labels, never attribute labels. None of this is in the SAGA paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from saga_lib import ranks, towers
from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_lib.datasets.pixels import PixelStore
from saga_lib.prompts import attribute_line
from saga_lib.step import Replayed
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import attribute_tokens
from saga_lib.supervisor.rollouts import Sampling, generate_rollouts
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import Vocabulary

ITEM = "item_1"  # the key under which an answer describes the image
Readings = list[Tensor]  # per attribute log p (N, V): of its V values, or of all tokens where its values are free text

# ------------------------------------------------------------------------------------------------- the question


def description_prompt(vocabulary: Vocabulary) -> str:
    """Return the prompt that asks for the attributes of one image."""
    v = vocabulary
    return "\n".join(
        [
            f"You are an expert {v.expert}. Describe the {v.item} in the image along these attributes:",
            *(attribute_line(attribute) for attribute in v.attributes),
            f'Answer with one JSON object and nothing else: "{ITEM}": an object with one text per attribute.',
        ]
    )


def description_answer(vocabulary: Vocabulary, item: Mapping[str, str]) -> str:
    """Return the true answer to `description_prompt` for an item whose attributes are known."""
    return json.dumps({ITEM: {name: item[name] for name in vocabulary.attribute_names}})


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Node:
    """A place where the answers with an attribute's different values part.

    The values are the leaves of a tree of tokens: "red" and "red brown" part after "red". `suffix` are the tokens between the place
    where the value begins and this one, `children` those that may follow; None: every token (free text).
    """

    suffix: tuple[int, ...]
    children: tuple[int, ...] | None


@dataclass(frozen=True)
class ValueTree:
    """The nodes of an attribute, and for each value its steps from the root: (node, child) positions."""

    nodes: tuple[Node, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> ValueTree:
        """Build the tree of the values' tokens (with what follows them, so that none is the beginning of another)."""
        nodes: list[Node] = []
        steps: list[list[tuple[int, int]]] = [[] for _ in sequences]

        def grow(members: list[int], depth: int) -> None:
            while len({sequences[m][depth] for m in members}) == 1:
                depth += 1
            children = sorted({sequences[m][depth] for m in members})
            number = len(nodes)
            nodes.append(Node(tuple(sequences[members[0]][:depth]), tuple(children)))
            for place, child in enumerate(children):
                chosen = [m for m in members if sequences[m][depth] == child]
                for m in chosen:
                    steps[m].append((number, place))
                if len(chosen) > 1:
                    grow(chosen, depth + 1)

        grow(list(range(len(sequences))), 0)
        return cls(tuple(nodes), tuple(map(tuple, steps)))


@dataclass
class _Layout:
    """What follows the prompt in one row: an answer, then the tokens that lead to nodes off it, which see only their own past."""

    tokens: list[int]
    depths: list[int]  # place of each token in the answer that it belongs to
    seen: list[list[int]]  # places among `tokens` that each one sees, itself included
    places: list[int]  # of each node: how many of `tokens` come before it, or -1 where the answer lacks the attribute


class Reader:
    """Asks a frozen model for the attributes of one image at a time and returns its distributions over their values.

    By default every image is given the same answer (each attribute's first value) and the model's distribution is taken at each value's
    place: nothing is generated. With `own_answer` the model first describes each image, greedily, and is read along its own words.
    """

    def __init__(self, supervisor: Supervisor, vocabulary: Vocabulary, own_answer: bool = False, max_new_tokens: int = 1024) -> None:
        """Prepare the question; raises `SagaError` where the model's tokens cannot tell an attribute's values apart."""
        self.supervisor, self.vocabulary, self.own_answer, self.max_new_tokens = supervisor, vocabulary, own_answer, max_new_tokens
        self.prompt_ids = supervisor.prompt_ids(description_prompt(vocabulary), num_images=1)
        self._item = {a.name: a.values[0] if a.values else vocabulary.example for a in vocabulary.attributes}
        self._answer = supervisor.answer_ids(description_answer(vocabulary, self._item))
        self._trees = {a.name: self._tree(a.name, a.values) for a in vocabulary.attributes}
        self._forced = self._layout(self._answer)

    def _tree(self, name: str, values: Sequence[str]) -> ValueTree:
        if not values:
            return ValueTree((Node((), None),), ())
        start = attribute_tokens(self.supervisor, self._answer)[ITEM, name][0]
        answers = [self.supervisor.answer_ids(description_answer(self.vocabulary, self._item | {name: value})) for value in values]
        if any(answer[:start] != self._answer[:start] for answer in answers):
            raise SagaError(f"attribute {name!r}: the tokens before its values depend on the value; give it other values")
        return ValueTree.of([answer[start:] for answer in answers])

    def _layout(self, answer: Sequence[int]) -> _Layout:
        """Lay out an answer for reading at every node of every attribute that it names."""
        tokens, found = list(answer), attribute_tokens(self.supervisor, answer)
        depths, seen = list(range(len(answer))), [list(range(n + 1)) for n in range(len(answer))]
        places = []
        for name, tree in self._trees.items():
            at = found.get((ITEM, name))
            for node in tree.nodes:
                if not at:
                    places.append(-1)
                    continue
                context = [*answer[: at[0]], *node.suffix]
                shared = next((n for n, (a, b) in enumerate(zip(context, answer, strict=False)) if a != b), min(len(context), len(answer)))
                past = list(range(shared))
                for depth, token in enumerate(context[shared:], shared):
                    past = [*past, len(tokens)]
                    tokens.append(token)
                    depths.append(depth)
                    seen.append(past)
                places.append(past[-1] + 1 if past else 0)
        return _Layout(tokens, depths, seen, places)

    @torch.no_grad()
    def describe(self, images: VisualTokens) -> list[list[int]]:
        """Return the model's greedy description of each image (N, Np, D), as token ids without padding."""
        sampling = Sampling(1, self.max_new_tokens, temperature=0)
        rollouts = generate_rollouts(self.supervisor, self.prompt_ids, images.detach(), sampling)
        return [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)]

    def __call__(self, images: VisualTokens, answers: Sequence[Sequence[int]] | None = None) -> Readings:
        """Return log p (N, V) of each attribute's values for images (N, Np, D), with gradient, at least float32.

        `answers` are the descriptions to read along, those of `describe` by default if `own_answer` is set. An attribute that a
        description lacks has the uniform distribution.
        """
        count = len(images.merged)
        if answers is None and self.own_answer:
            answers = self.describe(images)
        layouts = [self._forced] * count if answers is None else [self._layout(answer) for answer in answers]
        hidden = self._hidden(images, layouts)  # (N, T + 1, H)
        device = hidden.device
        places = torch.tensor([layout.places for layout in layouts], device=device)
        at_nodes = hidden.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, hidden.shape[-1]))  # (N, nodes, H)
        readings, first = [], 0
        for tree in self._trees.values():
            branches = [self._branch(at_nodes[:, first + n], node) for n, node in enumerate(tree.nodes)]
            values = branches[0]
            if tree.steps:
                values = torch.stack([sum(branches[n][:, child] for n, child in steps) for steps in tree.steps], 1)
            lacking = (places[:, first] < 0)[:, None]
            readings.append(torch.where(lacking, torch.full_like(values, -np.log(values.shape[1])), values))
            first += len(tree.nodes)
        return readings

    def _branch(self, hidden: Tensor, node: Node) -> Tensor:
        """Return log p of a node's children (N, children) given hidden states (N, H); they share all probability."""
        head = self.supervisor.head
        if node.children is None:
            logits = head(hidden)
        else:
            rows = torch.tensor(node.children, device=hidden.device)
            logits = F.linear(hidden, head.weight[rows], None if head.bias is None else head.bias[rows])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _hidden(self, images: VisualTokens, layouts: Sequence[_Layout]) -> Tensor:
        """Return the hidden states (N, T + 1, H) of the prompt's last token and of each row's tokens."""
        supervisor, prompt, device = self.supervisor, self.prompt_ids, self.prompt_ids.device
        start, width = len(prompt), max(len(layout.tokens) for layout in layouts)
        distinct = {id(layout): layout for layout in layouts}
        order = {key: n for n, key in enumerate(distinct)}
        rows = torch.tensor([order[id(layout)] for layout in layouts], device=device)
        tokens = torch.full((len(distinct), width), supervisor.eos_token_id)
        depths = torch.zeros(len(distinct), width, dtype=torch.long)
        sees = torch.zeros(len(distinct), start + width, start + width, dtype=torch.bool)
        sees[:, :start, :start] = torch.ones(start, start).tril().bool()
        sees[:, start:, :start] = True
        for n, layout in enumerate(distinct.values()):
            tokens[n, : len(layout.tokens)] = torch.tensor(layout.tokens)
            depths[n, : len(layout.depths)] = torch.tensor(layout.depths)
            for t in range(width):  # padding sees itself: a row of nothing but -inf has no softmax
                sees[n, start + t, [start + s for s in (layout.seen[t] if t < len(layout.seen) else [t])]] = True
        ids = torch.cat([prompt.expand(len(layouts), -1), tokens.to(device)[rows]], 1)
        before = supervisor.positions(prompt[None])
        positions = torch.stack([supervisor.text_positions(int(before.max()) + 1 + row.to(device)) for row in depths]).squeeze(-2)
        positions = torch.cat([before.squeeze(-2).expand(len(distinct), *before.shape[:-2], -1), positions], -1)[rows]
        positions = positions.movedim(0, -2)  # (…, N, S)
        embeds, injected = supervisor.embed(ids, images)
        mask = torch.zeros(sees.shape, dtype=embeds.dtype).masked_fill(~sees, float("-inf")).to(device)[rows][:, None]
        hidden = supervisor.forward_embeddings(embeds, positions, None, mask, **injected)
        return hidden[:, start - 1 :]


class AttributeHead(nn.Module):
    """A control: linear layers that are trained in the place of the frozen language model, on the mean of an image's tokens."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.sizes = [max(2, len(attribute.values)) for attribute in vocabulary.attributes]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, images: VisualTokens, answers: object = None) -> Readings:
        """Return log p (N, V) for each attribute of images (N, Np, D)."""
        return [part.log_softmax(-1) for part in self.linear(images.merged.mean(1).float()).split(self.sizes, 1)]


@torch.no_grad()
def permute_weights(model: nn.Module, seed: int) -> None:
    """Permute the entries of every matrix of a model in place: the same sizes and distributions, nothing of what it knows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def make_reader(
    config: RunConfig, supervisor: Supervisor | None, vocabulary: Vocabulary, width: int, device: torch.device
) -> Reader | AttributeHead | None:
    """Return what reads the images of a run's steps, the control in its place, or None; `width` is the tower's."""
    if config.reading_signal == "none":
        return None
    if config.reading_control == "head":
        return AttributeHead(width, vocabulary).to(device)
    if config.reading_control == "permuted":
        permute_weights(supervisor.language_model, config.seed)
    return Reader(supervisor, vocabulary, config.reading_answer == "own", config.max_new_tokens)


# ------------------------------------------------------------------------------------------------- losses on readings

FLOOR = 1e-4  # probability of agreement that is added, so that one attribute alone cannot tell two images apart for certain


def similarities(readings: Readings, floor: float = FLOOR) -> Tensor:
    """Return S (N, N): the sum over attributes of log(p_a(i)·p_a(j) + floor), the log-probability that two images are read alike."""
    probabilities = [reading.exp() for reading in readings]
    return sum((p @ p.T + floor).log() for p in probabilities)


def _kinds(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return two masks (N, N): pairs of one class without i = j, and i = j."""
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (labels[:, None] == labels) & ~itself, itself


def contrast_loss(readings: Readings, labels: Tensor, temperature: float) -> Tensor:
    """Return the supervised InfoNCE loss over S / temperature: images of one class should be read more alike than others.

    The mean over images of the mean over their positives; an image without positives contributes 0.
    """
    same, itself = _kinds(labels)
    log_p = (similarities(readings) / temperature).masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(~same, 0.0)
    return -(log_p.sum(-1) / same.sum(-1).clamp_min(1)).mean()


def verdict_loss(readings: Readings, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return −E log P(right verdict) over the batch's pairs, both kinds with half the weight.

    P(same) = Π_a Σ_v p_a(v|i) p_a(v|j): what the rollouts' verdict is in expectation, if it says "same" when all attributes agree.
    """
    same, itself = _kinds(labels)
    log_same = similarities(readings, 1e-12).clamp_max(-1e-6)
    log_different = torch.log(-torch.expm1(log_same))
    other = ~same & ~itself
    return -(log_same[same].sum() / same.sum().clamp_min(1) + log_different[other].sum() / other.sum().clamp_min(1)) / 2


def agreement_loss(readings: Readings, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return −E log of the probability that an attribute is read alike in two images of one class, attribute by attribute."""
    same, _ = _kinds(labels)
    return -(similarities(readings) * same).sum() / same.sum().clamp_min(1) / len(readings)


def consensus_loss(readings: Readings, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy of each image's reading with its class's most probable value in this batch, mean over attributes."""
    one_class = (labels[:, None] == labels).float()
    losses = []
    for reading in readings:
        mean = one_class.to(reading.dtype) @ reading.detach().exp()
        losses.append(F.nll_loss(reading, mean.argmax(-1)))
    return sum(losses) / len(losses)


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return another view of an image: 80 to 100 % of each side, at its size, and mirrored half of the time."""
    share = rng.uniform(0.8, 1.0, 2)
    corner = rng.uniform(0.0, 1 - share)
    part = image.resize(image.size, Image.Resampling.BICUBIC, (*(corner * image.size), *((corner + share) * image.size)))
    return ImageOps.mirror(part) if rng.uniform() < 0.5 else part


def views_loss(readings: Readings, of_views: Readings) -> Tensor:
    """Return −E log of the probability that an attribute is read alike in an image and in another view of it; uses no labels."""
    alike = [(reading.exp() * other.exp()).sum(1) for reading, other in zip(readings, of_views, strict=True)]
    return -(torch.stack(alike) + FLOOR).log().mean()


READING_LOSSES: dict[str, Callable[[Readings, Tensor, float], Tensor]] = {
    "contrast": contrast_loss, "verdict": verdict_loss, "agreement": agreement_loss, "consensus": consensus_loss,
}  # fmt: skip


def reading_loss(
    config: RunConfig, labels: np.ndarray, rng: np.random.Generator, of_views: Readings | None = None
) -> Callable[[Readings], Tensor]:
    """Return a run's reading loss for a step's images of classes `labels` (N,), which its control may shuffle.

    `of_views` are the readings of another view of each image, which signal "views" compares with.
    """
    if of_views is not None:
        return partial(views_loss, of_views=of_views)
    if config.reading_control == "labels":
        labels = rng.permutation(labels)

    def loss(readings: Readings) -> Tensor:
        on_device = torch.as_tensor(labels, device=readings[0].device)
        return READING_LOSSES[config.reading_signal](readings, on_device, config.reading_temperature)

    return loss


def reading_phase(
    reader: Callable[..., Readings], tokens: VisualTokens, loss: Callable[[Readings], Tensor], weight: float, images_at_a_time: int = 0
) -> Replayed:
    """Return weight·loss's gradient at the boundary of all images (N, Np, D) of the step, and the loss.

    With `images_at_a_time`, readings are computed twice: all of them without a graph, then in parts with one, each with the gradient
    that the loss has for it. The gradient is the same up to rounding. Each rank reads its share.
    """
    boundary, own = tokens.boundary(), ranks.share(len(tokens.merged))
    size = images_at_a_time or len(tokens.merged)
    parts = [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]
    with torch.set_grad_enabled(len(parts) == 1), towers.autocast(boundary.merged.device):  # a single part keeps its graph
        answers = [reader.describe(boundary[part]) if getattr(reader, "own_answer", False) else None for part in parts]
        read = [reader(boundary[part], given) for part, given in zip(parts, answers, strict=True)]
    leaves = [ranks.gathered(torch.cat(columns).detach()).requires_grad_(True) for columns in zip(*read, strict=True)]
    value = loss(leaves)
    (weight * value).backward()
    for part, given, before in zip(parts, answers, read, strict=True):
        with towers.autocast(boundary.merged.device):
            again = before if len(parts) == 1 else reader(boundary[part], given)
        reached = [(reading, leaf.grad[part]) for reading, leaf in zip(again, leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward(*zip(*reached, strict=True))
    gradient, _ = ranks.gathered_gradients(boundary.tensors(), 0.0)
    return Replayed(VisualTokens.of(gradient), float(value.detach()), 0.0, 0.0)


# ------------------------------------------------------------------------------------------------- reading whole splits


@torch.no_grad()
def read_split(reader: Reader, tower: towers.Tower, store: PixelStore, device: torch.device) -> list[np.ndarray]:
    """Return p (N, V) float32 of each attribute for all images of a split; `SagaError` where values are free text: V is all tokens then."""
    if free := [a.name for a in reader.vocabulary.attributes if not a.values]:
        raise SagaError(f"reading a split needs attributes with values; {free[0]!r} of vocabulary {reader.vocabulary.name} has none")
    read = []
    for chunk in store.chunks(64):
        with towers.autocast(device):
            read.append([reading.exp().float().cpu().numpy() for reading in reader(tower(chunk.to(device)))])
    return [np.concatenate(columns) for columns in zip(*read, strict=True)]
