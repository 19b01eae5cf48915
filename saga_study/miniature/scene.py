"""Nuisance and style around a subject: the part of the renderer that every miniature domain shares.

A domain contributes one drawing function `draw(canvas, attributes, rng)` in subject coordinates (x right,
y down, the subject inside [-1, 1]²) and one vocabulary. Everything that is not identity – pose, light,
clutter, occlusion, noise, photographic style – happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

IMAGE_SIZE = 48
SUPERSAMPLING = 3

Colour = tuple[int, int, int]


def jitter(colour: Colour, rng: np.random.Generator, amount: float) -> Colour:
    """Return a colour with Gaussian noise of `amount` grey levels on each channel: no two subjects are painted alike."""
    return tuple(int(c) for c in (np.asarray(colour) + rng.normal(scale=amount, size=3)).clip(0, 255))


@dataclass(frozen=True)
class Style:
    """The photographic domain of a set of images; `contrast` 1, `palette` 0, … is the clean studio look."""

    contrast: float = 1.0  # slope about the mean grey level
    blur: float = 0.0  # Gaussian radius, pixels of the final image
    palette: float = 0.0  # rotation of the colour wheel, turns (0..1); saturation falls with it
    texture: float = 0.0  # amplitude of a smooth multiplicative grain, fraction
    noise: float = 2.0  # standard deviation of white noise, grey levels (0..255)

    def toward(self, other: Style, amount: float) -> Style:
        """Return the style `amount` of the way from this one (0) to `other` (1); a little more goes beyond it."""
        names = [field.name for field in fields(self)]
        return Style(**{n: (1 - amount) * getattr(self, n) + amount * getattr(other, n) for n in names})


STUDIO = Style()  # pre-training of the supervisor
FIELD = Style(contrast=0.6, blur=0.8, palette=0.04, texture=0.25, noise=14.0)  # benchmarks live towards this


class Canvas:
    """A supersampled drawing surface in subject coordinates that remembers where each attribute was drawn.

    `regions` maps an attribute name to the box (x0, y0, x1, y1) of what was drawn for it, in pixels of the
    final image: the ground truth for attention maps.
    """

    def __init__(self, image: Image.Image, matrix: np.ndarray) -> None:
        self.image = image
        self.pen = ImageDraw.Draw(image, "RGBA")
        self.matrix = matrix  # (2, 3) subject -> supersampled pixels
        self.regions: dict[str, tuple[float, float, float, float]] = {}

    def mark(self, attribute: str, points: Sequence[tuple[float, float]]) -> None:
        """Record where an attribute shows without drawing (a plain breast still has a place)."""
        self._mark(attribute, self._place(points))

    def _place(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        xy = np.asarray(points, dtype=float) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return [tuple(p) for p in xy]

    def _mark(self, attribute: str | None, placed: list[tuple[float, float]]) -> None:
        if attribute is None:
            return
        xy = np.asarray(placed) / SUPERSAMPLING
        low, high = xy.min(0), xy.max(0)
        if attribute in self.regions:
            x0, y0, x1, y1 = self.regions[attribute]
            low, high = np.minimum(low, (x0, y0)), np.maximum(high, (x1, y1))
        low, high = np.clip(low, 0, IMAGE_SIZE), np.clip(high, 0, IMAGE_SIZE)
        self.regions[attribute] = (*map(float, low), *map(float, high))

    def polygon(
        self, points: Sequence[tuple[float, float]], fill: Colour, *, outline: Colour | None = None, of: str | None = None
    ) -> None:
        """Fill a polygon; `of` names the attribute that it shows."""
        placed = self._place(points)
        self.pen.polygon(placed, fill=fill, outline=outline)
        self._mark(of, placed)

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, fill: Colour, *, of: str | None = None,
        outline: Colour | None = None, start: float = 0.0, stop: float = 360.0,
    ) -> None:  # fmt: skip
        """Fill an ellipse, or its part between two angles (degrees, clockwise from +x)."""
        angle = np.radians(np.linspace(start, stop, 28))
        self.polygon(np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1), fill, outline=outline, of=of)

    def stroke(self, points: Sequence[tuple[float, float]], width: float, fill: Colour, *, of: str | None = None) -> None:
        """Draw a line of `width` subject units."""
        placed = self._place(points)
        scale = float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))
        self.pen.line(placed, fill=fill, width=max(1, round(width * scale)), joint="curve")
        half = width * scale / 2
        self._mark(of, [(x + dx, y + dy) for x, y in placed for dx in (-half, half) for dy in (-half, half)])


Draw = Callable[[Canvas, dict[str, str], np.random.Generator], None]


def render(
    draw: Draw, attributes: dict[str, str], rng: np.random.Generator, nuisance: float, style: Style, habitat: int | None = None
) -> tuple[Image.Image, dict[str, tuple[float, float, float, float]]]:
    """Render one image (48×48 RGB) of a subject and return it with its attribute regions.

    `nuisance` ∈ [0, 1] scales pose, light, clutter, occlusion and sensor noise together. `habitat`, from 0, is the number
    of a background; None leaves a plain one of any colour. The result depends on the arguments and the state of `rng` only.
    """
    size = IMAGE_SIZE * SUPERSAMPLING
    image = Image.new("RGB", (size, size), tuple(int(c) for c in rng.integers(60, 215, 3)))
    background = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.poisson(1 + 5 * nuisance)):
        _clutter(background, rng, size)
    if habitat is not None:
        _paint_habitat(background, habitat, rng, size)
    turn = np.radians(rng.uniform(-28, 28) * nuisance)
    scale = size * 0.5 * 0.86 * (1 - 0.35 * nuisance * rng.uniform())
    squeeze = 1 - 0.2 * nuisance * rng.uniform()
    flip = 1.0 if rng.uniform() < 0.5 else -1.0
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ np.diag([flip * squeeze, 1.0]) * scale
    shift = size / 2 + rng.uniform(-0.17, 0.17, 2) * nuisance * size
    canvas = Canvas(image, np.concatenate([linear, shift[:, None]], 1))
    draw(canvas, attributes, rng)
    for _ in range(rng.poisson(0.9 * nuisance)):
        _occlude(canvas.pen, rng, size)
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32)
    pixels = _light(pixels, rng, nuisance)
    pixels = _apply_style(pixels, rng, style)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), canvas.regions


def _paint_habitat(pen: ImageDraw.ImageDraw, habitat: int, rng: np.random.Generator, size: int) -> None:
    """Cover the background with a habitat: a ground colour and stripes, whose place and exact shades vary."""
    of_habitat = np.random.default_rng([777, habitat])
    ground, stripes = of_habitat.integers(60, 215, 3), of_habitat.integers(20, 250, 3)
    angle, gap, width = of_habitat.uniform(0, np.pi), of_habitat.uniform(0.18, 0.4) * size, int(of_habitat.integers(4, 11))
    pen.rectangle([0, 0, size, size], fill=jitter(ground, rng, 8))
    colour, first = jitter(stripes, rng, 8), rng.uniform(0, gap)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    for number in range(-8, 9):
        centre = size / 2 + across * (number * gap + first)
        pen.line([tuple(centre - 2 * size * along), tuple(centre + 2 * size * along)], fill=colour, width=width)


def _clutter(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    colour = tuple(int(c) for c in rng.integers(20, 250, 3))
    x, y = rng.uniform(0, size, 2)
    if rng.uniform() < 0.5:
        length, angle = rng.uniform(0.2, 0.9) * size, rng.uniform(0, np.pi)
        end = (x + length * np.cos(angle), y + length * np.sin(angle))
        pen.line([(x, y), end], fill=colour, width=int(rng.integers(3, 11)))
    else:
        rx, ry = rng.uniform(4, 20, 2)
        pen.ellipse([x - rx, y - ry, x + rx, y + ry], fill=colour)


def _occlude(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    """A twig or leaf in front of the subject: thin enough to hide an attribute only now and then."""
    colour = tuple(int(c) for c in rng.integers(20, 200, 3))
    x, y = rng.uniform(0.2, 0.8, 2) * size
    if rng.uniform() < 0.6:
        angle = rng.uniform(0, np.pi)
        dx, dy = 0.5 * size * np.cos(angle), 0.5 * size * np.sin(angle)
        pen.line([(x - dx, y - dy), (x + dx, y + dy)], fill=colour, width=int(rng.integers(3, 7)))
    else:
        rx, ry = rng.uniform(5, 13, 2)
        pen.ellipse([x - rx, y - ry, x + rx, y + ry], fill=colour)


def _light(pixels: np.ndarray, rng: np.random.Generator, nuisance: float) -> np.ndarray:
    gain = 1 + nuisance * rng.uniform(-0.35, 0.25)
    cast = 1 + nuisance * rng.uniform(-0.15, 0.15, 3)
    axis = np.linspace(-1, 1, IMAGE_SIZE)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
    shade = 1 + 0.25 * nuisance * ramp
    return pixels * (gain * cast) * shade[:, :, None]


def _apply_style(pixels: np.ndarray, rng: np.random.Generator, style: Style) -> np.ndarray:
    if style.palette:
        pixels = pixels @ _hue_rotation(style.palette).T
    if style.texture:
        coarse = Image.fromarray(rng.normal(size=(13, 13)).astype(np.float32))
        grain = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
        pixels = pixels * (1 + style.texture * 0.5 * grain[:, :, None])
    pixels = pixels.mean() + style.contrast * (pixels - pixels.mean())
    if style.blur:
        pixels = gaussian_filter(pixels, (style.blur, style.blur, 0))
    return pixels + rng.normal(scale=style.noise, size=pixels.shape)


def _hue_rotation(turns: float) -> np.ndarray:
    """Return the (3, 3) matrix that turns colours about the grey axis and fades them a little."""
    angle = 2 * np.pi * turns
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * grey + np.sin(angle) * cross
    fade = max(0.0, 1 - 2 * abs(turns))
    return grey + fade * (rotation - grey)
