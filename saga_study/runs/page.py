"""A page that shows how far a study is and refreshes itself: `status.html` in its folder while runs train."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Sequence
from math import nan
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_text
from saga_study.methods import describe
from saga_study.runs.jobs import Job
from saga_study.runs.remaining import Remaining

NAME = "status.html"
REFRESH_SECONDS = 15
SHOWN = 40  # finished runs, the last ones first
POINTS = 30  # of a curve, each the mean of the steps between it and the one before
CURVE = "reward_mean"  # of the rollouts of a step, 0-1
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}">
<meta name="viewport" content="width=device-width"><title>{done}/{total} · {study}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}table{{width:100%}}
td,th{{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd}}progress{{width:12rem}}meter{{width:8rem}}
.dim{{color:#666}}td+td{{white-space:nowrap}}svg{{width:8rem;height:2rem;background:#f4f4f4}}polyline{{fill:none;stroke:#c03;stroke-width:1.5}}</style>
<h1>{study}</h1><p><progress max="{total}" value="{done}"></progress> {done} of {total} runs{left}</p>
<table><tr><th>run</th><th>progress</th><th></th><th>reward</th></tr>{rows}</table>{results}
<p class="dim">{waiting} runs wait. Written at {now}; this page asks again every {seconds} seconds.</p></html>
"""


def scores(job: Job) -> tuple[float, float]:
    """Return R@1 and MAP@R of a finished run in percent; NaN where its evaluation cannot be read."""
    try:
        found = read_json(job.folder / "evaluation.json")
        return 100 * found["recall"]["1"], 100 * found.get("map_at_r", nan)
    except (SagaError, KeyError, TypeError, AttributeError):
        return nan, nan


def _cell(percent: float) -> str:
    return f'<td><meter max="100" value="{percent:.1f}"></meter> {percent:.1f}</td>' if percent == percent else "<td>–</td>"


def curve(folder: Path) -> str:
    """Return a drawing of a run's reward by step, from 0 at the bottom to 1 at the top, with the last mean beside it; "" if it has none."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]  # what follows is still being written
        steps = [json.loads(line) for line in lines]
    except (OSError, ValueError):  # not there yet, or being cut by a resumed run
        return ""
    values, total = [step[CURVE] for step in steps if CURVE in step], max([step.get("steps") or 0 for step in steps], default=0)
    size = max(1, total // POINTS)
    means = [sum(values[start : start + size]) / size for start in range(0, len(values) - size + 1, size)]
    if not means:
        return ""
    points = " ".join(f"{100 * (place + 1) * size / max(total, len(values)):.0f},{30 * (1 - mean):.1f}" for place, mean in enumerate(means))
    return f'<svg viewBox="0 0 100 30" preserveAspectRatio="none"><polyline points="{points}"/></svg> {means[-1]:.2f}'


def write_page(
    folder: Path, waiting: Sequence[Job], active: Sequence[Job], done: Sequence[Job], num_known: int, total: int, left: Remaining
) -> None:
    """Write the page of a study into its folder: the runs at work with their progress, what finished ones found, and the time left.

    `done` are the runs that finished since the queue began, the last one last, `num_known` those of before.
    """
    rows = "".join(
        f'<tr><td>{html.escape(describe(job.config))}</td><td><progress max="{job.steps or 1}" value="{job.step}"></progress></td>'
        f"<td>{html.escape(job.stage())}</td><td>{curve(job.folder)}</td></tr>"
        for job in active
    )
    found = "".join(
        f"<tr><td>{html.escape(describe(job.config))}</td>{''.join(map(_cell, scores(job)))}<td>{curve(job.folder)}</td></tr>"
        for job in reversed(done[-SHOWN:])
    )
    titles = "<tr><th>run</th><th>R@1 %</th><th>MAP@R %</th><th>reward</th></tr>"
    results = f"<h2>Found so far</h2><table>{titles}{found}</table>" if found else ""
    text = _PAGE.format(
        study=html.escape(folder.name), seconds=REFRESH_SECONDS, done=num_known + len(done), results=results,
        total=total, rows=rows, waiting=len(waiting), left=f", {left.text()}", now=time.strftime("%H:%M:%S"),
    )  # fmt: skip
    write_text(folder / NAME, text)
