"""Usual settings by model family: the only place that knows families by name.

A family that is not listed trains with general settings.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The usual settings of one family.

    cfg   the guidance that its users sample with; 1 where guidance is an input of the network
    rank  of a LoRA, and lr its peak learning rate

    Sources: the papers' and trainers' own (LCM-LoRA 1e-4 at rank 64; PCM 5e-6 at a batch of 160, rank 64 and
    32 on SD3), scaled to batches of one GPU.
    """

    cfg: float
    rank: int = 32
    lr: float = 1e-4


UNKNOWN = Family(cfg=4.0)
# by class name in comfy.supported_models, whose settings subclasses inherit
FAMILIES = {
    "EmojiConfig": Family(cfg=2.0, rank=16, lr=2e-3),
    "SD15": Family(cfg=6.0, rank=64),
    "SD20": Family(cfg=6.0, rank=64),
    "SDXL": Family(cfg=6.5, rank=64, lr=5e-5),
    "SD3": Family(cfg=5.0, lr=5e-5),
    "AuraFlow": Family(cfg=3.5),
    "PixArtAlpha": Family(cfg=4.5),
    "HunyuanDiT": Family(cfg=5.0),
    "Flux": Family(cfg=1.0, lr=5e-5),
    "Chroma": Family(cfg=4.0, lr=5e-5),
    "Lumina2": Family(cfg=4.0, lr=5e-5),
    "QwenImage": Family(cfg=4.0, rank=16, lr=5e-5),
    "HiDream": Family(cfg=5.0, rank=16, lr=5e-5),
    "HunyuanVideo": Family(cfg=1.0, rank=16, lr=5e-5),
    "WAN21_T2V": Family(cfg=5.0, lr=5e-5),
    "LTXV": Family(cfg=3.0, lr=5e-5),
}
# what the host loads by the side of models of pictures and videos, and the nearest class of all its kind
OTHERS = {
    "StableAudio": "sound",
    "ACEStep": "sound",
    "ACEStep15": "sound",
    "MiniMaxMusic3": "sound",
    "Hunyuan3Dv2": "shapes in 3D",
    "TripoSplat": "shapes in 3D",
    "Trellis2": "shapes in 3D",
    "RT_DETR_v4": "boxes around things",
    "SAM3": "outlines of things",
    "DepthAnything3": "depth",
}
# whose bases were trained with zeros for no prompt (SDXL's pipeline still takes them, SD3's drops out its
# encoders to them); others take an empty text's encoding
OF_ZEROS = {"EmojiConfig", "SDXL", "SD3"}
# the same by the names of `formats.lora_keys`, which a diffusers model has
FAMILIES |= {
    "sd1": FAMILIES["SD15"],
    "sd2": FAMILIES["SD20"],
    "sdxl": FAMILIES["SDXL"],
    "sd3": FAMILIES["SD3"],
    "flux": FAMILIES["Flux"],
}


def makes_otherwise(*names: str) -> str | None:
    """What a model of those classes makes instead of pictures or videos, None where it makes these."""
    return next((OTHERS[name] for name in names if name in OTHERS), None)


def takes_zeros(*names: str) -> bool:
    """Whether zeros are what a model of one of those families was trained with for no prompt."""
    return not OF_ZEROS.isdisjoint(names)


def usual(*names: str) -> Family:
    """The settings of the first of those families that is listed; `UNKNOWN` where none is."""
    return next((FAMILIES[name] for name in names if name in FAMILIES), UNKNOWN)
