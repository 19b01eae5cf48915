"""The bird drawing: eight attributes of the paper's bird vocabulary (App. E) on a side view."""

from __future__ import annotations

import numpy as np

from saga_study.miniature.scene import Canvas, Colour, jitter

COLOURS: dict[str, Colour] = {
    "black": (28, 28, 32),
    "white": (242, 242, 236),
    "red": (205, 38, 38),
    "yellow": (238, 205, 48),
    "blue": (48, 84, 200),
    "brown": (118, 72, 38),
    "orange": (238, 128, 28),
    "green": (58, 142, 66),
    "grey": (140, 142, 148),
    "pink": (228, 128, 158),
}
MARK_DARK: Colour = (38, 30, 26)
MARK_PALE: Colour = (248, 244, 226)


def draw_bird(canvas: Canvas, attributes: dict[str, str], rng: np.random.Generator) -> None:
    """Draw one bird facing right; `attributes` maps every attribute name of `miniature_birds.yaml` to a value."""

    def paint(name: str) -> Colour:
        return jitter(COLOURS[attributes[name]], rng, 10)

    plumage = jitter(((150, 132, 112), (112, 98, 88), (172, 160, 146))[rng.integers(3)], rng, 12)
    _draw_tail(canvas, attributes["tail pattern"], jitter(plumage, rng, 10))
    leg = paint("leg color")
    for x in (-0.04, 0.12):
        canvas.stroke([(x, 0.3), (x + 0.02, 0.62), (x + 0.14, 0.66)], 0.085, leg, of="leg color")
    canvas.ellipse(-0.1, 0.04, 0.5, 0.34, plumage)
    canvas.polygon([(0.1, -0.2), (0.3, -0.42), (0.55, -0.15), (0.36, 0.12)], plumage)
    canvas.ellipse(0.14, 0.11, 0.29, 0.26, paint("breast color"), of="breast color")
    _draw_breast_pattern(canvas, attributes["breast pattern"])
    _draw_wing(canvas, attributes["wing pattern"], paint("wing color"))
    _draw_bill(canvas, attributes["bill shape"], jitter((232, 168, 56), rng, 14))
    canvas.ellipse(0.42, -0.34, 0.21, 0.2, plumage)
    canvas.ellipse(0.42, -0.37, 0.22, 0.19, paint("crown color"), of="crown color", start=175, stop=350)
    canvas.ellipse(0.48, -0.33, 0.045, 0.045, (10, 10, 10))
    canvas.ellipse(0.49, -0.34, 0.015, 0.015, (250, 250, 250))


def _draw_tail(canvas: Canvas, pattern: str, colour: Colour) -> None:
    outline = [(-0.42, -0.1), (-1.0, -0.3), (-1.0, 0.28), (-0.42, 0.22)]
    canvas.polygon(outline, colour)
    name = "tail pattern"
    if pattern == "plain":
        canvas.mark(name, outline)
    elif pattern == "banded":
        for x in (-0.92, -0.7):
            canvas.stroke([(x, -0.25), (x, 0.24)], 0.09, MARK_DARK, of=name)
    elif pattern == "tipped":
        canvas.polygon([(-0.84, -0.25), (-1.06, -0.33), (-1.06, 0.31), (-0.84, 0.26)], MARK_PALE, of=name)
    elif pattern == "edged":
        for points in ([(-0.5, -0.12), (-1.0, -0.28)], [(-0.5, 0.2), (-1.0, 0.26)]):
            canvas.stroke(points, 0.13, (210, 120, 40), of=name)


def _draw_breast_pattern(canvas: Canvas, pattern: str) -> None:
    name = "breast pattern"
    if pattern == "plain":
        canvas.mark(name, [(-0.1, -0.12), (0.4, 0.34)])
    elif pattern == "streaked":
        for x in (0.03, 0.15, 0.27):
            canvas.stroke([(x, 0.0), (x + 0.03, 0.28)], 0.045, MARK_DARK, of=name)
    elif pattern == "banded":
        for y in (0.02, 0.17):
            canvas.stroke([(-0.06, y + 0.04), (0.14, y + 0.06), (0.38, y - 0.02)], 0.055, MARK_DARK, of=name)
    elif pattern == "spotted":
        for x, y in ((0.08, 0.0), (0.25, 0.02), (0.0, 0.14), (0.17, 0.16), (0.33, 0.13), (0.1, 0.29), (0.25, 0.27)):
            canvas.ellipse(x, y, 0.042, 0.042, MARK_DARK, of=name)


def _draw_wing(canvas: Canvas, pattern: str, colour: Colour) -> None:
    outline = [(-0.02, -0.2), (0.12, -0.06), (0.0, 0.1), (-0.3, 0.18), (-0.72, 0.16), (-0.42, -0.12)]
    canvas.polygon(outline, colour, of="wing color")
    name = "wing pattern"
    if pattern == "plain":
        canvas.mark(name, outline)
    elif pattern == "barred":
        for x in (-0.46, -0.28, -0.1):
            canvas.stroke([(x + 0.06, -0.11), (x - 0.04, 0.13)], 0.06, MARK_PALE, of=name)
    elif pattern == "spotted":
        for x, y in ((-0.05, -0.08), (-0.18, 0.05), (-0.26, -0.08), (-0.38, 0.07), (-0.02, 0.05), (-0.54, 0.1)):
            canvas.ellipse(x, y, 0.048, 0.048, MARK_PALE, of=name)
    elif pattern == "edged":
        canvas.stroke([(0.12, -0.06), (0.0, 0.1), (-0.3, 0.18), (-0.72, 0.16)], 0.085, MARK_PALE, of=name)


def _draw_bill(canvas: Canvas, shape: str, colour: Colour) -> None:
    points = {
        "cone": [(0.54, -0.56), (0.86, -0.32), (0.54, -0.12)],
        "dagger": [(0.56, -0.45), (1.14, -0.32), (0.56, -0.22)],
        "needle": [(0.58, -0.42), (0.86, -0.5), (1.1, -0.68), (1.12, -0.6), (0.9, -0.38), (0.58, -0.28)],
        "hooked": [(0.54, -0.5), (0.84, -0.46), (0.98, -0.28), (0.94, 0.06), (0.78, -0.2), (0.54, -0.2)],
    }[shape]
    canvas.polygon(points, colour, of="bill shape")
