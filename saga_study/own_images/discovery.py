"""A vocabulary from images: the supervisor proposes attributes, pairs of known class say which ones to keep.

Nobody names attributes beforehand. First the supervisor compares pairs and names what differs; names are merged and the most
frequent ones become a draft. Then it compares pairs along the draft; an attribute is kept if it agrees more often within
a class than across classes, by more than chance, and if it does not only repeat a better one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from saga_lib.answers import parse_answer
from saga_lib.common.errors import SagaError
from saga_lib.common.texts import alike, composed
from saga_lib.config import RunConfig
from saga_lib.vocabulary import PLAIN_KEYS, AnswerKeys, Attribute, Vocabulary, proposed_key
from saga_study.assessment import Question, VerdictReport
from saga_study.methods import make_config
from saga_study.own_images.readiness import ask_by_hardness, margin

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from saga_lib.records import Run
    from saga_lib.training import Session
    from saga_study.own_images.folder import OwnImages

NUM_SHUFFLES = 200  # of the pairs' classes, for what chance would give
REPEATS = 0.9  # correlation over pairs above which an attribute repeats another
MAX_WORDS = 4  # of a name; longer ones are sentences
_EMPTY = {"", "none", "nothing", "no differences", "no difference", "same", "identical", "n/a", "unknown", "the key differences"}
_SMALL = {"a", "an", "the", "of", "in", "its", "their", "s", "and"}
_SPELLING = {"colour": "color", "colours": "color", "colors": "color", "coloration": "color", "grey": "gray", "colouration": "color"}


def blank_vocabulary(item: str, kind: str) -> Vocabulary:
    """Return the texts of a vocabulary about `item` (bird) and the `kind` of its classes (species); no attribute is meant."""
    key = proposed_key(f"same {kind}", PLAIN_KEYS, "same_class")
    return Vocabulary(
        name=f"{item}s", expert=f"on {item}s", identify=item if kind == item else f"{item}'s {kind}", target_plural=f"{item}s",
        item=item, item_plural=f"{item}s", example="long, curved, dark", verdict_question=f"same {kind}", verdict_key=key,
        differences="every", attributes=(Attribute("overall look"),),
    )  # fmt: skip


def naming_prompt(vocabulary: Vocabulary) -> str:
    """Return a prompt that asks for the names of attributes in which two images differ (ours; real models need it)."""
    v = vocabulary
    return "\n".join(
        [
            f"Compare the {v.item} in the two images. Which of its visible attributes differ? Name attributes (like \"leg color\"), "
            "not their values; none that depend on pose, light or background.",
            "Answer with one JSON object and nothing else, its keys in this order:",
            f'"differences": a list of one to five names, "reasoning": one sentence, "{v.verdict_key}": "yes" or "no" to: '
            f"do both show the {v.verdict_question}?",
        ]
    )


def proposed_names(text: str, keys: AnswerKeys = PLAIN_KEYS) -> list[str]:
    """Return the attribute names in the `differences` of an answer: a list, an object, or a text with commas.

    Names that no vocabulary can have are left out: those of the answer's own keys.

    >>> proposed_names('{"differences": "Colour of the bill, leg color", "same_species": "no"}')
    ['bill colour', 'leg color']
    """
    differences = (parse_answer(text, keys.verdict) or {}).get("differences")
    if isinstance(differences, dict):
        differences = [key for key, value in differences.items() if str(value).lower() not in ("same", "false", "no")]
    if isinstance(differences, str):
        differences = re.split(r"[,;\n]|\band\b", differences)
    if not isinstance(differences, list):
        return []
    names = []
    for entry in differences:
        entry = next((entry[key] for key in ("name", "attribute") if key in entry), "") if isinstance(entry, dict) else entry
        name = re.sub(r"\(.*?\)|:.*|^\W*\d+\W+", " ", composed(str(entry)).lower())
        if name.strip(" .") in _EMPTY:
            continue
        name = re.sub(r"^\s*([\w-]+) of (?:the |its )?(.+)", r"\2 \1", name)  # colour of the bill
        words = [word for word in re.findall(r"[^\W_]+(?:-[^\W_]+)*", name) if word not in _SMALL]
        name = " ".join(words)
        if 0 < len(words) <= MAX_WORDS and alike(name) and not keys.are_like(name):
            names.append(name)
    return list(dict.fromkeys(names))


def _key(name: str) -> tuple[str, ...]:
    """Return a key that is the same for all spellings of an attribute: its words in American spelling, singular, sorted."""
    words = [_SPELLING.get(word, word) for word in alike(name).split()]
    return tuple(sorted(word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words))


@dataclass(frozen=True)
class Discovery:
    """The proposed attributes, their scores, and the vocabulary of those that were kept."""

    vocabulary: Vocabulary
    proposals: pd.DataFrame  # name, times, % of answers, other spellings
    scores: pd.DataFrame  # a row per candidate
    report: VerdictReport  # of the answers to the draft


def discover(
    session: Session, base: Vocabulary, prompt: str, num_pairs: int = 96, max_candidates: int = 16, max_attributes: int = 12, seed: int = 0
) -> Discovery:  # fmt: skip
    """Propose attributes from train pairs, score them on other train pairs, and return the vocabulary of the best.

    base: gives the texts around the attributes, and values for names that it knows. prompt: "generic" or any text that asks for
    `differences`, such as `naming_prompt`. Raises `SagaError` if nothing is proposed or kept.
    """
    proposals = proposals_in(_ask(session, base, prompt, num_pairs, [seed, 13, 0])[0].texts, base.keys)
    if proposals.empty:
        raise SagaError("the supervisor proposed no attribute: look at its answers in notebook 14, or pick another supervisor")
    draft = draft_vocabulary(base, proposals["name"].head(max_candidates).tolist())
    report, same = _ask(session, draft, "structured", num_pairs, [seed, 13, 1])
    scores = _scores(draft, report, same, np.random.default_rng([seed, 13, 2]))
    scores = scores.merge(proposals[["name", "times"]], how="left", left_on="attribute", right_on="name").drop(columns="name")
    kept = scores[scores["decision"] == "kept"]["attribute"].tolist()[:max_attributes]
    scores.loc[(scores["decision"] == "kept") & ~scores["attribute"].isin(kept), "decision"] = f"beyond the best {max_attributes}"
    if not kept:
        raise SagaError(
            f"none of {len(scores)} proposed attributes tells classes apart better than chance on {num_pairs} pairs: "
            "take more pairs, or pick another supervisor"
        )
    attributes = tuple(attribute for attribute in draft.attributes if attribute.name in kept)
    return Discovery(replace(draft, name="discovered", attributes=attributes), proposals, scores, report)


def _ask(session: Session, vocabulary: Vocabulary, prompt: str, num_pairs: int, seed: list[int]) -> tuple[VerdictReport, np.ndarray]:
    """Return the answers to pairs of the train split, G to each, and (B,) bool: whether a pair is of one class."""
    c = session.config
    if session.supervisor is None:
        raise SagaError(f"method {c.method} has no supervisor to ask; take one with GRPO, such as saga_pf")
    report, kinds = ask_by_hardness(session, Question(vocabulary, prompt), num_pairs, np.random.default_rng(seed), seed[0])
    return report, kinds == 0


def proposals_in(texts: Sequence[str], keys: AnswerKeys = PLAIN_KEYS) -> pd.DataFrame:
    """Return the names that answers propose, spellings merged, the most frequent first: name, times, % of answers, other spellings."""
    import pandas as pd

    spellings: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for text in texts:
        for name in {_key(name): name for name in proposed_names(text, keys)}.values():
            spellings[_key(name)][name] += 1
    rows = []
    for counts in spellings.values():
        name, *others = [spelling for spelling, _ in counts.most_common()]
        times = sum(counts.values())
        rows.append((name, times, round(100 * times / len(texts), 1), ", ".join(others)))
    columns = ["name", "times", "% of answers", "other spellings"]
    return pd.DataFrame(rows, columns=columns).sort_values(["times", "name"], ascending=[False, True]).reset_index(drop=True)


def draft_vocabulary(base: Vocabulary, names: Sequence[str]) -> Vocabulary:
    """Return `base` with these attributes in place of its own. Those it knows come first, in its order, spelling and with its values."""
    wanted = {_key(name): name for name in names}
    known = {_key(attribute.name): attribute for attribute in base.attributes}
    attributes = [attribute for key, attribute in known.items() if key in wanted]
    attributes += [Attribute(name) for key, name in wanted.items() if key not in known]
    return replace(base, attributes=tuple(attributes), differences="every")


def _scores(draft: Vocabulary, report: VerdictReport, same: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Return a row per attribute of the draft, the most informative first, with the decision on it."""
    import pandas as pd

    agree, stated = agreements(draft, report)
    shuffles = np.stack([same, *(rng.permutation(same) for _ in range(NUM_SHUFFLES))])
    rows = []
    for place, attribute in enumerate(draft.attributes):
        told = information(agree[place], stated[place], shuffles)
        chance = float(np.quantile(told[1:], 0.95))
        within, across = (agree[place, part].sum() / max(1, stated[place, part].sum()) for part in (same, ~same))
        rows.append({
            "attribute": attribute.name, "information (bits)": round(float(told[0]), 4), "by chance (bits)": round(chance, 4),
            "agrees within a class (%)": round(100 * within, 1), "agrees across classes (%)": round(100 * across, 1),
            "told (%)": round(100 * stated[place].sum() / len(report.texts), 1),
            "decision": "kept" if told[0] > chance and within > across else "no better than chance", "place": place,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["information (bits)"])
    share = agree / np.maximum(stated, 1)
    for number, row in enumerate(rows):
        for better in rows[:number]:
            if row["decision"] == better["decision"] == "kept" and correlation(share[row["place"]], share[better["place"]]) > REPEATS:
                row["decision"] = f"repeats {better['attribute']}"
    return pd.DataFrame(rows).drop(columns="place")


def agreements(vocabulary: Vocabulary, report: VerdictReport) -> tuple[np.ndarray, np.ndarray]:
    """Return (A, B) numbers of answers to a pair that see agreement in an attribute, and that say anything about it."""
    pairs = len(report.same_class)
    group = len(report.texts) // pairs
    agree, stated = (np.zeros((len(vocabulary.attributes), pairs)) for _ in range(2))
    for number, text in enumerate(report.texts):
        answer = parse_answer(text, vocabulary.verdict_key) or {}
        for place, attribute in enumerate(vocabulary.attributes):
            agrees = agrees_in(answer, attribute, vocabulary.keys.items)
            if agrees is not None:
                stated[place, number // group] += 1
                agree[place, number // group] += agrees
    return agree, stated


def agrees_in(answer: dict, attribute: Attribute, items: Sequence[str] = PLAIN_KEYS.items) -> bool | None:
    """Return whether two images agree in an attribute by an answer: by the described values, or, where values are free text, by its
    "same" or "different"; None if it says neither."""
    first, second = (answer.get(section) for section in items)
    described = [item.get(attribute.name) for item in (first, second) if isinstance(item, dict)]
    stated = answer.get("differences")
    word = str(stated.get(attribute.name, "")).strip().lower() if isinstance(stated, dict) else ""
    if not attribute.values and word in ("same", "different"):
        return word == "same"
    if len(described) == 2 and all(isinstance(text, str) for text in described):
        return described[0].strip().lower() == described[1].strip().lower()
    return None


def information(agree: np.ndarray, stated: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return the mutual information (S,) in bits between an answer's agreement and whether a pair is of one class, for S labellings.

    agree, stated: (B,) numbers of answers to a pair that see agreement, and that say anything about it. same: (S, B) bool.
    """
    counts = np.stack([[same @ agree, same @ (stated - agree)], [~same @ agree, ~same @ (stated - agree)]])  # (class, agreement, S)
    joint = counts / max(1.0, stated.sum())
    product = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log2(joint / product), 0.0)
    return terms.sum((0, 1))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation, 0 where one side is constant."""
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def compare_vocabularies(
    session: Session, variants: Mapping[str, tuple[Vocabulary, str]], num_pairs: int = 48, seed: int = 0
) -> pd.DataFrame:
    """Return a row per vocabulary: how well the supervisor answers along it before any training, on the same train pairs for all.

    `variants` maps a name to (vocabulary, "structured" or "generic"). Errors are 95 % intervals over pairs.
    """
    import pandas as pd

    rows = []
    for name, (vocabulary, prompt) in variants.items():
        report, same = _ask(session, vocabulary, prompt, num_pairs, [seed, 13, 3])
        right = (report.mean_reward[same].mean() + report.mean_reward[~same].mean()) / 2
        error = np.hypot(margin(report.mean_reward[same]), margin(report.mean_reward[~same])) / 2
        rows.append({
            "vocabulary": name, "attributes": 0 if prompt == "generic" else len(vocabulary.attributes),
            "readable verdicts (%)": round(100 * report.readable, 1), "verdicts right (%)": f"{100 * right:.1f} ± {error:.1f}",
            "mixed rewards (%)": round(100 * float(report.mixed.mean()), 1), "tokens per answer": round(report.tokens, 1),
        })  # fmt: skip
    return pd.DataFrame(rows)


def shuffled_vocabulary(vocabulary: Vocabulary, seed: int = 0) -> Vocabulary:
    """Return a meaningless vocabulary of the same length, as a control: each attribute has another's values, or another's last word."""
    from saga_lib.controls import derangement

    attributes, rng = list(vocabulary.attributes), np.random.default_rng(seed)
    if len(attributes) < 2:
        raise SagaError(f"vocabulary {vocabulary.name} has one attribute: there is nothing to shuffle it with")
    order = derangement(len(attributes), rng)
    if all(attribute.values for attribute in attributes):
        attributes = [replace(a, values=attributes[other].values) for a, other in zip(attributes, order, strict=True)]
    else:  # the last word of each name moves: "bill color", "wing shape" become "bill shape", "wing color"
        last = [attribute.name.split()[-1] for attribute in attributes]
        names = [" ".join([*a.name.split()[:-1], last[other]]) for a, other in zip(attributes, order, strict=True)]
        names = [name if names.count(name) == 1 else f"{name} {n}" for n, name in enumerate(names, 1)]
        attributes = [Attribute(name) for name in names]
    return replace(vocabulary, name=f"{vocabulary.name}_shuffled", attributes=tuple(attributes))


def training_configs(
    own: OwnImages, files: Mapping[str, Path], seeds: Sequence[int], steps: int = 0, supervisor: str = ""
) -> dict[str, list[RunConfig]]:
    """Return the runs that compare vocabularies after training, by variant: PF + GRPO with the vocabulary of each file, for each seed.

    They have no L_KL, because a prompt without attributes cannot have it. They are on your images. The unchanged example in profile
    miniature has too few images to show a difference: its runs are on the birds' benchmark, where two variants are rows of Table 2.
    """
    from saga_study.own_images.folder import EXAMPLE_SUPERVISOR

    is_usual = own.supervisor.endswith(EXAMPLE_SUPERVISOR) and own.vocabulary == "miniature_birds"
    if own.is_example and is_usual and own.profile.name == "miniature" and not steps:
        shared = {"hand-written": "pf_grpo_taught", "generic": "pf_grpo_generic"}
        return {
            name: [
                make_config(own.profile, "miniature_birds", shared.get(name, "pf_grpo_taught"), seed,
                            **({} if name in shared else {"vocabulary": str(file)}))
                for seed in seeds
            ]
            for name, file in files.items()
        }  # fmt: skip
    return {
        name: [
            own.config("pf_grpo", seed, steps, supervisor=supervisor, vocabulary=str(file),
                       prompt="generic" if name == "generic" else "structured")
            for seed in seeds
        ]
        for name, file in files.items()
    }  # fmt: skip


def train_variants(configs: Mapping[str, Sequence[RunConfig]], study: str) -> dict[str, list[Run]]:
    """Return the runs of `training_configs`; missing ones are trained, in profile miniature several at a time, else one by one."""
    from saga_study.runs.queue import run_queue
    from saga_study.runs.store import train_or_load

    queue = [config for group in configs.values() for config in group if config.profile == "miniature"]
    if queue:
        run_queue(queue, study)
    return {name: [train_or_load(config, study) for config in group] for name, group in configs.items()}
