"""A grid that answers which setting is enough: near ones in green, the one that is handed on framed."""

import dataclasses
import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from .lettering import font, worded
from .pictures import INK, MUTED, PAPER, Text, to_tiles

LEAST, MOST = 192, 512  # pixels that a tile is wide
NEAR = (22, 132, 72)
LETTER = 1 / 8  # height of the text, of a tile's width: it can be read where a node shows the grid small
GAP = 1 / 24  # between tiles


@dataclasses.dataclass(frozen=True)
class Tile:
    """Pixels (3, H, W) in [-1, 1] with texts below; name: they are the row's name, and not figures;
    near: within the tolerance; chosen: handed on.
    """

    pixels: torch.Tensor
    texts: Sequence[Text] = ()
    name: bool = False
    near: bool = False
    chosen: bool = False


def grid(title: Text, heads: Sequence[Text], rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Rows of tiles below the heads of their columns; the text grows with the tiles."""
    first = rows[0][0].pixels
    width, height, way = _size(*reversed(first.shape[1:]))
    gap, letter = round(GAP * width), round(LETTER * width)
    large, small, title = font(letter), font(round(0.8 * letter)), worded(title)
    line = round(1.25 * letter)
    across = len(heads) * (width + gap) + gap
    lines = textwrap.wrap(title, int((across - 2 * gap) * len(title) / small.getlength(title)))
    texts = max(len(tile.texts) for tiles in rows for tile in tiles)
    top = gap + line * (len(lines) + 1) + gap
    down = height + line * texts + 2 * gap
    picture = Image.new("RGB", (across, top + down * len(rows)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((gap, gap), "\n".join(lines), MUTED, small, spacing=round(0.25 * letter))
    for i, head in enumerate(heads):
        draw.text((gap + i * (width + gap) + width // 2, top - gap), worded(head), MUTED, small, anchor="mb")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            corner = gap + column * (width + gap), top + row * down
            image = Image.fromarray(to_tiles(tile.pixels[None])[0]).resize((width, height), way)
            picture.paste(image, corner)
            _tell(draw, tile, corner, (width, height, line), large)
    return picture


def _size(width, height):
    """(width, height, way of resizing) of a tile for a picture of that size."""
    if width < LEAST:
        factor = -(-LEAST // width)
        return factor * width, factor * height, Image.Resampling.NEAREST
    factor = min(1.0, MOST / width)
    return round(factor * width), round(factor * height), Image.Resampling.LANCZOS


def _tell(draw, tile, corner, size, letters):
    """The texts below a tile, and its frame."""
    (x, y), (width, height, line) = corner, size
    thick = max(3, line // 8)
    if tile.chosen:
        below = y + height + line * len(tile.texts) + thick
        draw.rectangle((x - thick, y + height, x + width + thick - 1, below), NEAR)
        draw.rectangle((x - thick, y - thick, x + width + thick - 1, below), outline=NEAR, width=thick)
    colour = INK if tile.name else PAPER if tile.chosen else NEAR if tile.near else MUTED
    for i, text in enumerate(map(worded, tile.texts)):
        place = (x + width // 2, y + height + i * line + line // 2)
        wide = letters.getlength(text)
        fitting = letters if wide <= width else font(letters.size * width / wide)
        draw.text(place, text, colour, fitting, anchor="mm")
