"""Whether GRPO can learn from a supervisor on your images, and what to change if not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from saga_lib.answers import parse_answer
from saga_lib.common.errors import SagaError
from saga_lib.pairs import balanced_batches
from saga_lib.supervisor.rollouts import Sampling
from saga_study.assessment import LabelledPairs, Question, VerdictReport, assess_verdicts
from saga_study.design.expectations import FEW_WRONG, READING_LEAD, START_SAME_CLASS
from saga_study.own_images.outlook import Retrieval, expectation, measure_retrieval

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.config import RunConfig
    from saga_lib.training import Session
    from saga_lib.vocabulary import AnswerKeys

GO, FIX, SWAP = "go", "fix the prompt", "pick another supervisor"
PAIR_KINDS = ("same class", "different, far apart", "different, in between", "different, alike")  # by embedding similarity
MIN_READABLE = 0.9  # of the answers must hold a verdict
MIN_FOLLOWING = 0.2  # of the answers must be JSON, or begin like it, else no prompt will help
NEARLY_ALWAYS = 0.9  # right: then there is little left to learn


@dataclass(frozen=True)
class Readiness:
    """Whether GRPO can learn from a supervisor on these images, with its reasons and what it was judged by."""

    verdict: str  # go | fix the prompt | pick another supervisor
    reasons: list[str]
    pairs: pd.DataFrame  # a row per kind of pair
    measures: pd.DataFrame  # measure, value, unit, wanted
    report: VerdictReport
    expectation: list[str]  # what GRPO can be expected to gain here

    def value(self, measure: str) -> float:
        """Return one of the measures."""
        return float(self.measures.set_index("measure").loc[measure, "value"])


def check_readiness(session: Session, num_pairs: int = 48, seed: int = 0) -> Readiness:
    """Let the supervisor of a run compare `num_pairs` train pairs and time two steps; judge whether training can start.

    Half the pairs are of one class; those of two classes come in equal parts from the terciles of similarity under the untrained
    tower. The timed steps change the session's weights: use it for nothing else. Raises `SagaError` for a method without GRPO.
    """
    import pandas as pd

    c = session.config
    if session.supervisor is None or c.language_signal != "grpo":
        raise SagaError(f"method {c.method} asks its supervisor nothing; check one with GRPO, such as saga_pf")
    question = Question(session.vocabulary, c.prompt)
    report, kinds = ask_by_hardness(session, question, num_pairs, np.random.default_rng([seed, 14]), seed)
    rows = []
    for number, name in enumerate(PAIR_KINDS):
        accuracy, mixed = report.mean_reward[kinds == number], report.mixed[kinds == number]
        rows.append({
            "pairs": name, "number of pairs": len(mixed), "verdicts right (%)": round(100 * accuracy.mean(), 1),
            "± (points)": round(margin(accuracy), 1), "mixed rewards (%)": round(100 * mixed.mean(), 1),
        })  # fmt: skip
    answers = _Answers.of(report, kinds == 0, c)
    retrieval = measure_retrieval(session, seed)
    expected = expectation(answers.right_same, margin(report.mean_reward[kinds == 0]), answers.right_different, retrieval)
    step, problem = _seconds_without_rollouts(session)
    measures = _measures(session, report, answers, retrieval, step + answers.drawn * c.group_size * report.seconds)
    findings = list(_findings(c, report, answers, session.vocabulary.keys))
    if problem:
        findings.append((FIX, f"a training step failed: {problem}"))
    verdict = max((kind for kind, _ in findings), key=(GO, FIX, SWAP).index, default=GO)
    reasons = [reason for _, reason in findings] or [
        f"{100 * answers.readable:.0f} % of the answers hold a verdict, {100 * answers.right:.0f} ± {answers.error:.0f} % of the verdicts "
        f"are right, and a step can expect {answers.contributing:.1f} of K = {c.contributing_pairs} pairs whose answers disagree"
    ]
    return Readiness(verdict, reasons, pd.DataFrame(rows), measures, report, expected)


@dataclass(frozen=True)
class _Answers:
    """What a supervisor's answers say of training with them. Pairs of one class and of two weigh the same."""

    readable: float  # fraction of answers with a verdict
    right_same: float  # fraction of verdicts on pairs of one class
    right_different: float
    error: float  # points, half a 95 % interval of `right`
    mixed: float  # fraction of groups whose rewards differ
    contributing: float  # mixed groups that a step can expect: it draws waves until K of them are found
    drawn: float  # pairs that a step is expected to draw for them

    @property
    def right(self) -> float:
        return float(np.mean([self.right_same, self.right_different]))

    @classmethod
    def of(cls, report: VerdictReport, same: np.ndarray, config: RunConfig) -> _Answers:
        from scipy.stats import binom

        right = [report.mean_reward[same], report.mean_reward[~same]]
        mixed = float(np.mean([report.mixed[same].mean(), report.mixed[~same].mean()]))
        per_wave, wanted = config.pairs_per_wave, config.contributing_pairs
        counts = np.arange(config.max_waves * per_wave + 1)
        return cls(
            readable=report.readable, right_same=float(right[0].mean()), right_different=float(right[1].mean()),
            error=float(np.hypot(*map(margin, right))) / 2, mixed=mixed,
            contributing=float((np.minimum(counts, wanted) * binom.pmf(counts, counts[-1], mixed)).sum()),
            drawn=per_wave * sum(binom.cdf(wanted - 1, wave * per_wave, mixed) for wave in range(config.max_waves)),
        )  # fmt: skip


def _measures(session: Session, report: VerdictReport, answers: _Answers, retrieval: Retrieval, step: float) -> pd.DataFrame:
    """Return measure, value, unit and what is wanted; `step` is the expected time of one training step, seconds.

    What could not be measured (NaN) has no row.
    """
    import pandas as pd

    c = session.config
    return pd.DataFrame(
        [
            ("valid JSON", 100 * report.valid_json, "% of answers", ""),
            ("readable verdicts", 100 * answers.readable, "% of answers", f"at least {100 * MIN_READABLE:.0f}"),
            ("cut short", 100 * report.truncated, "% of answers", f"0, at max_new_tokens = {c.max_new_tokens}"),
            ("verdicts right", 100 * answers.right, f"% ± {answers.error:.1f} (95 %)", "above 50, which is guessing"),
            ("verdicts right, one class", 100 * answers.right_same, "% of verdicts", f"at least {100 * START_SAME_CLASS:.0f}"),
            ("verdicts right, two classes", 100 * answers.right_different, "% of verdicts", f"below {100 * FEW_WRONG:.0f}"),
            ("R@1 of the embedding", retrieval.by_embedding, f"% of {retrieval.images} train images", ""),
            ("R@1 by reading", retrieval.by_reading, f"% of {retrieval.images} train images",
             f"at most {-READING_LEAD:.0f} points below the embedding's"),
            ("mixed groups", 100 * answers.mixed, f"% of pairs, G = {c.group_size}", "neither 0 nor much of it"),
            ("contributing pairs", answers.contributing, f"expected per step, K = {c.contributing_pairs}",
             f"at least {c.contributing_pairs / 2:g}"),
            ("pairs drawn", answers.drawn, f"expected per step, at most {c.max_waves * c.pairs_per_wave}", ""),
            ("tokens per answer", report.tokens, "tokens", ""),
            ("seconds per answer", report.seconds, f"s, in waves of {c.pairs_per_wave} × {c.group_size}", ""),
            ("seconds per step", step, "s expected", ""),
            ("hours per run", step * session.total_steps / 3600, f"h for {session.total_steps} steps", "what you can spend"),
        ],
        columns=["measure", "value", "unit", "wanted"],
    ).dropna(subset="value", ignore_index=True)  # fmt: skip


def _findings(config: RunConfig, report: VerdictReport, answers: _Answers, keys: AnswerKeys) -> Iterator[tuple[str, str]]:
    """Yield (verdict, reason) for the first obstacle to training, if there is one; unreadable answers are not judged any further."""
    unread = f"{100 * (1 - answers.readable):.0f} % of the answers hold no readable verdict"
    opening = f'"{"differences" if config.prompt == "generic" else keys.items[0]}"'
    following = float(np.mean([opening in text or parse_answer(text, keys.verdict) is not None for text in report.texts]))
    if following < MIN_FOLLOWING:
        begun = f"only {100 * following:.0f} % of the answers even begin like the JSON asked for"
        yield SWAP, f"{begun}: the supervisor does not follow the prompt"
    elif answers.readable < MIN_READABLE and report.truncated > (1 - answers.readable) / 2:
        yield FIX, (
            f"{unread}, and {100 * report.truncated:.0f} % are cut at max_new_tokens = {config.max_new_tokens}: raise it, or ask about "
            "fewer attributes"
        )
    elif answers.readable < MIN_READABLE:
        yield FIX, f"{unread}: read some of the answers, then mend the vocabulary's texts"
    elif 100 * answers.right - answers.error <= 50:
        same, different = 100 * answers.right_same, 100 * answers.right_different
        always = f": it says '{'same' if same > different else 'different'}' whatever it sees" if abs(same - different) > 60 else ""
        yield SWAP, (
            f"{100 * answers.right:.0f} ± {answers.error:.0f} % of the verdicts are right, which may be guessing (50 %){always}; before "
            f"giving it up, try more pairs than {len(report.mean_reward)}"
        )
    elif answers.contributing < config.contributing_pairs / 2:
        short = f"a step can expect {answers.contributing:.1f} of K = {config.contributing_pairs} pairs whose answers disagree"
        if answers.right >= NEARLY_ALWAYS:
            yield FIX, f"{short}, as the verdicts are nearly always right: set hard_pairs, raise temperature, or use closer classes"
        else:
            yield FIX, f"{short}, as the answers of most groups agree: raise temperature, max_waves or G, or reword the vocabulary"


def margin(values: np.ndarray) -> float:
    """Return half a 95 % interval of a mean over pairs, in points; one right and one wrong pair are added, so that it is never 0."""
    padded = np.append(values, [0.0, 1.0])
    return 196 * float(padded.std(ddof=1)) / len(padded) ** 0.5


def ask_by_hardness(
    session: Session, question: Question, num_pairs: int, rng: np.random.Generator, seed: int
) -> tuple[VerdictReport, np.ndarray]:  # fmt: skip
    """Sample answers as training would, about pairs drawn by `pairs_by_hardness`; return the report and the kind (B,) of each pair."""
    pairs, kinds = labelled_pairs(session, num_pairs, rng)
    return ask(session, question, pairs, seed), kinds


def labelled_pairs(session: Session, num_pairs: int, rng: np.random.Generator) -> tuple[LabelledPairs, np.ndarray]:
    """Return pairs of the train split drawn by `pairs_by_hardness`, and the kind (B,) of each."""
    images, rows, kinds = pairs_by_hardness(session, num_pairs, rng)
    return LabelledPairs(session.train_pixels[images], rows, kinds == 0), kinds


def ask(session: Session, question: Question, pairs: LabelledPairs, seed: int) -> VerdictReport:
    """Sample the supervisor's answers to a question about each pair, G to each, as training would."""
    c = session.config
    sampling = Sampling(c.group_size, c.max_new_tokens, c.temperature, c.top_p)
    return assess_verdicts(session.encoder.tower, session.supervisor, question, pairs, sampling, seed, c.pairs_per_wave)


def pairs_by_hardness(session: Session, num_pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images (N,) of the train split, pairs (B, 2) of positions among them, and the kind (B,) of each.

    Kinds are numbers into `PAIR_KINDS`; half the pairs are of kind 0, one class. The similarity is the tower's, mean-pooled.
    """
    from saga_lib.towers import autocast

    if num_pairs < 2 * len(PAIR_KINDS):
        raise SagaError(f"{num_pairs} pairs are too few to judge by; take at least {2 * len(PAIR_KINDS)}, better some dozens")
    c, labels = session.config, session.benchmark.train.labels
    stream = balanced_batches(labels, c.batch_size, c.batch_images_per_class, c.seed)
    images = np.unique(np.concatenate([next(stream) for _ in range(4)]))
    parts = []
    with torch.no_grad(), autocast(session.device):
        for start in range(0, len(images), 64):
            tokens = session.encoder.tower(session.train_pixels[images[start : start + 64]].to(session.device))
            parts.append(nn.functional.normalize(tokens.merged.float().mean(1), dim=-1).cpu().numpy())
    embeddings = np.concatenate(parts)
    first, second = np.triu_indices(len(images), 1)
    flip = rng.uniform(size=len(first)) < 0.5  # which image comes first is random, too
    first, second = np.where(flip, second, first), np.where(flip, first, second)
    is_same = labels[images[first]] == labels[images[second]]
    similarity = np.einsum("pd,pd->p", embeddings[first], embeddings[second])
    different = np.flatnonzero(~is_same)
    pools = [np.flatnonzero(is_same), *np.array_split(different[np.argsort(similarity[different], kind="stable")], 3)]
    sizes = [num_pairs - 3 * (num_pairs // 6), *[num_pairs // 6] * 3]
    chosen = [rng.choice(pool, min(size, len(pool)), replace=False) for pool, size in zip(pools, sizes, strict=True)]
    kinds = np.concatenate([np.full(len(places), kind) for kind, places in enumerate(chosen)])
    rows, order = np.concatenate(chosen), rng.permutation(len(kinds))
    return images, np.stack([first[rows], second[rows]], 1)[order], kinds[order]


def _seconds_without_rollouts(session: Session) -> tuple[float, str]:
    """Return the seconds of phases A and C in the second of two steps, and the error that stopped the steps, if any."""
    try:
        metrics = [session.run_step() for _ in range(2)][-1]
    except SagaError as error:
        return 0.0, str(error)
    return metrics["seconds_a"] + metrics["seconds_c"], ""
