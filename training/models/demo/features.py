"""Features by which sets of emoji are compared: the layers of a small label classifier, packaged.

`python -m fewstep.training.models.demo.features` trains it on the training emoji (shifts, noise, brightness)
from a seed.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from . import data

HERE = Path(__file__).parent
WIDTH = 48  # channels of the last layer


class Classifier(nn.Module):
    """32x32 RGB in [-1, 1] -> label logits."""

    def __init__(self, labels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 32, 3, padding=1),
                nn.Conv2d(32, 48, 3, stride=2, padding=1),
                nn.Conv2d(48, 64, 3, stride=2, padding=1),
                nn.Conv2d(64, WIDTH, 3, stride=2, padding=1),
            ]
        )
        self.head = nn.Linear(WIDTH, labels)

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each layer holds of pixels (B, 3, 32, 32), (B, channels, height, width)."""
        found = []
        for conv in self.convs:
            found.append(F.silu(conv(found[-1] if found else x)))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Label logits (B, labels)."""
        return self.head(self.layers(x)[-1].mean((2, 3)))


def packaged() -> Classifier:
    """The packaged classifier."""
    net = Classifier(data.label_width())
    net.load_state_dict({k: v.float() for k, v in load_file(HERE / "features.safetensors").items()})
    return net


@torch.no_grad()
def layers(pixels: torch.Tensor) -> list[torch.Tensor]:
    """What each layer of the classifier holds of pixels (N, 3, 32, 32) in [-1, 1]."""
    net = packaged()
    parts = [net.layers(part.cpu().float().clamp(-1, 1)) for part in pixels.split(128)]
    return [torch.cat(layer) for layer in zip(*parts)]


def features(pixels: torch.Tensor) -> torch.Tensor:
    """(N, WIDTH) features of pixels (N, 3, 32, 32) in [-1, 1]: the mean over places of the last layer."""
    return layers(pixels)[-1].mean((2, 3))


@torch.no_grad()
def classify(pixels: torch.Tensor) -> torch.Tensor:
    """The place of the label that the classifier sees in each picture, (N,)."""
    net = packaged()
    return torch.cat([net(p.cpu().float().clamp(-1, 1)).argmax(1) for p in pixels.split(128)])


def train(steps: int = 1200, batch: int = 64, seed: int = 0) -> tuple[Classifier, float]:
    """(the trained classifier, its accuracy on the held-out emoji)."""
    torch.manual_seed(seed)  # a script of its own: nothing else draws from the global generator here
    g = torch.Generator().manual_seed(seed)
    x, y, _ = data.load("train")
    x = data.to_pixels(x)
    net = Classifier(data.label_width())
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,), generator=g)
        images = x[pick]
        dx, dy = torch.randint(-3, 4, (2,), generator=g).tolist()
        images = images.roll((dx, dy), (2, 3))
        images = torch.where(torch.rand(batch, 1, 1, 1, generator=g) < 0.5, images.flip(3), images)
        images = images * (0.8 + 0.4 * torch.rand(batch, 3, 1, 1, generator=g))
        level = 0.2 * torch.rand(batch, 1, 1, 1, generator=g)
        images = images + level * torch.randn(images.shape, generator=g)
        F.cross_entropy(net(images), y[pick]).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    x, y, _ = data.load("held-out")
    with torch.no_grad():
        return net, float((net(data.to_pixels(x)).argmax(1) == y).float().mean())


def main() -> None:
    """Train the classifier and write it here, in half precision."""
    net, accuracy = train()
    save_file(
        {k: v.half().contiguous() for k, v in net.state_dict().items()},
        HERE / "features.safetensors",
        metadata={"held_out_accuracy": f"{accuracy:.3f}"},
    )
    print(f"held-out accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
