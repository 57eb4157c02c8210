"""Usual settings by model family: the only place that knows families by name. An unknown family trains with the general ones."""

import dataclasses

from . import host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """cfg: guidance that its users sample with; rank and peak learning rate of a LoRA. Sources: the papers' and trainers' own
    (LCM-LoRA 1e-4 at rank 64; PCM 5e-6 at a batch of 160, rank 64 and 32 on SD3), scaled to batches of one GPU."""

    cfg: float
    rank: int = 32
    lr: float = 1e-4


UNKNOWN = Family(cfg=4.0)
# by class name in comfy.supported_models, which subclasses inherit; cfg 1 where guidance is an input of the network
FAMILIES = {
    "EmojiConfig": Family(cfg=2.0, rank=16, lr=2e-3),
    "SD15": Family(cfg=6.0, rank=64), "SD20": Family(cfg=6.0, rank=64), "SDXL": Family(cfg=6.5, rank=64, lr=5e-5),
    "SD3": Family(cfg=5.0, lr=5e-5), "AuraFlow": Family(cfg=3.5), "PixArtAlpha": Family(cfg=4.5), "HunyuanDiT": Family(cfg=5.0),
    "Flux": Family(cfg=1.0, lr=5e-5), "Chroma": Family(cfg=4.0, lr=5e-5), "Lumina2": Family(cfg=4.0, lr=5e-5),
    "QwenImage": Family(cfg=4.0, rank=16, lr=5e-5), "HiDream": Family(cfg=5.0, rank=16, lr=5e-5),
    "HunyuanVideo": Family(cfg=1.0, rank=16, lr=5e-5), "WAN21_T2V": Family(cfg=5.0, lr=5e-5), "LTXV": Family(cfg=3.0, lr=5e-5),
}


def family(model):
    """The settings of a MODEL's family; `UNKNOWN` for one that is not listed."""
    classes = type(model.model.model_config).__mro__
    return next((FAMILIES[c.__name__] for c in classes if c.__name__ in FAMILIES), UNKNOWN)


def shift(model):
    """What the training grid is shifted by: 3 in all, of which a flow model's own shift is a part.

    sigma(t = 1/2) / (1 - sigma) is that shift on a flow path.
    """
    sampling = model.get_model_object("model_sampling")
    if host.path_of(sampling) is not host.FLOW:
        return 3.0
    middle = float(sampling.percent_to_sigma(0.5))
    return max(1.0, min(3.0, 3.0 * (1 - middle) / middle))
