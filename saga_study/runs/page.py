"""A page that shows how far a study is and refreshes itself: `status.html` in its folder while runs train."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path

from saga_lib.common.files import write_text
from saga_study.methods import describe
from saga_study.runs.jobs import Job
from saga_study.runs.remaining import Remaining

NAME = "status.html"
REFRESH_SECONDS = 15
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}">
<meta name="viewport" content="width=device-width"><title>{done}/{total} · {study}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}table{{width:100%}}
td,th{{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd}}progress{{width:12rem}}.dim{{color:#666}}</style>
<h1>{study}</h1><p><progress max="{total}" value="{done}"></progress> {done} of {total} runs{left}</p>
<table><tr><th>run</th><th>progress</th><th></th></tr>{rows}</table>
<p class="dim">{waiting} runs wait. Written at {now}; this page asks again every {seconds} seconds.</p></html>
"""


def write_page(folder: Path, waiting: Sequence[Job], active: Sequence[Job], done: int, total: int, left: Remaining) -> None:
    """Write the page of a study into its folder: the runs at work with their progress, how many wait, and the time left."""
    rows = "".join(
        f'<tr><td>{html.escape(describe(job.config))}</td><td><progress max="{job.steps or 1}" value="{job.step}"></progress></td>'
        f"<td>{html.escape(job.stage())}</td></tr>"
        for job in active
    )
    text = _PAGE.format(
        study=html.escape(folder.name), seconds=REFRESH_SECONDS, done=done, total=total, rows=rows, waiting=len(waiting),
        left=f", {left.text()}", now=time.strftime("%H:%M:%S"),
    )  # fmt: skip
    write_text(folder / NAME, text)
