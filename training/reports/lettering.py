"""What stands on pictures: words in the reader's language, in a font that has them.

English, in the font that Pillow brings, unless `lettered` says otherwise. Pillow's has no Chinese: one of the
fonts that systems come with is taken, and where none of those is found the pictures stay English.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

from PIL import ImageFont

from ...diffusion.faults import ENGLISH, Language, Message

# by language: files that Windows, macOS and Linux have, the plainest first; Pillow looks for them itself
FONTS = {
    "zh": (
        "msyh.ttc",
        "simhei.ttf",
        "PingFang.ttc",
        "Hiragino Sans GB.ttc",
        "STHeiti Light.ttc",
        "NotoSansCJK-Regular.ttc",
        "NotoSansCJKsc-Regular.otf",
        "NotoSansSC-Regular.otf",
        "SourceHanSansSC-Regular.otf",
        "wqy-microhei.ttc",
        "wqy-zenhei.ttc",
        "DroidSansFallbackFull.ttf",
        "DroidSansFallback.ttf",
    )
}
PLAIN = (ENGLISH, None)
_current: ContextVar[tuple[Language, str | None]] = ContextVar("lettering", default=PLAIN)


@contextlib.contextmanager
def lettered(name: str, language: Language) -> Iterator[None]:
    """Within: pictures speak that language, which `FONTS` names; English where no font for it is found."""
    file = found(name)
    token = _current.set(PLAIN if file is None else (language, file))
    try:
        yield
    finally:
        _current.reset(token)


@functools.cache
def found(name: str) -> str | None:
    """The first font of a language that this computer has; None without one, and for English."""
    for file in FONTS.get(name, ()):
        with contextlib.suppress(OSError):
            ImageFont.truetype(file)
            return file
    return None


def worded(text: str | Message) -> str:
    """A message in the language of the picture; any other text as it is."""
    return text.worded(_current.get()[0]) if isinstance(text, Message) else text


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the picture."""
    return _font(_current.get()[1], size)


@functools.cache
def _font(file, size):
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
