"""Whether a kernel p(x_s | x_t, x0) respects the marginals: for x_t = F_t(x0, eps) it must give x_s with the
law of F_s(x0, eps).

    x_t = F_t(x0, eps),  x_s = kernel(x_t, x0, t, s)    against    F_s(x0, eps'),    for one known x0

That is all that the unified diffusion model asks of the kernel (Su 2022, kexue.fm/archives/9262). Laws are
compared by the energy distance, 2 E|a - b| - E|a - a'| - E|b - b'|, which is 0 for equal laws alone (Szekely
& Rizzo 2013, J. Stat. Plan. Inference 143). Its value for two samples of one law, the floor, is found by
dealing the pooled samples out anew.
"""

import dataclasses

import torch

DEALS = 200  # permutations from which the floor is found
ROUNDING = 1e-6  # share of the samples' size by which laws that are single points may be apart


@dataclasses.dataclass(frozen=True)
class Marginals:
    """`distance` of what the kernel gives, the mean `floor`, the `limit` that 1 in 200 equal laws exceed."""

    distance: float
    floor: float
    limit: float

    @property
    def respected(self):
        """Whether the distance is one that equal laws have."""
        return self.distance <= self.limit


def check_marginals(process, x0, t, s, kappa=0.0, *, generator, count=500, kernel=None, noise=None):
    """`Marginals` of the process's own `transition`, or of `kernel(x_t, x0, t, s) -> x_s`, from t to s < t.

    x0 (1, C, H, W), the known one; noise(x) -> eps draws from the process's law of noise, by default unit
    Gaussian noise from `generator`. Raises ValueError for more than one x0, and times that do not descend.
    """
    if len(x0) != 1:
        raise ValueError(
            f"x0 must be a single image (1, ...), got {len(x0)}. The check is made for one x0 at a time."
        )
    if not s < t:
        raise ValueError(f"s must be below t, got s = {s:g} and t = {t:g}. Sampling goes down in time.")
    noise = noise or (
        lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(
            x.device
        )
    )
    x0 = x0.expand(count, *x0.shape[1:])
    x = process.corrupt(x0, noise(x0), t)
    reached = process.transition(x, x0, t, s, kappa, noise) if kernel is None else kernel(x, x0, t, s)
    return compare(reached, process.corrupt(x0, noise(x0), s), generator)


def compare(a, b, generator):
    """`Marginals` of two samples a (N, ...) and b (M, ...): their energy distance and what it is for equal
    laws.
    """
    pooled = torch.cat([a, b]).flatten(1).double()
    apart = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist")
    side = torch.cat([apart.new_full((len(a),), 1 / len(a)), apart.new_full((len(b),), -1 / len(b))])

    def dealt_anew():
        order = torch.randperm(len(side), generator=generator, device=generator.device)
        return side[order.to(side.device)]

    dealt = torch.stack([side, *(dealt_anew() for _ in range(DEALS))], 1)
    found, *floor = (-(dealt * (apart @ dealt)).sum(0)).tolist()
    slack = ROUNDING * float(pooled.square().sum(1).mean().sqrt())
    return Marginals(found, sum(floor) / DEALS, max(floor) + slack)


def energy_distance(a, b):
    """The energy distance of two samples a (N, ...) and b (M, ...); a float."""
    a, b = (v.flatten(1).double() for v in (a, b))
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())
