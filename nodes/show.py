"""What a node shows: pictures, data, a line of text."""

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer

from ..diffusion.faults import Message
from .server import messages

EVENT = "fewstep.say"


def image(picture: Image.Image) -> torch.Tensor:
    """A Pillow picture as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def output(node: type, picture: Image.Image, data: dict, *others: Any) -> io.NodeOutput:
    """An IMAGE output that the node itself shows, then `others`; `data` goes to the panel under "fewstep"."""
    shown = image(picture)
    return io.NodeOutput(shown, *others, ui={**ui.PreviewImage(shown, cls=node).as_dict(), "fewstep": [data]})


def say(node: str | None, text: Message | str, used: dict[str, float] | None = None) -> None:
    """A line of text on the node of that id, in the user's language.

    used: {input: number} of automatic settings as they are. The interface shows both on the node of the
    workflow that was queued alone, in a place that is kept for it (`js/looks/status.js`).
    """
    server = getattr(PromptServer, "instance", None)  # none when ComfyUI is used as a library
    if server is not None and node is not None:
        said = {"node": node, "workflow": _workflow(server), "text": messages.told(text), "used": used or {}}
        server.send_sync(EVENT, said)


def _workflow(server: PromptServer) -> str | None:
    """The id of the workflow that the running job is of; None for a job that no workflow belongs to."""
    for _, _, _, extra, *_ in list(server.prompt_queue.currently_running.values()):
        workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
        return workflow.get("id")
    return None
