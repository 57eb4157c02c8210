"""A Gaussian mixture whose denoiser, probability-flow ODE and consistency function are known exactly: the
tests' oracle.

Means lie on a line, m_k = centre + a_k direction, and all parts have the standard deviation s. At noise level
sigma the mixture is the same with means alpha m_k and variance alpha^2 s^2 + sigma^2, and the ODE dx/dsigma =
(x - x0)/sigma (variance exploding; Song et al. 2021, arXiv:2011.13456, eq. 13) splits exactly:

- along the line it is one-dimensional, and a one-dimensional flow keeps each particle's quantile, so
  G_s(u_s) = G_t(u_t) with G the cumulative distribution: solved by bisection;
- across it the data is one Gaussian, so the offset from the centre scales with sqrt(alpha^2 s^2 + sigma^2).
"""

import dataclasses

import torch
from fewstep.diffusion.predictions import expand


@dataclasses.dataclass(frozen=True)
class LineMixture:
    """Mixture of K Gaussians on a line in R^D; positions and weights (K,), centre and direction (D,),
    float64.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    centre: torch.Tensor
    direction: torch.Tensor
    std: float

    @property
    def variance(self):
        """Mean over the D coordinates of the data's variance."""
        mean = (self.weights * self.positions).sum()
        spread = (self.weights * (self.positions - mean) ** 2).sum()
        return float(self.std**2 + spread / len(self.direction))

    def sample(self, count, generator):
        """x_0 (count, D)."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, len(self.centre), generator=generator, dtype=torch.float64)
        return self.centre + self.positions[k, None] * self.direction + self.std * noise

    def denoise(self, x, path, sigma):
        """E[x_0 | x_t = x], x (B, D), sigma a number or (B,)."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        a, s = expand(path.alpha(sigma), x), expand(sigma, x)
        variance = (a * self.std) ** 2 + s**2
        u = (x - a * self.centre) @ self.direction
        offset = u[:, None] - a * self.positions
        responsibility = (self.weights.log() - offset**2 / (2 * variance)).softmax(1)  # (B, K)
        gain = a * self.std**2 / variance
        mean = (responsibility @ self.positions)[:, None] * self.direction + self.centre
        return mean + gain * (x - a * mean)

    def flow(self, x, path, sigma, sigma_next):
        """The exact solution of the probability-flow ODE: x (B, D) at sigma carried to sigma_next."""
        sigma, target = (torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (sigma, sigma_next))
        a, b = path.alpha(sigma), path.alpha(target)
        s, r = (a * self.std).hypot(sigma), (b * self.std).hypot(target)
        offset = x - a[:, None] * self.centre
        u = offset @ self.direction
        across = offset - u[:, None] * self.direction
        along = self._quantile(self._log_tails(u, a, s), b, r)
        return b[:, None] * self.centre + along[:, None] * self.direction + across * (r / s)[:, None]

    def consistency(self, x, path, sigma):
        """The exact consistency function: where the ODE through x at sigma ends, x_0 (B, D)."""
        return self.flow(x, path, sigma, 0.0)

    def _log_tails(self, u, scale, std):
        """log of the cumulative distribution and of its complement at u (B,); both, so that neither tail is
        lost.
        """
        z = (u[:, None] - scale[:, None] * self.positions) / std[:, None]
        log = self.weights.log()
        return (log + torch.special.log_ndtr(z)).logsumexp(1), (log + torch.special.log_ndtr(-z)).logsumexp(1)

    def _quantile(self, tails, scale, std):
        """The u whose tails are these, by bisection to the last bit."""
        low = scale * self.positions.min() - 40 * std
        high = scale * self.positions.max() + 40 * std
        below, above = tails
        for _ in range(100):
            middle = (low + high) / 2
            lower, upper = self._log_tails(middle, scale, std)
            # compare in the smaller tail, where logarithms still tell neighbours apart
            left = torch.where(below < above, lower < below, upper > above)
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        return (low + high) / 2


def line_mixture(dimensions=4, parts=3, std=0.2, seed=0):
    """A mixture for tests: `parts` unequal Gaussians on a random line in R^dimensions, positions in about
    [-1.5, 1.5].
    """
    g = torch.Generator().manual_seed(seed)
    direction = torch.randn(dimensions, generator=g, dtype=torch.float64)
    weights = torch.rand(parts, generator=g, dtype=torch.float64) + 0.5
    return LineMixture(
        torch.linspace(-1.5, 1.5, parts, dtype=torch.float64),
        weights / weights.sum(),
        0.3 * torch.randn(dimensions, generator=g, dtype=torch.float64),
        direction / direction.norm(),
        std,
    )
