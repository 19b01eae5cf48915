"""About how long a run takes."""

from __future__ import annotations

from dataclasses import replace

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_study.methods import METHODS, PROFILES


def expected_minutes(config: RunConfig) -> float:
    """Return about how many minutes a run takes on one worker: measured in miniature (`Method.minutes`), planned at the paper's scale."""
    minutes = METHODS[config.method].minutes
    if config.profile not in minutes:
        return _planned_minutes(config)
    usual = PROFILES[config.profile]
    start = METHODS["pre-trained"].minutes[config.profile]  # and evaluation, however long the training
    if not config.steps and not config.epochs:
        return start
    longer = config.steps / usual["steps"] if config.steps else 1.0
    if config.language_signal == "grpo":  # rollouts and their replay are most of it
        longer *= 0.2 + 0.8 * config.group_size / usual.get("group_size", RunConfig.group_size)
    return start + longer * (minutes[config.profile] - start)


def _planned_minutes(config: RunConfig) -> float:
    from saga_study import planner

    try:
        return 60 * planner.estimate(config).hours
    except SagaError:  # a supervisor of unknown shapes: about what the profile's takes
        return 60 * planner.estimate(replace(config, supervisor=PROFILES[config.profile]["supervisor"])).hours
