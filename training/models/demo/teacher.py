"""The packaged teachers as `Denoiser`s: real models of real images, for the demo, the tests and the nodes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from ....diffusion.faults import BadValue
from ....diffusion.paths import FLOW, VARIANCE_EXPLODING
from ....diffusion.predictions import expand, to_x0
from ....diffusion.schedules.grids import discrete_sigma, flow_sigma, nearest_index
from ..fingerprint import fingerprint
from . import data
from .net import CHANNELS, KINDS, SIZE, EmojiNet, discrete_sigmas

HERE = Path(__file__).parent


def weights(kind: str) -> dict[str, torch.Tensor]:
    """The state dict of a teacher, as stored (half precision)."""
    if kind not in KINDS:
        raise BadValue("teacher must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)
    return load_file(HERE / f"{kind}.safetensors")


def label_vector(label: str | None = None) -> torch.Tensor:
    """A label's conditioning (labels,), all zero without one; raises ValueError that lists the known ones."""
    numbers = data.label_numbers()
    vector = torch.zeros(data.label_width())
    if label is not None:
        if label not in numbers:
            raise BadValue("label must be one of: {numbers}; got {got!r}.", numbers=list(numbers), got=label)
        vector[numbers[label]] = 1
    return vector


class DemoTeacher:
    """A `Denoiser` over one of the packaged networks, with every label as a condition.

    kind   flow: x = (1 - s) x_0 + s eps; epsilon: x = x_0 + s eps, as ComfyUI's samplers have it
    state  weights in place of the packaged ones
    """

    def __init__(
        self,
        kind: str = "flow",
        device: str | torch.device = "cpu",
        state: Mapping[str, torch.Tensor] | None = None,
    ):
        state = state or weights(kind)
        self.kind, self.device = kind, torch.device(device)
        self.labels = list(data.label_numbers())
        self.module = EmojiNet(kind, data.label_width())
        self.module.load_state_dict({k: v.float() for k, v in state.items()})
        self.module.to(self.device).eval().requires_grad_(False)
        self.path = FLOW if kind == "flow" else VARIANCE_EXPLODING
        self.shape, self.conditions = (CHANNELS, SIZE, SIZE), len(self.labels)
        self.table = discrete_sigmas()
        self.sigma_of = flow_sigma() if kind == "flow" else discrete_sigma(self.table)
        self.prediction = "velocity" if kind == "flow" else "epsilon"
        self.noise_scale = 1.0
        self.base = fingerprint(self.module)
        self._labels = torch.stack([label_vector(label) for label in [*self.labels, None]]).to(self.device)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        home, x = x.device, x.to(self.device)
        sigma, condition = sigma.to(self.device, torch.float32), condition.to(self.device)
        context = self._labels[condition][:, None]
        level = expand(sigma, x)
        if self.kind == "flow":
            velocity = self.module(x, 1000 * sigma, context)
            return to_x0(velocity, "velocity", x, 1 - level, level).to(home)
        # as ComfyUI's discrete sampling finds it
        index = nearest_index(sigma, self.table).float()
        scale = (level.square() + 1).rsqrt()
        eps = self.module(x * scale, index, context)
        return to_x0(eps, "epsilon", x, torch.ones_like(level), level).to(home)
