"""The backend shared by nodes and the command line: torch, safetensors, numpy, Pillow and `diffusion`.

It knows of a model only what `models.denoiser.Denoiser` says. A run is a generator over a state that can be
saved at any step; the caller owns progress, previews and cancellation.

What scripts need most is here under a short name, and imported when it is asked for:

    from fewstep.training import fit_denoiser, sample_recipe
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run.fit_denoiser import fit_denoiser, sample_recipe

__all__ = ["fit_denoiser", "sample_recipe"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import fit_denoiser as module

    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
