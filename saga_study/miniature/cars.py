"""The car drawing: eight attributes of the paper's car vocabulary (App. E) on a side view."""

from __future__ import annotations

import numpy as np

from saga_study.miniature.scene import Canvas, Colour, jitter

PAINTS: tuple[Colour, ...] = (  # not identity; mid-tones, so that black and white parts stand out from every one
    (52, 92, 168), (58, 118, 78), (150, 154, 160), (186, 158, 112), (142, 46, 56), (58, 138, 144),
)  # fmt: skip
TINTS: dict[str, Colour] = {"clear": (214, 236, 240), "smoked": (34, 36, 42), "amber": (226, 146, 34), "blue": (50, 92, 226)}
LENSES: dict[str, Colour] = {"red": (236, 24, 32), "amber": (250, 164, 24), "white": (246, 246, 242), "black": (30, 30, 34)}
RIMS: dict[str, Colour] = {"silver": (200, 204, 212), "black": (30, 30, 34), "gold": (226, 172, 36), "whitewall": (246, 246, 242)}
BLACK: Colour = (26, 26, 30)
WHITE: Colour = (246, 246, 242)
TRIM: Colour = (58, 58, 64)
CHROME: Colour = (230, 234, 240)
LAMP: Colour = (255, 242, 160)

BELT = -0.08  # where the cabin stands on the body
ROOF = 0.16  # thickness of the roof panel
CABINS: dict[str, tuple[float, float, float, float, float]] = {  # x of rear foot, rear roof, front roof, front foot; y of the roof
    "sedan": (-0.62, -0.4, 0.16, 0.46, -0.56),
    "hatchback": (-0.94, -0.78, 0.16, 0.46, -0.56),
    "pickup": (-0.22, -0.16, 0.24, 0.48, -0.58),
    "van": (-0.94, -0.92, 0.3, 0.55, -0.72),
    "coupe": (-0.92, -0.24, 0.08, 0.48, -0.44),
}


def draw_car(canvas: Canvas, attributes: dict[str, str], rng: np.random.Generator) -> None:
    """Draw one car facing right; `attributes` maps every attribute name of `miniature_cars.yaml` to a value."""

    def shade(colour: Colour) -> Colour:
        return jitter(colour, rng, 10)

    paint = shade(PAINTS[rng.integers(len(PAINTS))])
    style = attributes["body style"]
    _draw_body(canvas, style, paint)
    _draw_roof(canvas, attributes["roofline"], style, paint)
    canvas.polygon(_glass(style), shade(TINTS[attributes["greenhouse"]]), of="greenhouse")
    _draw_side(canvas, attributes["side profile"])
    _draw_rear_light(canvas, shade(LENSES[attributes["rear lights"]]))
    _draw_headlight(canvas, attributes["headlights"], shade(LAMP))
    _draw_bumper(canvas, attributes["front bumper"])
    for x in (-0.56, 0.43):
        _draw_wheel(canvas, x, attributes["wheels"], shade(RIMS[attributes["wheels"]]))


def _cabin_slice(style: str, top: float, bottom: float, pillar: float = 0.0) -> list[tuple[float, float]]:
    """Return the cabin between two heights, less a pillar at either end."""
    rear_foot, rear_roof, front_roof, front_foot, roof = CABINS[style]
    corners = []
    for y in (top, bottom):
        share = (y - roof) / (BELT - roof)
        rear = rear_roof + share * (rear_foot - rear_roof) + pillar
        front = front_roof + share * (front_foot - front_roof) - pillar
        corners.append([(rear, y), (front, y)])
    return corners[0] + corners[1][::-1]


def _glass(style: str) -> list[tuple[float, float]]:
    rear_top, front_top, front_foot, rear_foot = _cabin_slice(style, CABINS[style][-1] + ROOF, BELT, pillar=0.07)
    if style == "van":  # a panel van has windows beside the front seats only
        rear_top, rear_foot = (-0.08, rear_top[1]), (-0.08, rear_foot[1])
    return [rear_top, front_top, front_foot, rear_foot]


def _draw_body(canvas: Canvas, style: str, paint: Colour) -> None:
    name = "body style"
    canvas.polygon(_cabin_slice(style, CABINS[style][-1], BELT), paint, of=name)
    if style == "pickup":  # the bed has a place too, with nothing above it
        canvas.mark(name, [(-0.94, BELT), (-0.22, BELT)])
    canvas.polygon([(-0.95, BELT), (0.46, BELT), (0.8, -0.02), (0.87, 0.12), (0.87, 0.44), (-0.97, 0.44), (-0.97, 0.0)], paint)


def _draw_roof(canvas: Canvas, roofline: str, style: str, paint: Colour) -> None:
    name = "roofline"
    _, rear, front, _, roof = CABINS[style]
    canvas.polygon(_cabin_slice(style, roof, roof + ROOF), {"black": BLACK, "white": WHITE}.get(roofline, paint), of=name)
    if roofline == "rack":
        for x in (rear + 0.05, front - 0.05):
            canvas.stroke([(x, roof + 0.02), (x, roof - 0.14)], 0.06, BLACK, of=name)
        canvas.stroke([(rear - 0.02, roof - 0.15), (front + 0.02, roof - 0.15)], 0.08, BLACK, of=name)


def _draw_side(canvas: Canvas, profile: str) -> None:
    name = "side profile"
    if profile == "plain":
        canvas.mark(name, [(-0.72, 0.01), (0.54, 0.44)])
    elif profile == "stripe":
        canvas.stroke([(-0.74, 0.1), (0.55, 0.1)], 0.11, WHITE, of=name)
    elif profile == "cladding":
        canvas.polygon([(-0.4, 0.2), (0.28, 0.2), (0.28, 0.46), (-0.4, 0.46)], (52, 52, 56), of=name)
    elif profile == "wood":
        panel = [(-0.72, 0.01), (0.54, 0.01), (0.54, 0.34), (-0.72, 0.34)]
        canvas.polygon(panel, (112, 62, 26), of=name)
        canvas.stroke([*panel, panel[0]], 0.06, (236, 206, 146), of=name)


def _draw_rear_light(canvas: Canvas, lens: Colour) -> None:
    name = "rear lights"
    canvas.polygon([(-1.0, -0.05), (-0.76, -0.05), (-0.76, 0.24), (-1.0, 0.24)], TRIM, of=name)
    canvas.polygon([(-0.98, -0.02), (-0.79, -0.02), (-0.79, 0.21), (-0.98, 0.21)], lens, of=name)


def _draw_headlight(canvas: Canvas, shape: str, lamp: Colour) -> None:
    name = "headlights"
    if shape == "round":
        canvas.ellipse(0.73, 0.1, 0.15, 0.15, TRIM, of=name)
        canvas.ellipse(0.73, 0.1, 0.115, 0.115, lamp, of=name)
    elif shape == "slim":
        canvas.stroke([(0.47, 0.04), (0.87, 0.1)], 0.15, TRIM, of=name)
        canvas.stroke([(0.49, 0.04), (0.86, 0.1)], 0.095, lamp, of=name)
    elif shape == "tall":
        canvas.polygon([(0.72, -0.12), (0.88, -0.12), (0.88, 0.26), (0.72, 0.26)], TRIM, of=name)
        canvas.polygon([(0.75, -0.1), (0.86, -0.1), (0.86, 0.24), (0.75, 0.24)], lamp, of=name)
    elif shape == "popup":
        canvas.polygon([(0.56, -0.02), (0.6, -0.26), (0.8, -0.26), (0.8, 0.0)], TRIM, of=name)
        canvas.polygon([(0.66, -0.22), (0.8, -0.22), (0.8, -0.06), (0.66, -0.06)], lamp, of=name)


def _draw_bumper(canvas: Canvas, bumper: str) -> None:
    name = "front bumper"
    bar = [(0.66, 0.28), (0.97, 0.28), (0.97, 0.46), (0.66, 0.46)]
    if bumper == "flush":
        canvas.mark(name, bar)
    elif bumper in ("chrome", "black"):
        canvas.polygon(bar, CHROME if bumper == "chrome" else BLACK, of=name)
    elif bumper == "bullbar":
        canvas.stroke([(0.7, 0.41), (0.95, 0.4), (0.95, -0.06)], 0.1, BLACK, of=name)


def _draw_wheel(canvas: Canvas, x: float, kind: str, rim: Colour) -> None:
    name, y = "wheels", 0.44
    canvas.ellipse(x, y, 0.26, 0.26, BLACK, of=name)
    canvas.ellipse(x, y, 0.17, 0.17, rim)
    if kind == "whitewall":
        canvas.ellipse(x, y, 0.09, 0.09, BLACK)
