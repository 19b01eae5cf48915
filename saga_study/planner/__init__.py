"""What a run takes before it runs: parameters, memory by phase, seconds, disk, and what to lower."""

from saga_study.planner.cards import ASSUMED, CARDS, Assumptions, card_of
from saga_study.planner.costs import decoding_seconds, operations, seconds_per_step
from saga_study.planner.estimates import (
    H200_GIB,
    Estimate,
    Lever,
    advice,
    describe_levers,
    disk_gib,
    estimate,
    levers,
    memory_table,
    runs_table,
)
from saga_study.planner.fitting import Fit, find_fit
from saga_study.planner.listing import describe_plan
from saga_study.planner.memory import memory_by_phase, peak, reading_bytes, replay_bytes, tower_bytes
from saga_study.planner.parallel import shared_hours, shared_seconds
from saga_study.planner.shapes import (
    ARCHITECTURES,
    GIB,
    Architecture,
    architecture,
    architecture_of_config,
    check_image_size,
    count_parameters,
    count_trained_parameters,
)
from saga_study.planner.workload import MEASURED_LENGTHS, Workload, description_lengths, image_counts, text_lengths, workload

__all__ = [
    "ARCHITECTURES", "ASSUMED", "Architecture", "Assumptions", "CARDS", "Estimate", "Fit", "GIB", "H200_GIB", "Lever",
    "MEASURED_LENGTHS", "Workload", "advice", "architecture", "architecture_of_config", "card_of", "check_image_size",
    "count_parameters", "count_trained_parameters", "decoding_seconds", "describe_levers", "describe_plan", "description_lengths",
    "disk_gib", "estimate", "find_fit", "image_counts", "levers", "memory_by_phase", "memory_table", "operations", "peak",
    "reading_bytes", "replay_bytes", "runs_table",
    "seconds_per_step", "shared_hours", "shared_seconds", "text_lengths", "tower_bytes", "workload",
]  # fmt: skip
