"""A vocabulary that grows: the pairs that a supervisor judges wrongly along a short list say what the list lacks.

A round compares train pairs along the list. About the pairs that it judged wrongly the supervisor is asked again, without a list, and
names what differs. New names are compared on other train pairs beside the list. One is added if its agreement says more about the class
than the listed attributes say already, by more than chance. Rounds go on until nothing is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from saga_lib.common.errors import SagaError, unknown_name
from saga_study.assessment import LabelledPairs, Question, VerdictReport
from saga_study.own_images.discovery import (
    NUM_SHUFFLES,
    REPEATS,
    agreements,
    correlation,
    draft_vocabulary,
    information,
    proposals_in,
)
from saga_study.own_images.readiness import ask, labelled_pairs

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.training import Session
    from saga_lib.vocabulary import Vocabulary

MAX_ROUNDS = 6
RIGHT = 0.5  # a pair is judged wrongly if no larger share of its answers is right
ADDED = "added"
_LIST, _SCORED, _CHANCE = range(20, 23)  # random streams of a round


@dataclass(frozen=True)
class Growth:
    """A vocabulary and how it grew."""

    vocabulary: Vocabulary
    rounds: pd.DataFrame  # a row per round: attributes, verdicts right (%), pairs judged wrongly, new names, added, why it ended
    candidates: pd.DataFrame  # a row per round and new name: round, attribute, times, the two bits, decision


def short_list(base: Vocabulary, names: Sequence[str] = (), size: int = 3) -> Vocabulary:
    """Return `base` with some attributes alone: those named, or its first `size`. Raises `SagaError` for a name that it lacks."""
    for name in names:
        if name not in base.attribute_names:
            raise unknown_name("attribute", name, base.attribute_names)
    kept = tuple(a for place, a in enumerate(base.attributes) if (a.name in names if names else place < size))
    return replace(base, name="short", attributes=kept)


def grow(
    session: Session, start: Vocabulary, base: Vocabulary, prompt: str, num_pairs: int = 96, max_attributes: int = 12, seed: int = 0
) -> Growth:  # fmt: skip
    """Add to `start` what the supervisor misses in it.

    base: lends values to names that it knows. prompt: "generic" or any text that asks for `differences`. `num_pairs` are drawn anew
    for judging and for scoring in every round. Raises `SagaError` for a run without a supervisor.
    """
    import pandas as pd

    if session.supervisor is None:
        raise SagaError(f"method {session.config.method} has no supervisor to ask; take one with GRPO, such as saga_pf")
    current, refused, rounds, tables = start, set(), [], []
    for number in range(1, MAX_ROUNDS + 1):
        report, wrong = _judged(session, current, num_pairs, seed, number)
        row = {
            "round": number, "attributes": len(current.attributes), "verdicts right (%)": round(100 * _right(report), 1),
            "pairs judged wrongly": len(wrong.rows), "new names": 0, "added": "",
        }  # fmt: skip
        names = _new_names(session, base, current, prompt, wrong, refused, seed, number) if len(wrong.rows) else None
        room = max_attributes - len(current.attributes)
        if names is not None and len(names) and room > 0:
            scored = _scored(session, base, current, names, num_pairs, seed, number)
            kept = scored.loc[scored["decision"] == ADDED, "attribute"].tolist()[:room]
            scored.loc[(scored["decision"] == ADDED) & ~scored["attribute"].isin(kept), "decision"] = f"beyond {max_attributes}"
            tables.append(scored)
            refused |= set(scored["attribute"]) - set(kept)
            current = replace(_extended(current, base, kept), differences=start.differences)
            row |= {"new names": len(names), "added": ", ".join(kept)}
        rounds.append(row | {"ends because": _end(row, len(wrong.rows), room, number)})
        if not row["added"]:
            break
    columns = ["round", "attribute", "times", "information given the list (bits)", "by chance (bits)", "decision"]
    candidates = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return Growth(replace(current, name="grown"), pd.DataFrame(rounds), candidates[columns])


def growth_sentences(growth: Growth, start: Vocabulary) -> list[str]:
    """Return in words what a list began with, what was added and why, and why it ended."""
    first, last = (growth.rounds.iloc[place] for place in (0, -1))
    added = [name for name in growth.vocabulary.attribute_names if name not in start.attribute_names]
    rounds = f"{len(growth.rounds)} round{'s' if len(growth.rounds) > 1 else ''}"
    said = [
        f"A list of {len(start.attributes)} grew to {len(growth.vocabulary.attributes)} in {rounds}; "
        f"added: {', '.join(added) or 'none'}. It ended because {last['ends because']}."
    ]
    if len(growth.rounds) > 1:
        right = [row["verdicts right (%)"] for row in (first, last)]
        said.append(f"Of the verdicts {right[0]:.0f} % are right along the short list, {right[1]:.0f} % along the grown one, on others.")
    return said


def _end(row: dict, wrong: int, room: int, number: int) -> str:
    if row["added"]:
        return f"{MAX_ROUNDS} rounds are over" if number == MAX_ROUNDS else ""
    if room <= 0:
        return "the list is full"
    if not wrong:
        return "no pair is judged wrongly"
    return "no new name tells more than the list" if row["new names"] else "no new name is proposed"


def _judged(session: Session, current: Vocabulary, num_pairs: int, seed: int, number: int) -> tuple[VerdictReport, LabelledPairs]:
    """Return the answers along the list, and the pairs that it judges wrongly."""
    pairs, _ = labelled_pairs(session, num_pairs, np.random.default_rng([seed, _LIST, number]))
    report = ask(session, Question(current), pairs, seed)
    wrong = report.mean_reward <= RIGHT
    return report, LabelledPairs(pairs.pixels, pairs.rows[wrong], pairs.same_class[wrong])


def _right(report: VerdictReport) -> float:
    """Return the share of right verdicts, pairs of one class and of two with the same weight."""
    return float(np.mean([report.mean_reward[report.same_class].mean(), report.mean_reward[~report.same_class].mean()]))


def _new_names(
    session: Session, base: Vocabulary, current: Vocabulary, prompt: str, wrong: LabelledPairs, refused: set[str], seed: int, number: int
) -> pd.DataFrame:  # fmt: skip
    """Return the names proposed about pairs judged wrongly that are neither listed nor refused before, in the spelling of `base`."""
    texts = ask(session, Question(base, prompt), wrong, seed + number).texts
    proposals = proposals_in(texts, base.keys)
    listed = set(current.attribute_names)
    # One at a time, as the draft puts names of `base` first: each keeps its own number of times.
    proposals["name"] = [draft_vocabulary(base, [name]).attributes[0].name for name in proposals["name"]]
    return proposals[~proposals["name"].isin(listed | refused)].drop_duplicates("name").head(12).reset_index(drop=True)


def _extended(current: Vocabulary, base: Vocabulary, names: Sequence[str]) -> Vocabulary:
    """Return the list with these names, those that `base` knows in its order and with its values: an order that a supervisor may know."""
    return draft_vocabulary(base, [*current.attribute_names, *names]) if names else current


def _scored(
    session: Session, base: Vocabulary, current: Vocabulary, names: pd.DataFrame, num_pairs: int, seed: int, number: int
) -> pd.DataFrame:  # fmt: skip
    """Return a row per new name, the most informative first: what its agreement says of the class beyond the list, and the decision."""
    import pandas as pd

    draft = _extended(current, base, names["name"].tolist())
    pairs, _ = labelled_pairs(session, num_pairs, np.random.default_rng([seed, _SCORED, number]))
    report = ask(session, Question(draft), pairs, seed + MAX_ROUNDS + number)
    agree, stated = agreements(draft, report)
    share = agree / np.maximum(stated, 1)
    is_listed = np.isin(draft.attribute_names, current.attribute_names)
    strata = np.rint(share[is_listed].sum(0)).astype(int)  # how many listed attributes agree
    rng, rows = np.random.default_rng([seed, _CHANCE, number]), []
    for place in np.flatnonzero(~is_listed):
        told = information_beyond(agree[place], stated[place], pairs.same_class, strata, rng)
        chance = float(np.quantile(told[1:], 0.95))
        within, across = (agree[place, part].sum() / max(1, stated[place, part].sum()) for part in (pairs.same_class, ~pairs.same_class))
        rows.append({
            "round": number, "attribute": draft.attribute_names[place],
            "information given the list (bits)": round(float(told[0]), 4), "by chance (bits)": round(chance, 4),
            "decision": ADDED if told[0] > chance and within > across else "no more than the list", "place": place,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["information given the list (bits)"])
    for position, row in enumerate(rows):
        for better in rows[:position]:
            if row["decision"] == better["decision"] == ADDED and correlation(share[row["place"]], share[better["place"]]) > REPEATS:
                row["decision"] = f"repeats {better['attribute']}"
    times = names.rename(columns={"name": "attribute"})[["attribute", "times"]]
    return pd.DataFrame(rows).drop(columns="place").merge(times, how="left", on="attribute")


def information_beyond(
    agree: np.ndarray, stated: np.ndarray, same: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """Return (1 + NUM_SHUFFLES,) bits that agreement in an attribute tells about the class of a pair whose stratum is known.

    agree, stated: (B,) numbers of answers to a pair that see agreement, and that say anything. same: (B,) bool. strata: (B,) int, what
    is known. The first entry is of the truth; the others, which show what chance gives, deal `same` out anew within each stratum.
    """
    total = np.zeros(1 + NUM_SHUFFLES)
    for stratum in np.unique(strata):
        own = strata == stratum
        labels = np.stack([same[own], *(rng.permutation(same[own]) for _ in range(NUM_SHUFFLES))])
        total += stated[own].sum() * information(agree[own], stated[own], labels)
    return total / max(1.0, stated.sum())
