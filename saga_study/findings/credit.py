"""Whom the verdict's reward credits: true descriptions or false ones.

A verdict can be right for a wrong reason. Of two classes, an answer that describes an attribute wrongly may find a difference that is none,
and is rewarded; of one class, an answer that describes one image rightly and the other wrongly is punished for both. Where the true
attributes are known it can be measured: the mean advantage of true descriptions less that of false ones. GRPO moves either by its
advantage, whatever it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from saga_lib.encoder import Encoder
from saga_lib.step import Buffer, RolloutSettings, rollout_phase
from saga_lib.training import Session
from saga_study.findings.token_gradients import FALSE, TRUE, value_marks
from saga_study.findings.words import PAIR_KINDS, Interval, signed

KINDS = (*PAIR_KINDS, "both")
NUM_DRAWS = 2000
COLUMNS = ("moment", "pairs of", "pairs", "values", "true", "advantage of true", "advantage of false", *Interval._fields)


def described_values(session: Session, num_pairs: int, seed: int = 0, encoder: Encoder | None = None) -> pd.DataFrame:
    """Return a row per described value in the rollouts of contributing pairs: pair, same (bool), true (bool), advantage.

    Pairs are drawn as training draws them, in waves from one batch of images, until `num_pairs` contribute or ten times as many were
    asked about. `encoder` takes the place of the session's, such as a trained one. Empty where the true attributes are not known.
    """
    train, rng = session.benchmark.train, np.random.default_rng([seed, 12])
    if train.class_attributes is None:
        return pd.DataFrame(columns=["pair", "same", "true", "advantage"])
    own = session.encoder
    if encoder is not None:
        session.encoder = encoder.to(session.device)
    try:
        settings = RolloutSettings.from_config(session.config, session.draft)
        waves = max(1, 10 * num_pairs // settings.pairs_per_wave)
        settings = replace(settings, contributing_pairs=num_pairs, max_waves=waves, max_micro_batches=waves)
        key = session.vocabulary.verdict_key
        buffer, batches = rollout_phase(session.supervisor, session.prompt_ids, key, session.next_micro_batch, settings, rng)
    finally:
        session.encoder = own
    return _rows(session, buffer, np.concatenate([batch.indices for batch in batches]))


def _rows(session: Session, buffer: Buffer, indices: np.ndarray) -> pd.DataFrame:
    train, keys, rows = session.benchmark.train, session.vocabulary.keys, []
    for k, pair in enumerate(indices[buffer.pairs]):
        truth = [train.attributes(int(image)) for image in pair]
        for g in range(buffer.group_size):
            row = k * buffer.group_size + g
            ids = buffer.rollouts.tokens[row, : buffer.rollouts.lengths[row]].tolist()
            marks = value_marks(session.supervisor, ids, keys, truth)
            advantage = float(buffer.advantages[k, g])
            rows += [(k, bool(buffer.same_class[k]), mark == TRUE, advantage) for mark in marks if mark in (TRUE, FALSE)]
    return pd.DataFrame(rows, columns=["pair", "same", "true", "advantage"])


def credit_table(moments: Sequence[tuple[str, pd.DataFrame]], seed: int = 0) -> pd.DataFrame:
    """Return, per moment (name, rows of `described_values`) and kind of pairs, the mean advantages of true and of false descriptions.

    Columns: `COLUMNS`; `true` is the share of values that are, `difference` the two means' difference with a 95 % interval over pairs.
    """
    rows = []
    for name, values in moments:
        for kind in KINDS:
            own = values if kind == "both" else values[values["same"] == (kind == "one class")]
            if own["true"].nunique() < 2:
                continue
            sums = _sums(own)
            row = {"moment": name, "pairs of": kind, "pairs": len(sums), "values": len(own), "true": float(own["true"].mean())}
            true, false = (float(own.loc[own["true"] == flag, "advantage"].mean()) for flag in (True, False))
            found = _difference(sums, np.random.default_rng(seed))
            rows.append(row | {"advantage of true": true, "advantage of false": false} | found._asdict())
    return pd.DataFrame(rows, columns=COLUMNS)


def _sums(values: pd.DataFrame) -> np.ndarray:
    """Return (pairs, 4): the sum of advantages and the number of true values, then of false ones, pair by pair."""
    columns = []
    for flag in (True, False):
        of_kind = values["advantage"].where(values["true"] == flag)
        columns += [of_kind.groupby(values["pair"]).sum(), of_kind.groupby(values["pair"]).count()]
    return np.stack([column.to_numpy(float) for column in columns], 1)


def _difference(sums: np.ndarray, rng: np.random.Generator) -> Interval:
    drawn = sums[rng.integers(len(sums), size=(NUM_DRAWS, len(sums)))].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        true, _, false, _ = sums.sum(0)
        value = true / sums[:, 1].sum() - false / sums[:, 3].sum()
        draws = drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    ends = np.nanquantile(draws, (0.025, 0.975)) if len(sums) > 4 else (np.nan, np.nan)
    return Interval(float(value), *map(float, ends))


def display_credit(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    rows = [
        {
            "moment": row["moment"], "pairs of": row["pairs of"], "pairs": row["pairs"], "described values": row["values"],
            "true (%)": f"{100 * row['true']:.0f}", "advantage of true ones": signed(row["advantage of true"], "+.3f"),
            "of false ones": signed(row["advantage of false"], "+.3f"), "difference [95 %]": Interval.of(row).text("+.3f"),
        }
        for row in table.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows if rows else [{"moment": "no pair whose true attributes are known contributes"}])


def credit_sentences(table: pd.DataFrame) -> list[str]:
    """Return whom the reward credits, at each moment."""
    said = []
    for row in table.to_dict("records"):
        found = Interval.of(row)
        if row["pairs of"] == "both" or found.side() is None:
            continue
        told = {1: "true descriptions are credited more than false ones", -1: "FALSE descriptions are credited more than true ones",
                0: "true and false descriptions are not told apart"}[found.side()]  # fmt: skip
        said.append(f"{row['moment'].capitalize()}, pairs of {row['pairs of']}: {told}, {found.text('+.3f')} (of {row['pairs']} pairs).")
    return said
