"""How long a queue still takes: by the plan at first, then by the pace of the runs that this machine has finished."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from saga_study.runs.jobs import Job
from saga_study.runs.progress import show_duration

EARLY = (0.8, 1.4)  # times the plan, of which a pace is taken to be before any is known; and around the few paces that are known first
ENOUGH = 5  # paces of which the median is told without a range


@dataclass(frozen=True)
class Remaining:
    """Seconds until a queue is empty: at the least and at the most, equal once enough runs are finished."""

    least: float
    most: float

    def text(self) -> str:
        """Return such as "12 to 20 min left" or "about 14 min left"."""
        least, most = show_duration(self.least), show_duration(self.most)
        if least == most:
            return f"about {most} left"
        same_unit = least.split()[-1] == most.split()[-1]
        return f"{least.split()[0] if same_unit else least} to {most} left"


def remaining(waiting: Sequence[Job], active: Sequence[Job], done: Sequence[Job], num_slots: int, now: float) -> Remaining:
    """Return how long a queue still takes.

    A pace is the time that a run took, over what the plan says. The median counts, so that one slow run does not decide. Of runs at work
    only those count that are a tenth done, and their start-up does not. `now` is of time.monotonic.
    """
    paces = [job.spent / job.expected_seconds for job in done if job.expected_seconds and job.spent]
    if not paces:
        paces = [pace for job in active if (pace := job.pace(now)) is not None]
    low, high = (min(paces, default=1.0) * EARLY[0], max(paces, default=1.0) * EARLY[1])
    if len(paces) >= ENOUGH:
        low = high = statistics.median(paces)
    return Remaining(*(_by_pace(waiting, active, pace, num_slots, now) for pace in (low, high)))


def _by_pace(waiting: Sequence[Job], active: Sequence[Job], pace: float, num_slots: int, now: float) -> float:
    busy = []
    for job in active:
        own = job.seconds_left(now)
        busy.append(own if own is not None else max(0.0, job.expected_seconds * pace - (now - job.started)))
    return queue_duration([job.expected_seconds * pace for job in waiting], busy + [0.0] * (num_slots - len(busy)))


def queue_duration(durations: Sequence[float], loads: Sequence[float]) -> float:
    """Return when the last worker ends if each takes the next of some durations as soon as it is free; `loads` is what each has to do."""
    loads = list(loads)
    heapq.heapify(loads)
    for duration in durations:
        heapq.heappush(loads, heapq.heappop(loads) + duration)
    return max(loads)
