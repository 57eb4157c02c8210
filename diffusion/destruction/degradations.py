"""Destruction without noise, D_t: alone ("cold") or before the noise of a `forward.Chain` ("hot").

Blur        heat run for tau = w^2/2: the cosine modes i, j of an H x W image fall by
            exp(-tau pi^2 (i^2/H^2 + j^2/W^2)), with w = width sin^2(pi t/2) the blur's standard deviation in
            pixels (Rissanen et al. 2022, arXiv:2206.13397; Hoogeboom & Salimans 2022, arXiv:2209.05557, whose
            schedule it is). Edges reflect, so the mean stays.
Pixelate    means over squares of 1, 2, 4, ... `largest` pixels, faded from one size to the next; squares at
            the edges are cut
Mask        pixels whose `order` is below t become `fill`
Fade        (1 - t) x0 + t other
DrawnMask   a mask whose order is drawn: the noise in the first channel, masked where Phi(eps) < t
DrawnFade   a fade to an image that is drawn: the noise is that image

Blur is exact in frequency: with C the orthonormal cosine basis (DCT-II) of an axis, the blur along it is
C' diag(e) C, a product with one matrix for each axis, which is kept for the last few times. Where e leaves
few modes above rounding, the rows of C that they need do the same in two thin products for each axis.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch.nn.functional import avg_pool2d

from ..faults import BadValue
from ..predictions import expand
from ..samplers import Noise
from .forward import ROUNDING, Chain, ForwardProcess, Time, gaussian, time_of

THIN = 0.55  # share of an axis's modes below which two thin products are faster than a square one


class Degradation(ForwardProcess):
    """D_t without noise: a subclass has `degrade(x0, t)`, t float64 () or (B,) in [0, 1]."""

    noisy = False
    draws = "never"

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        return self.degrade(check_image(x0), time_of(t))

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        raise BadValue(
            "process must have noise to solve for, got {got}, which has none. Use its `transition`, or put "
            "noise behind it with `forward.Chain`.",
            got=self.name,
        )

    def weighted(self, x0: torch.Tensor, terms: Sequence[tuple[float, Time]]) -> torch.Tensor:
        """The sum of w D_t(x0) over `terms` [(w, t)], numbers, as a new tensor.

        A process may share work between the terms.
        """
        return functools.reduce(torch.add, (w * self.corrupt(x0, None, t) for w, t in terms))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(Degradation):
    """Gaussian blur of standard deviation width sin^2(pi t/2) pixels of x0. Raises ValueError for a width
    that is not above 0.
    """

    width: float = 20.0
    name = "blur"

    def __post_init__(self):
        if not 0 < self.width < math.inf:
            raise BadValue(
                "width must be above 0, in pixels, got {got:g}. 20 leaves little of 128 x 128.",
                got=self.width,
            )

    def std(self, t: Time) -> torch.Tensor:
        """The blur's standard deviation at t in pixels, float64."""
        return self.width * torch.sin(time_of(t) * math.pi / 2).square()

    def degrade(self, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not t.ndim:
            return self.weighted(x0, [(1.0, t)]) if t > 0 else x0
        down, across = (_blurs(size, self.std(t), x0) for size in x0.shape[-2:])
        return down @ x0 @ across

    def weighted(self, x0: torch.Tensor, terms: Sequence[tuple[float, Time]]) -> torch.Tensor:
        stds = [float(self.std(t)) for _, t in terms]
        modes = [_modes(size, min(stds), x0.dtype) for size in x0.shape[-2:]]
        if all(m <= THIN * size for m, size in zip(modes, x0.shape[-2:])):
            return _in_few_modes(x0, modes, [w for w, _ in terms], stds)
        if len(terms) > 1:
            return functools.reduce(torch.Tensor.add_, (self.weighted(x0, [term]) for term in terms))
        ((w, _),), (std,) = terms, stds
        if std == 0:
            return x0 * w
        down, across = (_blur(size, std, x0.device, x0.dtype) for size in x0.shape[-2:])
        return (down @ (x0 @ across)).mul_(w)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixelate(Degradation):
    """Squares of largest^t pixels; sizes between powers of two are faded.

    Raises ValueError for a `largest` that is not a power of two, 2 or more.
    """

    largest: int = 16
    name = "pixelate"

    def __post_init__(self):
        if self.largest < 2 or self.largest & (self.largest - 1):
            raise BadValue(
                "largest must be a power of two, 2 or more, in pixels, got {got}. Take 8, 16 or 32.",
                got=self.largest,
            )

    def degrade(self, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t.ndim:
            return torch.cat([self.degrade(one, at) for one, at in zip(x0.split(1), t.expand(len(x0)))])
        share, power = math.modf(float(t) * math.log2(self.largest))
        coarse = _squares(x0, 2 ** int(power))
        return torch.lerp(coarse, _squares(x0, 2 ** (int(power) + 1)), share) if share else coarse


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mask(Degradation):
    """Pixels with order < t become `fill`.

    order: (H, W), (B, 1, H, W) or the shape of x0; values in [0, 1), or inf for pixels that stay. 0 is masked
    at once. Raises ValueError for an order of another size than the image.
    """

    order: torch.Tensor
    fill: float = 0.0
    name = "mask"

    def degrade(self, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        _same_size("order", self.order, x0)
        return torch.where(self.order.to(x0.device).double() < expand(t, x0.double()), self.fill, x0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fade(Degradation):
    """(1 - t) x0 + t other; other (1 or B, C, H, W). Raises ValueError for an image of another size."""

    other: torch.Tensor
    name = "fade"

    def degrade(self, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        _same_size("other", self.other, x0)
        return torch.lerp(x0, self.other.to(x0).expand_as(x0), expand(t, x0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnMask(ForwardProcess):
    """Pixels become `fill`, in all channels, in a drawn order: at t a share t, where eps < Phi^{-1}(t).

    What x_t leaves open of eps is its place below or above Phi^{-1}(t), from which `solve_noise` draws.
    Pixels that are not masked show x0, so a step takes them from x_t. kappa = 0 unmasks and never masks
    again. data must not be `fill` itself, nor within a millionth of it.
    """

    fill: float = 0.0
    name = "drawn mask"
    draws = "always"
    sudden = True

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        bound = expand(torch.special.ndtri(time_of(t)), check_image(x0))
        return torch.where(eps[:, :1] < bound, self.fill, x0)

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        t, place = expand(time_of(t), x.double()), torch.special.ndtr(fresh(x)[:, :1].double())
        place = torch.where(self.masked(x), t * place, t + (1 - t) * place)
        return torch.special.ndtri(place.clamp(1e-300, 1 - 2**-53)).to(x).expand_as(x)

    def transition(
        self,
        x: torch.Tensor,
        x0: torch.Tensor,
        t: Time,
        s: Time,
        kappa: float | torch.Tensor = 0.0,
        fresh: Noise | None = None,
    ) -> torch.Tensor:
        return super().transition(x, torch.where(self.masked(x), x0, x), t, s, kappa, fresh)

    def masked(self, x: torch.Tensor) -> torch.Tensor:
        """Which pixels are masked (B, 1, H, W)."""
        return ((x - self.fill).abs() <= 1e-6 * max(1.0, abs(self.fill))).all(1, keepdim=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnFade(ForwardProcess):
    """(1 - t) x0 + t eps, where eps is an image of another set.

    `fresh` must draw such images. kappa is 0 or 1, as images do not mix.
    """

    name = "drawn fade"

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        return torch.lerp(x0, eps, expand(time_of(t), x0))

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        t = time_of(t)
        if not (t > 0).all():
            raise BadValue(
                "t must be above 0 on the process {name}, got 0, where nothing of the other image is seen.",
                name=self.name,
            )
        return torch.lerp(x0, x, expand(1 / t, x))

    def mix(self, eps: torch.Tensor, z: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
        self.check_shares(kappa.flatten().tolist())
        return torch.where(expand(kappa, z) > 0, z, eps)

    def check_shares(self, shares: Sequence[float]) -> None:
        wrong = [k for k in shares if k not in (0, 1)]
        if wrong:
            raise BadValue(
                "kappa must be 0 or 1 on the process {name}, got {got:g}. Images do not mix.",
                name=self.name,
                got=wrong[0],
            )


def hot_blur(width: float = 20.0, schedule: str = "flow", **options: float) -> Chain:
    """Blur + noise: alpha_t D_t(x0) + sigma_t eps, on a schedule of `forward.gaussian`.

    "EDM" with sigma_max=0.1 adds only a little noise.
    """
    return Chain(Blur(width=width), gaussian(schedule, **options), name="hot blur")


def hot_pixelate(largest: int = 16, schedule: str = "flow", **options: float) -> Chain:
    """Pixelate + noise."""
    return Chain(Pixelate(largest=largest), gaussian(schedule, **options), name="pixelate + noise")


def cosines(size: int) -> torch.Tensor:
    """The orthonormal DCT-II of an axis: rows are modes, float64 (size, size); the transpose inverts it."""
    k = torch.arange(size)
    turns = k[:, None] * (2 * k + 1) % (4 * size)  # in whole numbers, so that no digits are lost
    basis = torch.cos(math.pi / (2 * size) * turns.double()) * (2 / size) ** 0.5
    basis[0] *= 0.5**0.5
    return basis


def fall(size: int, std: torch.Tensor) -> torch.Tensor:
    """exp(-(std pi k / size)^2 / 2): what a blur of that standard deviation leaves of mode k.

    float64, (size,) or (B, size).
    """
    modes = torch.arange(size, dtype=torch.float64, device=std.device) * (math.pi / size)
    return torch.exp(-0.5 * (std[..., None] * modes).square())


def check_image(x: torch.Tensor) -> torch.Tensor:
    """x, after proving that it has the axes (B, C, H, W)."""
    if x.ndim < 4:
        raise BadValue(
            "x0 must have the shape (B, C, H, W), got {got}. Add the missing axes in front.",
            got=tuple(x.shape),
        )
    return x


def _modes(size, std, dtype):
    """How many modes of an axis a blur leaves above rounding, in whole eights, in which products are fast."""
    if std < ROUNDING:
        return size
    least = math.log(2 / torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    return min(size, 8 * math.ceil((size * math.sqrt(2 * least) / (math.pi * std) + 1) / 8))


def _in_few_modes(x, modes, weights, stds):
    """The sum of w D(x) over blurs that leave so few `modes` (rows, columns): there, each is a factor."""
    (height, width), (rows, columns) = x.shape[-2:], modes
    gain = sum(
        w * fall(height, std)[:rows, None] * fall(width, std)[:columns]
        for w, std in zip(weights, torch.tensor(stds, dtype=torch.float64))
    ).to(x)
    down, down_back = _few(height, rows, x.device, x.dtype)
    across, across_back = _few(width, columns, x.device, x.dtype)
    return down_back @ (down @ (x @ across_back) * gain) @ across


@functools.lru_cache(8)
def _basis(size, device, dtype):
    with torch.inference_mode(False):  # what is kept may serve a training step later
        return cosines(size).to(device, torch.promote_types(dtype, torch.float32))


@functools.lru_cache(32)
def _few(size, modes, device, dtype):
    """The first modes of an axis (modes, size), and transposed."""
    with torch.inference_mode(False):
        rows = _basis(size, device, dtype)[:modes].to(dtype)
        return rows.contiguous(), rows.T.contiguous()


@functools.lru_cache(8)
def _blur(size, std, device, dtype):
    """The blur of an axis, a symmetric matrix (size, size)."""
    with torch.inference_mode(False):
        basis = _basis(size, device, dtype)
        left = fall(size, torch.tensor(std, dtype=torch.float64)).to(basis)
        return (basis.T @ (left[:, None] * basis)).to(dtype)


def _blurs(size, std, x):
    """The blurs of an axis for std (B,), (B, ..., size, size) with as many axes as x."""
    basis = _basis(size, x.device, x.dtype)
    blurs = basis.T @ (fall(size, std).to(basis)[:, :, None] * basis)
    return blurs.to(x.dtype).reshape(-1, *[1] * (x.ndim - 3), size, size)


def _squares(x, size):
    """Means over squares of `size` pixels, as large as x."""
    if size == 1:
        return x
    means = avg_pool2d(x.flatten(0, -3), size, ceil_mode=True, count_include_pad=False)
    wide = means.repeat_interleave(size, -2)[:, : x.shape[-2]].repeat_interleave(size, -1)[..., : x.shape[-1]]
    return wide.reshape(x.shape)


def _same_size(name, value, x):
    if value.shape[-2:] != x.shape[-2:]:
        raise BadValue(
            "{name} must have the size of the image, {height} x {width}, got {got}. Resize it.",
            name=name,
            height=x.shape[-2],
            width=x.shape[-1],
            got=" x ".join(map(str, value.shape[-2:])),
        )
