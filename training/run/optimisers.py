"""The optimisers of a run, by name: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), and the same with its
two moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861) by a library that the user has installed.
"""

from collections.abc import Sequence

import torch

from ...diffusion.faults import BadValue

ADAMW, ADAMW_8BIT = "adamw", "adamw8bit"
OPTIMISERS = (ADAMW, ADAMW_8BIT)
MOMENTUM, SQUARES = 0.9, 0.99  # decay a step of the means of gradients and of their squares


def check(name: str, device: torch.device | str) -> None:
    """Raise ValueError where that optimiser can't be had on that device."""
    if name == ADAMW_8BIT:
        _in_8_bits(torch.device(device))


def optimiser(
    name: str, parameters: Sequence[torch.Tensor], lr: float, momentum: float = MOMENTUM
) -> torch.optim.Optimizer:
    """That optimiser of those parameters, its state on their device; momentum: beta_1 of Adam. Raises
    ValueError as `check`.
    """
    options = {"lr": lr, "betas": (momentum, SQUARES), "weight_decay": 0.0}
    if name == ADAMW_8BIT:
        return _in_8_bits(parameters[0].device)(parameters, **options)
    # in one kernel, without temporary copies of all weights
    fused = torch.cuda.is_available() and all(p.is_cuda for p in parameters)
    return torch.optim.AdamW(parameters, fused=fused or None, **options)


def step(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """One step, by no compiler: torchao would compile for each shape of a layer, which takes minutes."""
    for group in optimiser.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    with torch.compiler.set_stance("force_eager"):
        optimiser.step()


def _in_8_bits(device):
    """The class of AdamW in 8 bits."""
    why = []
    for found in (_bitsandbytes, _torchao) if device.type == "cuda" else (_torchao,):
        try:
            return found()
        except Exception as error:  # whatever a library built for another PyTorch raises
            why.append(str(error))
    raise BadValue(
        "optimizer must be adamw on this machine, got {got}: no library for it can be used ({why}). Install "
        "bitsandbytes (for CUDA) or torchao with pip, or set optimizer to adamw.",
        got=ADAMW_8BIT,
        why="; ".join(why),
    )


def _bitsandbytes():
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit


def _torchao():
    from torchao.optim import AdamW8bit

    return AdamW8bit


# ---- its state ---------------------------------------------------------------------------------


def state(optimiser: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """{"<parameter>.<name>": tensor} of all that it keeps, no two of them in one memory."""
    found, seen = {}, set()
    for number, parameter in enumerate(parameters):
        for name, value in _parts(optimiser, parameter):
            tensor = torch.as_tensor(value)
            shared = tensor.data_ptr() in seen  # a table of all parameters'
            seen.add(tensor.data_ptr())
            found[f"{number}.{name}"] = tensor.clone() if shared else tensor
    return found


def restore(
    optimiser: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], tensors: dict[str, torch.Tensor]
) -> None:
    """Take over what `state` gave, bit for bit. A step of length 0 makes the places for it."""
    if not tensors:
        return
    for p in parameters:
        p.grad = torch.zeros_like(p)
    step(optimiser, 0.0)
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            for name, value in _parts(optimiser, parameter):
                saved = tensors[f"{number}.{name}"]
                if torch.is_tensor(value):
                    _same_shape(name, value, saved).copy_(saved)
                else:
                    optimiser.state[parameter][name] = type(value)(saved)


def _parts(optimiser, parameter):
    """(name, tensor or number) of what is kept of a parameter, tensors of other layouts in their parts."""
    for name, value in optimiser.state.get(parameter, {}).items():
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is None:
            yield name, value
        else:
            for part in flatten()[0]:
                yield f"{name}.{part}", getattr(value, part)


def _same_shape(name, place, saved):
    if place.shape != saved.shape or place.dtype != saved.dtype:
        raise BadValue("The state of the optimizer must be of the same one, {name} is not.", name=name)
    return place
