"""Pictures of a run: a labelled grid of images, and curves. Pillow only."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, FAINT, PAPER = (40, 42, 48), (130, 134, 142), (205, 208, 214), (255, 255, 255)
NOISY = "each update"  # a line drawn thin and grey, behind the others
BARS = "bars"  # a line drawn as bars
NO_GAIN = "no gain: the classical solver is kept"  # a line drawn as rings
COLOURS = ((37, 99, 235), (220, 92, 36), (22, 140, 90), (140, 70, 190))


def to_tiles(pixels):
    """Pixels (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    return (
        ((pixels.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    )


def grid(columns, rows, title="", scale=1, gap=6, notes=None):
    """A labelled grid: `columns` {heading: pixels (R, 3, H, W)}, `rows` R labels; headings may hold newlines.

    notes: {heading: R short texts}, each written under its tile.
    """
    notes = notes or {}
    tiles = {heading: to_tiles(pixels) for heading, pixels in columns.items()}
    height, width = (scale * s for s in next(iter(tiles.values())).shape[1:3])
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = 18 + max((int(probe.textlength(r, small)) for r in rows), default=0)
    texts = [*tiles, *(t for column in notes.values() for t in column)]
    cell = max(width, *(int(probe.multiline_textbbox((0, 0), t, small)[2]) for t in texts)) + gap
    below = 18 if notes else 0
    top = (30 if title else 8) + 17 * max(h.count("\n") + 1 for h in tiles) + 8
    picture = Image.new(
        "RGB", (left + cell * len(tiles) + gap, top + (height + below + gap) * len(rows) + gap), PAPER
    )
    draw = ImageDraw.Draw(picture)
    draw.text((10, 8), title, INK, font)
    for c, (heading, images) in enumerate(tiles.items()):
        x = left + c * cell
        draw.multiline_text(
            (x + cell // 2 - gap // 2, top - 8), heading, INK, small, anchor="md", align="center"
        )
        for r, image in enumerate(images[: len(rows)]):
            tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            y = top + r * (height + below + gap)
            picture.paste(tile, (x + (cell - gap - width) // 2, y))
            if heading in notes:
                draw.text(
                    (x + cell // 2 - gap // 2, y + height + 2), notes[heading][r], MUTED, small, anchor="mt"
                )
    for r, label in enumerate(rows):
        draw.text((left - 10, top + r * (height + below + gap) + height // 2), label, INK, small, anchor="rm")
    return picture


def curves(panels, size=(860, 300)):
    """Line plots side by side: `panels` [(title, x label, {name: [(x, y), ...]})]; a y axis is logarithmic
    where all y > 0.
    """
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    share = width // len(panels)
    for i, (title, x_label, lines) in enumerate(panels):
        _panel(draw, (i * share + 62, 34, (i + 1) * share - 16, height - 40), title, x_label, lines)
    return picture


def _panel(draw, box, title, x_label, lines):
    """One plot in the box: `lines` {name: [(x, y), ...]}; BARS is drawn as bars from 0, NO_GAIN as rings
    around points.
    """
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    x0, y0, x1, y1 = box
    draw.text((x0, 10), title, INK, font)
    points = np.array([p for line in lines.values() for p in line], dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        draw.text((x0 + 8, y0 + 8), "no data yet", INK, small)
        return
    bars = BARS in lines
    log = bool((points[:, 1] > 0).all()) and not bars
    change = np.log10 if log else np.asarray
    xs, ys = points[:, 0], change(points[:, 1])
    ys = np.append(ys, 0.0) if bars else ys
    beside = 0.6 if bars else 0.5 * (xs.min() == xs.max())
    xa, xb = xs.min() - beside, xs.max() + beside
    pad = 0.06 * (ys.max() - ys.min()) or (0.1 if log else 0.1 * abs(ys[0]) or 1.0)
    ya, yb = ys.min() - pad, ys.max() + pad

    def at(x, y):
        return x0 + (x - xa) / (xb - xa) * (x1 - x0), y1 - (change(y) - ya) / (yb - ya) * (y1 - y0)

    for level in np.linspace(ya, yb, 5):
        value = 10**level if log else level
        y = y1 - (level - ya) / (yb - ya) * (y1 - y0)
        draw.line((x0, y, x1, y), FAINT)
        draw.text((x0 - 6, y), f"{0.0 if abs(value) < 1e-9 else value:.3g}", INK, small, anchor="rm")
    ticks = sorted(set(xs))
    if len(ticks) > 1 and (xs.max() > 12 or (xs != xs.round()).any()):
        ticks = np.linspace(xa, xb, 5)
    for value in ticks:
        text = f"{value:.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.3g}"
        draw.text((x0 + (value - xa) / (xb - xa) * (x1 - x0), y1 + 6), text, INK, small, anchor="mt")
    draw.text(((x0 + x1) / 2, y1 + 22), x_label, INK, small, anchor="mt")
    shown = [name for name in lines if name != BARS]
    for name, line in lines.items():
        path = [at(x, y) for x, y in line if np.isfinite(y)]
        if name == BARS:
            half = max(1, 0.38 * (x1 - x0) / (xb - xa))
            for x, y in path:
                draw.rectangle((x - half, min(y, at(0, 0)[1]), x + half, max(y, at(0, 0)[1])), COLOURS[0])
            continue
        n = shown.index(name)
        colour = {NOISY: FAINT, NO_GAIN: MUTED}.get(name, COLOURS[n % len(COLOURS)])
        if name == NO_GAIN:
            for x, y in path:
                draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=colour, width=2)
        elif len(path) > 1:
            draw.line(path, colour, 1 if name == NOISY else 2, joint="curve")
        for x, y in path if len(path) < 30 and name != NO_GAIN else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        draw.text((x1 - 4, y0 + 4 + 15 * n), name, MUTED if name == NOISY else colour, small, anchor="rt")


def run_curves(loss, fidelity, size=(860, 300)):
    """Loss (raw and smoothed) and fidelity of a run over its updates, side by side, or one below the other
    where that is taller.
    """
    smooth, value = [], None
    for x, y in ((x, y) for x, y in loss if math.isfinite(y)):
        value = y if value is None else 0.95 * value + 0.05 * y
        smooth.append((x, value))
    panels = [
        ("Loss", "update", {NOISY: loss, "smoothed": smooth}),
        ("Distance to the teacher, same noise (RMSE)", "update", {"few-step student": fidelity}),
    ]
    if size[0] > size[1]:
        return curves(panels, size)
    return stack(*(curves([panel], (size[0], size[1] // 2)) for panel in panels))


def run_report(tiles, loss, fidelity):
    """A `grid` with a run's curves beside it, or below where it is wide."""
    if tiles.width > 560:
        return stack(tiles, run_curves(loss, fidelity))
    return stack(tiles, run_curves(loss, fidelity, (430, max(440, tiles.height))), across=True)


def fit_report(rows):
    """A fit's error against step count, logarithmic: `rows` as `SolverFit.rows`; what no logarithm can show
    is left out.
    """

    def line(key, rows=rows):
        return [(row["steps"], row[key]) for row in rows if 0 < row[key] < float("inf")]

    lines = {"fitted": line("fitted"), "auto, unfitted": line("auto"), "best classical": line("classical")}
    if kept := line("fitted", [row for row in rows if not row["gained"]]):
        lines[NO_GAIN] = kept
    return curves(
        [("Distance to the converged picture, held-out noise (RMSE / deviation)", "steps", lines)], (760, 340)
    )


def schedules(data):
    """Step grids over their steps: `data` {name: {"time": [...], "log_snr": [... or None at either end]}}."""

    def lines(key):
        return {
            name: [(i, v) for i, v in enumerate(values[key]) if v is not None]
            for name, values in data.items()
        }

    return curves(
        [
            ("log signal-to-noise (lambda)", "step", lines("log_snr")),
            ("model time (1 noise, 0 picture)", "step", lines("time")),
        ]
    )


def sampler(data):
    """A sampler's weights as bars, and its lambda, churn and sigma over the calls; `data` as
    `nodes.inspect_sampler` makes it.
    """
    calls = range(1, len(data["weights"]) + 1)

    def line(key):
        return [(i, v) for i, v in zip(calls, data[key]) if v is not None]

    return stack(
        curves(
            [
                (
                    f"weight of each prediction in the picture (seed survival {data['survival']:.2f})",
                    "call",
                    {BARS: line("weights")},
                )
            ],
            (760, 280),
        ),
        curves(
            [
                (
                    "lambda and churn" if data["churn"] else "lambda",
                    "call",
                    {"lambda": line("log_snr"), **({"churn": line("churn")} if data["churn"] else {})},
                ),
                ("noise level sigma", "call", {"sigma": line("sigmas")}),
            ],
            (760, 260),
        ),
    )


def column(pixels, least=128, most=256):
    """Pictures (N, 3, H, W) below each other, enlarged to `least` pixels of width or reduced to `most`."""
    tiles = [Image.fromarray(tile) for tile in to_tiles(pixels)]
    width, height = tiles[0].size
    factor = max(1, -(-least // width)) if width < least else min(1.0, most / width)
    size = round(factor * width), round(factor * height)
    out = Image.new("RGB", (size[0], size[1] * len(tiles)))
    for n, tile in enumerate(tiles):
        out.paste(
            tile.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS),
            (0, n * size[1]),
        )
    return out


def png(picture):
    """The picture as bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def stack(*images, across=False):
    """Pictures one below the other, or side by side, on white."""
    widths, heights = [i.width for i in images], [i.height for i in images]
    picture = Image.new("RGB", (sum(widths), max(heights)) if across else (max(widths), sum(heights)), PAPER)
    at = 0
    for image in images:
        picture.paste(image, (at, 0) if across else (0, at))
        at += image.width if across else image.height
    return picture
