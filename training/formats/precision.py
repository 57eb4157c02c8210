"""A LoRA file at half its size, in the precision that loses least of it.

fp16 rounds a number by up to 2^-11 of it, bf16 by 2^-9: fp16 is the better one within its range, 6e-5 to
65504. The factors of a layer are brought there by a power of 2 that one gains and the other loses, which
changes nothing of their product.
"""

import math
from collections.abc import Mapping

import torch

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FACTORS = {".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight"}


def in_precision(tensors: Mapping[str, torch.Tensor], precision: str) -> dict[str, torch.Tensor]:
    """The same LoRA, of float32 factors in any format, with them in one of PRECISIONS.

    A layer that it would not hold as well as a number in its range stays float32; so do alphas.
    """
    dtype, out = PRECISIONS[precision], dict(tensors)
    if dtype == torch.float32:
        return out
    for up, down in _pairs(tensors):
        pair = _balanced(tensors[up], tensors[down])
        if all(holds(dtype, factor) for factor in pair):
            out[up], out[down] = (factor.to(dtype) for factor in pair)
    return out


def holds(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Whether rounding to that dtype leaves a tensor within half its epsilon (relative, Frobenius norm): none
    of it is out of range, and nothing that counts is below.
    """
    if not dtype.is_floating_point:
        return False
    exact = tensor.double()
    off = (tensor.to(dtype).double() - exact).norm()
    return bool(off <= torch.finfo(dtype).eps / 2 * exact.norm())


def _pairs(tensors):
    """The names of the factors of each layer that has both."""
    for name in tensors:
        for up, down in FACTORS.items():
            other = name.removesuffix(up) + down
            if name.endswith(up) and other in tensors:
                yield name, other


def _balanced(up, down):
    """2^k up and 2^-k down, whose largest numbers are as near to one another as that goes."""
    sizes = [float(factor.abs().max()) if factor.numel() else 0.0 for factor in (up, down)]
    if not all(0 < size < math.inf for size in sizes):
        return up, down
    exponents = [math.frexp(size)[1] for size in sizes]
    k = (exponents[1] - exponents[0]) // 2
    return up * 2.0**k, down * 2.0**-k
