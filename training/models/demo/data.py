"""The demo's pictures: Noto emoji at 32x32, packaged as one sheet, each with a label.

`emoji.png` is a grid of 32x32 tiles in the order of `emoji.json` (`{"labels": [...], "emoji": [[name, label,
core], ...]}`). The teachers' training begins with all of them and goes on with the core alone, emoji that
look alike within a label. Of the labels with a core those are offered to users that the teachers draw well.
`python -m fewstep.training.models.demo.data FONT EMOJI_TEST_TXT` makes both files from the font and Unicode's
list. Every HELD_OUT-th emoji of a label is kept out of training.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ....diffusion.faults import BadValue

HERE = Path(__file__).parent
TILE, COLUMNS, HELD_OUT = 32, 32, 20
# pixel value in [-1, 1] = MEAN + STD * model space: the model sees data of zero mean and unit variance
MEAN, STD = 0.64, 0.555

LABELS = {
    "smiling face": [
        "face-smiling",
        "face-affection",
        "face-tongue",
        "face-hand",
        "face-hat",
        "face-glasses",
    ],
    "grumpy face": [
        "face-neutral-skeptical",
        "face-sleepy",
        "face-unwell",
        "face-concerned",
        "face-negative",
    ],
    "cat": ["cat-face"],
    "heart": ["heart"],
    "hand": [
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-single-finger",
        "hand-fingers-closed",
        "hands",
    ],
    "person": ["person", "person-role", "person-fantasy", "person-gesture"],
    "animal face": ["animal-mammal", "monkey-face", "animal-amphibian", "animal-reptile"],
    "bird": ["animal-bird"],
    "sea creature": ["animal-marine", "food-marine"],
    "insect": ["animal-bug"],
    "flower": ["plant-flower"],
    "plant": ["plant-other"],
    "fruit": ["food-fruit"],
    "vegetable": ["food-vegetable"],
    "meal": ["food-prepared", "food-asian"],
    "sweet": ["food-sweet"],
    "drink": ["drink"],
    "building": ["place-building", "place-religious"],
    "car": ["transport-ground"],
    "ship": ["transport-water"],
    "aircraft": ["transport-air"],
    "clock": ["time"],
    "moon": ["sky & weather"],
    "ball": ["sport", "award-medal"],
    "clothing": ["clothing"],
    "instrument": ["musical-instrument", "music"],
    "book": ["book-paper"],
    "tool": ["tool"],
    "zodiac": ["zodiac"],
    "shape": ["geometric"],
}

# label: which of its emoji are the core, as a regular expression on the name
CORE = {
    "smiling face": "",
    "grumpy face": "",
    "cat": "",
    "heart": "",
    "hand": "",
    "flower": "",
    "fruit": "",
    "sweet": "",
    "drink": "",
    "book": "",
    "zodiac": "",
    "shape": "",
    "clock": "o’clock|thirty",
    "moon": "moon|sun",
    "ball": "ball|football",
    "person": "^(baby|child|boy|girl|person|man|woman|older person|old man|old woman|police officer|"
    "detective|guard|ninja|construction worker|person with crown|prince|princess|person wearing turban|"
    "person with skullcap|woman with headscarf|person in tuxedo|person with veil|Santa Claus|Mrs. Claus)$|"
    "^person: ",
    "animal face": "monkey|dog face|wolf|fox|raccoon|cat face|lion|tiger face|horse face|unicorn|cow face|"
    "pig face|mouse face|hamster|rabbit face|bear|koala|panda|frog|boar",
    "car": "automobile|taxi|bus|ambulance|police car|truck|vehicle|lorry|fire engine",
}

# labels with a core that the teachers still draw as mixtures: trained on, not offered
WEAK = ("hand", "sweet", "drink", "ball")


def read_unicode_list(path: str | Path) -> list[tuple[str, str, str]]:
    """[(character, name, subgroup)] of fully qualified one-code-point emoji in Unicode's emoji-test.txt."""
    rows, subgroup = [], None
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        match = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.*)", line)
        if match:
            points = [p for p in match[1].split() if p != "FE0F"]
            if len(points) == 1:
                rows.append((chr(int(points[0], 16)), match[2].strip(), subgroup))
    return rows


def render(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The emoji on white, centred, 32x32 RGB; None where the font has no glyph for it."""
    picture = Image.new("RGBA", (136, 136), "white")
    ImageDraw.Draw(picture).text((68, 68), character, font=font, embedded_color=True, anchor="mm")
    picture = picture.convert("RGB")
    if picture.getextrema() == ((255, 255),) * 3:
        return None
    return picture.resize((TILE, TILE), Image.Resampling.BOX)


def make(font_path: str | Path, list_path: str | Path, folder: str | Path = HERE) -> int:
    """Write emoji.png and emoji.json; returns how many emoji they hold."""
    font = ImageFont.truetype(str(font_path), 109)  # the only size of this bitmap font
    label_of = {s: label for label, subgroups in LABELS.items() for s in subgroups}
    tiles, rows = [], []
    for character, name, subgroup in read_unicode_list(list_path):
        if subgroup in label_of:
            tile = render(character, font)
            if tile is not None:
                tiles.append(tile)
                label = label_of[subgroup]
                rows.append([name, label, int(label in CORE and bool(re.search(CORE[label], name)))])
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(tiles) // COLUMNS) * TILE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    sheet.save(Path(folder) / "emoji.png", optimize=True)
    text = json.dumps({"labels": list(LABELS), "emoji": rows}, ensure_ascii=False, separators=(",", ":"))
    (Path(folder) / "emoji.json").write_text(text.replace("],[", "],\n[") + "\n", encoding="utf-8")
    return len(tiles)


def _index():
    return json.loads((HERE / "emoji.json").read_text(encoding="utf-8"))


def label_width() -> int:
    """How many labels the network's conditioning has, the ones without a core included."""
    return len(_index()["labels"])


def label_numbers() -> dict[str, int]:
    """{label: its place in the conditioning} of the labels that are offered."""
    index = _index()
    offered = {label for _, label, core in index["emoji"] if core} - set(WEAK)
    return {label: i for i, label in enumerate(index["labels"]) if label in offered}


def load(split: str = "train", core: bool = True) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(images (N, 3, 32, 32) in model space, label places (N,), names) of `split`: train, held-out or all."""
    if split not in ("train", "held-out", "all"):
        raise BadValue("split must be train, held-out or all, got {got!r}.", got=split)
    index = _index()
    with Image.open(HERE / "emoji.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows = pixels.shape[0] // TILE
    tiles = pixels.reshape(rows, TILE, COLUMNS, TILE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, TILE, TILE)
    keep, seen = [], {}
    for i, (_, label, is_core) in enumerate(index["emoji"]):
        seen[label] = seen.get(label, 0) + 1
        held_out = seen[label] % HELD_OUT == HELD_OUT // 2
        if core and not is_core:
            continue
        if split == "all" or held_out == (split == "held-out"):
            keep.append(i)
    images = from_pixels(torch.from_numpy(tiles[keep].copy()).float() / 127.5 - 1)
    labels = torch.tensor([index["labels"].index(index["emoji"][i][1]) for i in keep])
    return images, labels, [index["emoji"][i][0] for i in keep]


def from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] to model space."""
    return (pixels - MEAN) / STD


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """Model space to pixels in [-1, 1], not clamped."""
    return x * STD + MEAN


if __name__ == "__main__":
    print(make(*sys.argv[1:3]), "emoji")
