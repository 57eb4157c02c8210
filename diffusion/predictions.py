"""The one place that converts between what networks predict: x0, eps, v, velocity.

With x = alpha x_0 + sigma eps:

kind        definition               x_0 from it                                     undefined at
x0          x_0                      x0                                              -
epsilon     eps                      (x - sigma eps) / alpha                         alpha = 0
v           alpha eps - sigma x_0    (alpha x - sigma v) / (alpha^2 + sigma^2)       -
velocity    eps - x_0                (x - sigma u) / (alpha + sigma)                 -

Sources: Salimans & Ho 2022 (arXiv:2202.00512) for v, Lipman et al. 2022 (arXiv:2210.02747) and Liu et al. 2022
(arXiv:2209.03003) for the velocity. `alpha` and `sigma` must broadcast against `x`; `expand` makes them so.
"""

KINDS = ("x0", "epsilon", "v", "velocity")


def expand(level, x):
    """A scalar or (B,) tensor of noise levels, shaped to broadcast against x (B, ...)."""
    return level.reshape(-1, *[1] * (x.ndim - 1)).to(x) if level.ndim else level.to(x)


def to_x0(prediction, kind, x, alpha, sigma):
    """x_0 from a network output of the given kind; shapes (B, ...)."""
    if kind == "x0":
        return prediction
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha * alpha + sigma * sigma)
    if kind == "velocity":
        return (x - sigma * prediction) / (alpha + sigma)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")


def from_x0(x0, kind, x, alpha, sigma):
    """The network output of the given kind that means this x_0; sigma must not be 0 except for kind x0."""
    if kind == "x0":
        return x0
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[kind]
