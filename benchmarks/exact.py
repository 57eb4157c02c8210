"""Exact denoisers and their converged ODE: what a sampler should give, with no network in the way.

    case = exact.case("8d-flow3")
    x0 = case.denoise(x, sigma)                     # E[x_0 | x], float64 inside, any batch
    image, accuracy = converged(case.denoise, x, case.path, case.sigma_max, case.low, case.deviation)

A model type ("eps", "v", "EDM", "flow shift 1", "flow shift 3") is a path with the noise levels of one: eps
and v have those of Stable Diffusion 1.5 (0.0292 to 14.61), EDM 0.002 to 80. eps and v differ only in the
network's output, not in x.
"""

import dataclasses
import functools
import math

import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, Path
from fewstep.diffusion.samplers import solve
from fewstep.diffusion.schedules.grids import discrete_sigma, flow_sigma
from fewstep.training.models.demo import data

EDM_RANGE = (0.002, 80.0)
TYPES = ("eps", "v", "EDM", "flow shift 1", "flow shift 3")
# name: (model type, dimensions or None for the emoji, parts, std, seed)
CASES = {
    "2d-flow1": ("flow shift 1", 2, 6, 0.2, 1),
    "8d-flow3": ("flow shift 3", 8, 24, 0.3, 2),
    "32d-eps": ("eps", 32, 50, 0.2, 3),
    "8d-edm": ("EDM", 8, 24, 0.1, 4),
    "emoji-flow1": ("flow shift 1", None, None, 0.1, None),
    "emoji-eps": ("eps", None, None, 0.1, None),
}


@dataclasses.dataclass(frozen=True)
class Cloud:
    """An isotropic Gaussian mixture: means (K, D), weights (K,), one standard deviation.

    Its samples have `shape`, D numbers in all.
    """

    means: torch.Tensor
    weights: torch.Tensor
    std: float
    shape: tuple

    @property
    def deviation(self):
        """Standard deviation of the data, as the root of the mean variance of the D coordinates."""
        centred = self.means - self.weights @ self.means
        return math.sqrt(self.std**2 + float((self.weights @ centred.square()).mean()))

    def sample(self, count, generator):
        """x_0 (count, *shape), float64."""
        part = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[part] + self.std * noise).reshape(count, *self.shape)

    def denoise(self, x, path, sigma):
        """E[x_0 | x_t = x], x (B, ...), sigma a number; worked out in float64, returned in the dtype of x."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        a, flat = path.alpha(sigma), x.flatten(1).double()
        variance = (a * self.std) ** 2 + sigma**2
        # -|x - a m|^2 / 2 variance without the term that all parts share
        logits = (flat @ self.means.T - a / 2 * self._squares) * (a / variance) + self.weights.log()
        mean = logits.softmax(1) @ self.means
        x0 = mean + a * self.std**2 / variance * (flat - a * mean)
        return x0.reshape(x.shape).to(x.dtype)

    @functools.cached_property
    def _squares(self):
        return self.means.square().sum(1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A cloud on the path of a model type."""

    name: str
    type: str
    cloud: Cloud

    @property
    def path(self) -> Path:
        return model_type(self.type)[0]

    @property
    def sigma_of(self):
        return model_type(self.type)[1]

    @property
    def sigma_max(self):
        return float(self.sigma_of(torch.ones(1)))

    @property
    def low(self):
        """The noise level from which one step to data is exact to 5e-7 of the parts' own width."""
        return 1e-3 * self.cloud.std

    @property
    def deviation(self):
        return self.cloud.deviation

    def denoise(self, x, sigma):
        return self.cloud.denoise(x, self.path, sigma)


def stable_diffusion_sigmas():
    """sigma / alpha of Stable Diffusion 1.5 at its 1000 indices, ascending, float64: betas between 0.00085
    and 0.012, linear in their square roots (Rombach et al. 2022, arXiv:2112.10752, appendix).
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def model_type(name):
    """(path, sigma_of) of a model type."""
    if name in ("eps", "v"):
        return VARIANCE_EXPLODING, discrete_sigma(stable_diffusion_sigmas())
    if name == "EDM":
        ends = [math.log(v) for v in EDM_RANGE]
        return VARIANCE_EXPLODING, discrete_sigma(torch.linspace(*ends, 1000, dtype=torch.float64).exp())
    if name.startswith("flow shift "):
        return FLOW, flow_sigma(float(name.removeprefix("flow shift ")))
    raise ValueError(f"type must be one of {', '.join(TYPES)}, got {name!r}.")


def random_cloud(dimensions, parts, std, seed):
    """A mixture shaped as a latent of one pixel, with standard normal means and weights that differ by at
    most 3 to 1.
    """
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(parts, dimensions, generator=g, dtype=torch.float64)
    weights = torch.rand(parts, generator=g, dtype=torch.float64) + 0.5
    return Cloud(means, weights / weights.sum(), std, (dimensions, 1, 1))


def emoji_cloud(std=0.1):
    """A mixture with a part on every packaged emoji, in the demo models' units."""
    images = data.load("all", core=False)[0].double()
    weights = torch.full((len(images),), 1 / len(images), dtype=torch.float64)
    return Cloud(images.flatten(1), weights, std, tuple(images.shape[1:]))


def case(name):
    """The case of that name; raises ValueError that lists the known ones."""
    if name not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}, got {name!r}.")
    kind, dimensions, parts, std, seed = CASES[name]
    cloud = emoji_cloud(std) if dimensions is None else random_cloud(dimensions, parts, std, seed)
    return Case(name, kind, cloud)


def converged(denoiser, x, path, sigma_max, low, deviation, tolerance=1e-4, steps=250, most=4000):
    """(x_0, accuracy): the probability-flow ODE from x at sigma_max, by the third-order kernel on ever finer
    grids.

    The grid has equal steps of lambda down to `low` (from 0.1 % of signal on, where the path starts without
    any), then one step to 0. The number of steps is doubled until the result moves by at most `tolerance`
    (RMSE in units of `deviation`) or `most` is reached; accuracy is the last such movement.
    """
    result = None
    first = min(sigma_max, 0.999) if path.sigma_max == 1 else sigma_max
    ends = path.log_snr(torch.tensor([first, low], dtype=torch.float64)).tolist()
    while True:
        levels = path.sigma(torch.linspace(*ends, steps, dtype=torch.float64))
        levels[0] = sigma_max
        grid = torch.cat([levels, levels.new_zeros(1)])
        before, result = result, solve(denoiser, x, grid, path, order=3)
        if before is not None:
            accuracy = rmse(result, before) / deviation
            if accuracy <= tolerance or 2 * steps > most:
                return result, accuracy
        steps *= 2


def rmse(a, b):
    """Root of the mean squared difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def sliced_wasserstein(a, b, directions):
    """Sliced Wasserstein-2 distance of two sets of as many samples (N, ...), over unit directions (P, D)."""
    first = (a.flatten(1).double() @ directions.T).sort(0).values
    second = (b.flatten(1).double() @ directions.T).sort(0).values
    return float((first - second).square().mean().sqrt())


def unit_directions(count, dimensions, seed=0):
    """`count` random unit vectors (count, D)."""
    g = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, dimensions, generator=g, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)
