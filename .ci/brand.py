"""Draws the pack's icon (400 x 400) and banner (1260 x 540, 21:9), which the registry shows.

    python .ci/brand.py      writes docs/icon.png and docs/banner.png

Both show what the pack does: from noise to a picture along a curve, in four steps.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent.parent / "docs"
ICON, BANNER = (400, 400), (1260, 540)
FINE = 3  # drawn that many times as large, then reduced
NIGHT, DAWN = (17, 22, 38), (38, 52, 92)  # of the ground, from one corner to the other
LINE, POINT, SUN = (96, 150, 255), (255, 255, 255), (255, 176, 72)
STEPS = 4


def ground(size: tuple[int, int]) -> Image.Image:
    """The ground, lighter towards the lower right."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    share = ((x / width + y / height) / 2)[..., None]
    pixels = np.array(NIGHT) * (1 - share) + np.array(DAWN) * share
    return Image.fromarray(pixels.round().astype(np.uint8))


def speckle(picture: Image.Image, middle: tuple[float, float], radius: float) -> None:
    """A disk of coloured noise."""
    side = 2 * math.ceil(radius)
    grain = max(1, side // 26)
    cells = -(-side // grain)
    noise = np.random.default_rng(4).integers(40, 256, (cells, cells, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((cells * grain, cells * grain), Image.Resampling.NEAREST)
    _disk(picture, large.crop((0, 0, side, side)), middle)


def sun(picture: Image.Image, middle: tuple[float, float], radius: float) -> None:
    """The picture at the end: a smooth disk."""
    side = 2 * math.ceil(radius)
    y, x = np.mgrid[0:side, 0:side] / side
    light = np.clip(1.15 - np.hypot(x - 0.35, y - 0.3), 0.45, 1)[..., None]
    pixels = (np.array(SUN) * light).round().astype(np.uint8)
    _disk(picture, Image.fromarray(pixels), middle)


def _disk(picture, image, middle):
    side = image.width
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), 255)
    picture.paste(image, (round(middle[0] - side / 2), round(middle[1] - side / 2)), mask)


def way(picture: Image.Image, box: tuple[float, float, float, float], scale: float, disk: float) -> None:
    """Noise, the curve with its steps, and the picture within a box; disk: radius of both ends."""
    left, top, right, bottom = box

    def at(t):
        return left + t * (right - left), top + (bottom - top) * (3 * t**2 - 2 * t**3)

    draw = ImageDraw.Draw(picture)
    draw.line([at(i / 200) for i in range(201)], LINE, round(7 * scale), joint="curve")
    for step in range(1, STEPS):
        x, y = at(step / STEPS)
        draw.ellipse((x - 11 * scale, y - 11 * scale, x + 11 * scale, y + 11 * scale), POINT)
    speckle(picture, at(0), disk * scale)
    sun(picture, at(1), disk * scale)


def icon() -> Image.Image:
    """The icon."""
    large = ground((ICON[0] * FINE, ICON[1] * FINE))
    way(large, tuple(FINE * v for v in (78, 84, 322, 316)), FINE, 50)
    return large.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The banner."""
    large = ground((BANNER[0] * FINE, BANNER[1] * FINE))
    way(large, tuple(FINE * v for v in (130, 150, 520, 390)), 1.2 * FINE, 58)
    draw = ImageDraw.Draw(large)
    draw.text((FINE * 660, FINE * 190), "Fewstep", POINT, ImageFont.load_default(FINE * 104))
    said = "Good pictures in 1 to 8 steps,\nfrom the model in your graph"
    draw.text((FINE * 664, FINE * 325), said, (190, 205, 240), ImageFont.load_default(FINE * 34), spacing=24)
    return large.resize(BANNER, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.png", optimize=True)
