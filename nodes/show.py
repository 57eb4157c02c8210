"""What a node shows: pictures, data, a line of text."""

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer

from ..diffusion.faults import Message
from .server import messages


def image(picture: Image.Image) -> torch.Tensor:
    """A Pillow picture as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def output(node: type, picture: Image.Image, data: dict, *others: Any) -> io.NodeOutput:
    """An IMAGE output that the node itself shows, then `others`; `data` goes to the panel under "fewstep"."""
    shown = image(picture)
    return io.NodeOutput(shown, *others, ui={**ui.PreviewImage(shown, cls=node).as_dict(), "fewstep": [data]})


def say(node: str | None, text: Message | str) -> None:
    """A line of text on the node of that id, in the user's language."""
    server = getattr(PromptServer, "instance", None)  # none when ComfyUI is used as a library
    if server is not None and node is not None:
        server.send_progress_text(messages.told(text), node)
