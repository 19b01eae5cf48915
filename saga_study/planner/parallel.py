"""A run on several GPUs of a node (`saga_lib.ranks`): what of a step is shared out, and what the GPUs tell each other."""

from __future__ import annotations

import math
from dataclasses import replace

from saga_lib.config import RunConfig
from saga_study.planner.cards import ASSUMED, Assumptions
from saga_study.planner.costs import seconds_per_step
from saga_study.planner.estimates import estimate

NOT_SHARED = ("reading images", "C optimizer")  # one CPU reads for all; every GPU updates all weights


def shared_seconds(config: RunConfig, ranks: int, assume: Assumptions = ASSUMED) -> dict[str, float]:
    """Return the seconds of one step on so many GPUs, by phase; `exchange` are those in which they wait for each other's numbers.

    A share of the pairs decodes hardly faster than all of them, as every GPU reads all weights for each token: what is won by sharing
    a run is replay and tower first, and of decoding what its rows cost.
    """
    one = estimate(config, assume)
    if ranks == 1:
        return dict(one.seconds)
    work, shapes = one.work, one.shapes
    own = replace(
        work, batch=math.ceil(work.batch / ranks), pairs_drawn=math.ceil(work.pairs_drawn / ranks),
        pairs_replayed=math.ceil(work.pairs_replayed / ranks),
    )  # fmt: skip
    seconds = seconds_per_step(replace(config, pairs_per_wave=math.ceil(config.pairs_per_wave / ranks)), shapes, own, assume)
    seconds |= {name: one.seconds[name] for name in NOT_SHARED}
    tokens = 4 * work.images * shapes.tokens(config.image_size) * shapes.hidden * (1 + shapes.deepstack)
    sent = 2 * tokens * bool(work.waves or work.reading) + tokens + 8 * sum(one.trained.values())  # an all-reduce sends all twice
    drawn = work.waves * work.longest * assume.exchange_us / 1e6
    return seconds | {"exchange": drawn + sent * (ranks - 1) / ranks / (assume.link_gb * 1e9)}


def shared_hours(config: RunConfig, ranks: int, assume: Assumptions = ASSUMED) -> float:
    """Return the hours of a run on so many GPUs; what comes before and after its steps one of them does."""
    one = estimate(config, assume)
    return one.hours - one.work.steps * (one.seconds_per_step - sum(shared_seconds(config, ranks, assume).values())) / 3600
