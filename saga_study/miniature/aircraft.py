"""The aircraft drawing: eight attributes of the paper's aircraft vocabulary (App. E) on a side view."""

from __future__ import annotations

import numpy as np

from saga_study.miniature.scene import Canvas, Colour, jitter

BASE_PAINTS: tuple[Colour, ...] = ((240, 240, 236), (208, 213, 220), (234, 224, 198), (200, 212, 196))
DARK: Colour = (34, 36, 46)
ENGINE_PAINTS: dict[str, Colour] = {
    "turbofan": (40, 78, 200),
    "turboprop": (240, 205, 40),
    "piston": (205, 38, 38),
    "jet": (30, 30, 34),
}
NACELLE_PLACES = {"under-wing": (0.26, 0.42), "rear-fuselage": (-0.5, -0.08), "tail": (-0.7, -0.36), "in-wing": (-0.2, 0.3)}
MOUNT_PARTS = {  # two corners of the part of the airframe that carries the nacelle
    "under-wing": [(-0.1, 0.1), (0.48, 0.54)],
    "rear-fuselage": [(-0.98, -0.24), (-0.3, 0.2)],
    "tail": [(-0.98, -0.6), (-0.48, -0.2)],
    "in-wing": [(-0.56, 0.1), (0.24, 0.56)],
}


def draw_aircraft(canvas: Canvas, attributes: dict[str, str], rng: np.random.Generator) -> None:
    """Draw one aircraft facing right; `attributes` maps every attribute name of `miniature_aircraft.yaml` to a value."""
    base = jitter(BASE_PAINTS[rng.integers(len(BASE_PAINTS))], rng, 8)
    metal = jitter((132, 136, 146), rng, 10)
    _draw_gear(canvas, attributes["landing gear layout"], rng)
    _draw_nose(canvas, attributes["nose shape"], base, rng)
    canvas.polygon([(0.62, -0.22), (0.62, 0.2), (-0.4, 0.2), (-0.98, -0.08), (-0.98, -0.2), (-0.6, -0.24), (0.4, -0.24)], base)
    _draw_livery(canvas, attributes["livery and markings"], rng)
    _draw_windows(canvas, attributes["cabin window count and spacing"], rng)
    _draw_tail(canvas, attributes["tail configuration"], base, rng)
    canvas.polygon([(0.52, -0.2), (0.66, -0.18), (0.7, -0.07), (0.52, -0.07)], DARK)
    canvas.polygon([(0.24, 0.1), (-0.1, 0.1), (-0.56, 0.56), (-0.38, 0.56)], metal)
    _draw_wingtip(canvas, attributes["winglets or wingtip shape"], rng)
    _draw_engine(canvas, attributes["engine type"], attributes["engine mount position"], metal, rng)


def _draw_gear(canvas: Canvas, layout: str, rng: np.random.Generator) -> None:
    name = "landing gear layout"
    dark = jitter(DARK, rng, 10)
    if layout == "retracted":
        canvas.mark(name, [(-0.15, 0.2), (0.62, 0.4)])
        return
    for x in (0.02, 0.54):
        canvas.stroke([(x, 0.15), (x, 0.68)], 0.07, dark, of=name)
        if layout == "tricycle":
            canvas.ellipse(x, 0.7, 0.12, 0.12, dark, of=name)
    if layout == "floats":
        float_paint = jitter((238, 128, 28), rng, 10)
        canvas.polygon([(-0.28, 0.62), (0.88, 0.62), (0.7, 0.82), (-0.12, 0.82)], float_paint, of=name)
    elif layout == "skids":
        canvas.stroke([(-0.25, 0.7), (0.7, 0.7), (0.84, 0.58)], 0.08, dark, of=name)


def _draw_tail(canvas: Canvas, configuration: str, base: Colour, rng: np.random.Generator) -> None:
    name = "tail configuration"
    paint = jitter((92, 62, 128), rng, 12)
    if configuration == "v-tail":
        canvas.polygon([(-0.62, -0.18), (-0.8, -0.18), (-0.58, -0.84), (-0.42, -0.84)], paint, of=name)
        canvas.polygon([(-0.68, -0.18), (-0.86, -0.18), (-1.0, -0.84), (-0.84, -0.84)], paint, of=name)
        return
    canvas.polygon([(-0.52, -0.2), (-0.78, -0.84), (-0.98, -0.84), (-0.94, -0.2)], base, of=name)
    y = {"conventional": -0.15, "cruciform": -0.54, "t-tail": -0.84}[configuration]
    canvas.polygon([(-0.6, y - 0.07), (-1.0, y - 0.07), (-1.0, y + 0.07), (-0.7, y + 0.07)], paint, of=name)


def _draw_nose(canvas: Canvas, shape: str, base: Colour, rng: np.random.Generator) -> None:
    name = "nose shape"
    if shape == "pointed":
        canvas.polygon([(0.6, -0.22), (1.0, 0.08), (0.6, 0.2)], base, of=name)
    else:
        paint = {"round": base, "radome": jitter(DARK, rng, 10), "glazed": jitter((70, 190, 225), rng, 10)}[shape]
        canvas.ellipse(0.6, -0.01, 0.28, 0.21, paint, of=name, start=-90, stop=90)


def _draw_livery(canvas: Canvas, pattern: str, rng: np.random.Generator) -> None:
    name = "livery and markings"
    if pattern == "plain":
        canvas.mark(name, [(-0.4, 0.0), (0.62, 0.2)])
    elif pattern == "cheatline":
        canvas.polygon([(-0.88, -0.03), (0.62, -0.03), (0.62, 0.07), (-0.7, 0.07)], jitter((205, 38, 38), rng, 10), of=name)
    elif pattern == "two-tone":
        canvas.polygon([(-0.7, 0.02), (0.62, 0.02), (0.62, 0.2), (-0.4, 0.2)], jitter((58, 142, 66), rng, 10), of=name)
    elif pattern == "banded":
        paint = jitter((48, 84, 200), rng, 10)
        for x in (-0.36, -0.12, 0.2, 0.44):
            canvas.polygon([(x, -0.02), (x + 0.12, -0.02), (x + 0.12, 0.2), (x, 0.2)], paint, of=name)


def _draw_windows(canvas: Canvas, spacing: str, rng: np.random.Generator) -> None:
    name = "cabin window count and spacing"
    centres = {"none": (), "few": (-0.12, 0.28), "many": (-0.28, -0.1, 0.08, 0.26, 0.44), "continuous": (0.08,)}[spacing]
    half = {"few": 0.075, "many": 0.045, "continuous": 0.4}.get(spacing, 0.0)
    paint = jitter(DARK, rng, 10)
    canvas.mark(name, [(-0.32, -0.2), (0.48, -0.06)])
    for x in centres:
        canvas.polygon([(x - half, -0.2), (x + half, -0.2), (x + half, -0.06), (x - half, -0.06)], paint, of=name)


def _draw_wingtip(canvas: Canvas, shape: str, rng: np.random.Generator) -> None:
    name = "winglets or wingtip shape"
    if shape == "plain":
        canvas.mark(name, [(-0.62, 0.42), (-0.34, 0.6)])
    elif shape == "winglet":
        canvas.polygon([(-0.36, 0.58), (-0.56, 0.58), (-0.8, 0.2), (-0.66, 0.2)], jitter((205, 38, 38), rng, 10), of=name)
    elif shape == "split":
        paint = jitter((58, 142, 66), rng, 10)
        canvas.polygon([(-0.36, 0.56), (-0.56, 0.56), (-0.76, 0.26), (-0.64, 0.26)], paint, of=name)
        canvas.polygon([(-0.36, 0.56), (-0.56, 0.56), (-0.76, 0.84), (-0.64, 0.84)], paint, of=name)
    elif shape == "tip-tank":
        canvas.ellipse(-0.48, 0.57, 0.26, 0.1, jitter((240, 205, 40), rng, 10), of=name)


def _draw_engine(canvas: Canvas, kind: str, mount: str, metal: Colour, rng: np.random.Generator) -> None:
    """Draw one nacelle: its paint and outline show the engine type, its place on the airframe the mount position."""
    name = "engine type"
    x, y = NACELLE_PLACES[mount]
    canvas.mark("engine mount position", [(x, y), *MOUNT_PARTS[mount]])
    if mount == "under-wing":
        canvas.stroke([(0.06, 0.2), (x, y)], 0.1, metal)
    paint = jitter(ENGINE_PAINTS[kind], rng, 10)
    if kind == "turbofan":
        canvas.ellipse(x, y, 0.22, 0.14, paint, of=name)
        canvas.ellipse(x + 0.16, y, 0.06, 0.12, DARK, of=name)
    elif kind == "jet":
        canvas.polygon([(x - 0.28, y - 0.06), (x + 0.26, y - 0.1), (x + 0.26, y + 0.1), (x - 0.28, y + 0.06)], paint, of=name)
    else:
        canvas.ellipse(x, y, 0.2, 0.1 if kind == "turboprop" else 0.13, paint, of=name)
        canvas.ellipse(x + 0.2, y, 0.05, 0.25 if kind == "turboprop" else 0.18, jitter((70, 70, 78), rng, 10), of=name)
