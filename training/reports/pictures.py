"""Pictures of a run: a labelled grid of images, and curves. Pillow only.

A line is [(x, y), ...] in the order of x; lines are {name: line}, and some names are drawn in their own way.
Texts are messages where they are words, in the language and the font of `lettering`.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...diffusion.faults import Message
from ..formats.files import write, write_near
from .lettering import font, worded

INK, MUTED, FAINT, PAPER = (40, 42, 48), (130, 134, 142), (205, 208, 214), (255, 255, 255)
NOISY = Message("each update")  # a line drawn thin and grey, behind the others
BARS = "bars"  # a line drawn as bars
NO_GAIN = Message("no gain beyond chance")  # a line drawn as rings
STEPS, CALLS = Message("steps"), Message("model calls")  # what a fit counts
COLOURS = ((37, 99, 235), (220, 92, 36), (22, 140, 90), (140, 70, 190))
DOTTED = 30  # points of a line, below which each has a dot
TITLE, LABEL, SMALL = 15, 13, 12  # sizes of text: titles, beside tiles, on plots
LABEL_LINE = 17  # pixels from one line of a heading to the next
NOTE = 18  # pixels for the text under a tile

Line = Sequence[tuple[float, float]]
Text = str | Message
Lines = Mapping[Text, Line]


# ---- a grid of images ------------------------------------------------------------------------------


def to_tiles(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    pixels = pixels.detach().cpu().float().clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def grid(
    columns: Mapping[Text, torch.Tensor],
    rows: Sequence[str],
    title: Text = "",
    scale: int = 1,
    gap: int = 6,
    notes: Mapping[Text, Sequence[Text]] | None = None,
) -> Image.Image:
    """A labelled grid: `columns` {heading: pixels (R, 3, H, W)}, `rows` R labels; headings may hold newlines.

    notes: {heading: R short texts}, each written under its tile.
    """
    notes = {worded(head): [worded(note) for note in column] for head, column in (notes or {}).items()}
    tiles = {worded(heading): to_tiles(pixels) for heading, pixels in columns.items()}
    height, width = (scale * side for side in next(iter(tiles.values())).shape[1:3])
    labels = font(LABEL)

    texts = [*tiles, *(note for column in notes.values() for note in column)]
    left = 18 + max((int(labels.getlength(label)) for label in rows), default=0)
    top = (30 if title else 8) + LABEL_LINE * max(heading.count("\n") + 1 for heading in tiles) + 8
    across = max(width, *(_width(text, labels) for text in texts)) + gap  # from one tile to the next
    down = height + (NOTE if notes else 0) + gap
    picture = Image.new("RGB", (left + across * len(tiles) + gap, top + down * len(rows) + gap), PAPER)

    draw = ImageDraw.Draw(picture)
    draw.text((10, 8), worded(title), INK, font(TITLE))
    for column, (heading, images) in enumerate(tiles.items()):
        x = left + column * across
        middle = x + across // 2 - gap // 2
        draw.multiline_text((middle, top - 8), heading, INK, labels, anchor="md", align="center")
        for row, image in enumerate(images[: len(rows)]):
            y = top + row * down
            tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (x + (across - gap - width) // 2, y))
            if heading in notes:
                draw.text((middle, y + height + 2), notes[heading][row], MUTED, labels, anchor="mt")
    for row, label in enumerate(rows):
        draw.text((left - 10, top + row * down + height // 2), label, INK, labels, anchor="rm")
    return picture


def _width(text, letters):
    """Pixels that a text of one or more lines is wide."""
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return int(probe.multiline_textbbox((0, 0), text, letters)[2])


def column(pixels: torch.Tensor, least: int = 128, most: int = 256) -> Image.Image:
    """Pictures (N, 3, H, W) below each other, enlarged to `least` pixels of width or reduced to `most`."""
    tiles = [Image.fromarray(tile) for tile in to_tiles(pixels)]
    width, height = tiles[0].size
    factor = math.ceil(least / width) if width < least else min(1.0, most / width)
    size = round(factor * width), round(factor * height)
    way = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return stack(*(tile.resize(size, way) for tile in tiles))


def stack(*images: Image.Image, across: bool = False) -> Image.Image:
    """Pictures one below the other, or side by side, on white."""
    widths, heights = [image.width for image in images], [image.height for image in images]
    size = (sum(widths), max(heights)) if across else (max(widths), sum(heights))
    picture, place = Image.new("RGB", size, PAPER), 0
    for image in images:
        picture.paste(image, (place, 0) if across else (0, place))
        place += image.width if across else image.height
    return picture


def png(picture: Image.Image) -> bytes:
    """The picture as bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def save(picture: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all, beside a file of that name that another program holds."""
    return write_near(path, lambda place: write(place, png(picture)))


# ---- curves ----------------------------------------------------------------------------------------


def curves(panels: Sequence[tuple[Text, Text, Lines]], size: tuple[int, int] = (860, 300)) -> Image.Image:
    """Plots side by side: `panels` [(title, x label, lines)]; a y axis is logarithmic where all y > 0."""
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    share = width // len(panels)
    for i, (title, x_label, lines) in enumerate(panels):
        left, right, top, bottom = i * share + 62, (i + 1) * share - 16, 34, height - 40
        draw.text((left, 10), worded(title), INK, font(TITLE))
        x_values, y_values = _finite(lines)
        if not len(x_values):
            draw.text((left + 8, top + 8), worded(Message("no data yet")), INK, _small())
            continue
        x = _x_axis(x_values, BARS in lines, left, right)
        y = _y_axis(y_values, BARS in lines, bottom, top)
        _draw_levels(draw, x, y)
        _draw_ticks(draw, x, y, x_values)
        draw.text(((left + right) / 2, bottom + 22), worded(x_label), INK, _small(), anchor="mt")
        _draw_lines(draw, x, y, lines)
    return picture


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` over pixels from `start` to `end` (logarithms of values where `log`)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value):
        """The pixel of a value."""
        return self.place(np.log10(value) if self.log else value)

    def place(self, level):
        """The pixel of a value, or of its logarithm where the axis is logarithmic."""
        return self.start + (level - self.low) / (self.high - self.low) * (self.end - self.start)


def _x_axis(values, bars, left, right):
    """Just as long as the values are apart; a single one is in the middle, and bars have room beside them."""
    beside = 0.6 if bars else 0.5 if values.min() == values.max() else 0.0
    return _Axis(values.min() - beside, values.max() + beside, left, right)


def _y_axis(values, bars, bottom, top):
    """A little longer than the values are apart; bars stand on 0, which is on the axis then."""
    log = bool((values > 0).all()) and not bars
    levels = np.log10(values) if log else np.append(values, 0.0) if bars else values
    beside = 0.06 * (levels.max() - levels.min())
    if not beside:
        beside = 0.1 if log else 0.1 * abs(levels[0]) or 1.0
    return _Axis(levels.min() - beside, levels.max() + beside, bottom, top, log)


def _finite(lines):
    """(x, y) of all points of all lines that can be drawn."""
    points = np.array([point for line in lines.values() for point in line], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(1)].T


def _draw_levels(draw, x, y):
    """Five values of y, each with a line across."""
    for level in np.linspace(y.low, y.high, 5):
        value, place = 10**level if y.log else level, y.place(level)
        draw.line((x.start, place, x.end, place), FAINT)
        text = f"{0.0 if abs(value) < 1e-9 else value:.3g}"
        draw.text((x.start - 6, place), text, INK, _small(), anchor="rm")


def _draw_ticks(draw, x, y, values):
    """The values of x where they are few and whole, else five between their ends."""
    ticks = sorted(set(values))
    if len(ticks) > 1 and (max(ticks) > 12 or (values != values.round()).any()):
        ticks = np.linspace(x.low, x.high, 5)
    for value in ticks:
        text = f"{value:.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.3g}"
        draw.text((x.at(value), y.start + 6), text, INK, _small(), anchor="mt")


def _draw_lines(draw, x, y, lines):
    """All lines, with their names in the upper right corner."""
    number = 0
    for name, line in lines.items():
        points = [(x.at(a), y.at(b)) for a, b in line if np.isfinite(b)]
        if name == BARS:
            _draw_bars(draw, points, half=max(1, 0.38 * (x.end - x.start) / (x.high - x.low)), zero=y.at(0))
            continue
        colour = {NOISY: FAINT, NO_GAIN: MUTED}.get(name, COLOURS[number % len(COLOURS)])
        if name == NO_GAIN:
            for a, b in points:
                draw.ellipse((a - 7, b - 7, a + 7, b + 7), outline=colour, width=2)
        else:
            if len(points) > 1:
                draw.line(points, colour, 1 if name == NOISY else 2, joint="curve")
            for a, b in points if len(points) < DOTTED else ():
                draw.ellipse((a - 3, b - 3, a + 3, b + 3), colour)
        place = (x.end - 4, y.end + 4 + 15 * number)
        draw.text(place, worded(name), MUTED if name == NOISY else colour, _small(), anchor="rt")
        number += 1


def _draw_bars(draw, points, half, zero):
    """A bar to each point from y = 0, `half` as wide on either side."""
    for x, y in points:
        draw.rectangle((x - half, min(y, zero), x + half, max(y, zero)), COLOURS[0])


def _small():
    return font(SMALL)


# ---- what runs, fits, schedules and samplers look like ---------------------------------------------


def run_curves(loss: Line, fidelity: Line, size: tuple[int, int] = (860, 300)) -> Image.Image:
    """Loss (raw and smoothed) and fidelity of a run over its updates, side by side, or one below the other
    where the picture is taller than wide.
    """
    update = Message("update")
    panels = [
        (Message("Loss"), update, {NOISY: loss, Message("smoothed"): _smoothed(loss)}),
        (
            Message("Distance to the teacher, same noise (RMSE)"),
            update,
            {Message("few-step student"): fidelity},
        ),
    ]
    width, height = size
    if width > height:
        return curves(panels, size)
    return stack(*(curves([panel], (width, height // 2)) for panel in panels))


def _smoothed(line):
    """The exponential average of a line, each point having a share of 5 %."""
    smooth, average = [], None
    for x, y in line:
        if math.isfinite(y):
            average = y if average is None else 0.95 * average + 0.05 * y
            smooth.append((x, average))
    return smooth


def run_report(tiles: Image.Image, loss: Line, fidelity: Line) -> Image.Image:
    """A `grid` with a run's curves beside it, or below where it is wide."""
    if tiles.width > 560:
        return stack(tiles, run_curves(loss, fidelity))
    return stack(tiles, run_curves(loss, fidelity, (430, max(440, tiles.height))), across=True)


def fit_report(rows: Sequence[Mapping[str, Any]], counted: Text = STEPS) -> Image.Image:
    """A fit's error against what was counted, on a logarithmic scale; `rows` as `SolverFit.rows`.

    What no logarithm can show is left out.
    """

    def line(key, rows, at="count"):
        return [(row[at], row[key]) for row in rows if 0 < row[key] < math.inf]

    lines = {
        Message("fitted"): line("fitted", rows),
        Message("auto, unfitted"): line("auto", rows, "auto_at"),
        Message("fitted, median"): line("median", rows),
    }
    if kept := line("fitted", [row for row in rows if not row["gained"]]):
        lines[NO_GAIN] = kept
    title = Message("Distance to the converged picture, held-out noise (mean, in deviations)")
    return curves([(title, counted, lines)], (760, 340))


def schedules(data: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Image.Image:
    """Step grids over their steps: `data` {name: {"time": [...], "log_snr": [... or None at either end]}}."""

    def lines(key):
        return {name: _known(enumerate(values[key])) for name, values in data.items()}

    return curves(
        [
            (Message("log signal-to-noise (lambda)"), Message("step"), lines("log_snr")),
            (Message("model time (1 noise, 0 picture)"), Message("step"), lines("time")),
        ]
    )


def sampler(data: Mapping[str, Any]) -> Image.Image:
    """A sampler's weights as bars, and its lambda, churn and sigma over the calls.

    `data` as `nodes.inspect_sampler` makes it.
    """

    def line(key):
        calls = range(1, len(data["weights"]) + 1)
        return _known(zip(calls, data[key]))

    weights = Message(
        "weight of each prediction in the picture (seed survival {survival:.2f})", survival=data["survival"]
    )
    call, title, lines = Message("call"), "lambda", {"lambda": line("log_snr")}
    if data["churn"]:
        title, lines = Message("lambda and churn"), {**lines, "churn": line("churn")}
    levels = (Message("noise level sigma"), call, {"sigma": line("sigmas")})
    return stack(
        curves([(weights, call, {BARS: line("weights")})], (760, 280)),
        curves([(title, call, lines), levels], (760, 260)),
    )


def _known(line):
    """A line without the points that have no y."""
    return [(x, y) for x, y in line if y is not None]
