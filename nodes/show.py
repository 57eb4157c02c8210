"""Pictures and data as node outputs."""

import numpy as np
import torch
from comfy_api.latest import io, ui


def image(picture):
    """A Pillow picture as an IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def output(node, picture, data, *others):
    """An IMAGE output that the node shows by itself, followed by `others`; `data` goes to the panel under "fewstep"."""
    shown = image(picture)
    return io.NodeOutput(shown, *others, ui={**ui.PreviewImage(shown, cls=node).as_dict(), "fewstep": [data]})
