"""The shared backend that nodes and the command line drive: torch, safetensors, numpy, Pillow and
`diffusion`.

It knows of a model only what `denoiser.Denoiser` says. A run is a generator over a state that can be saved at
any step; the caller owns progress, previews and cancellation.
"""
