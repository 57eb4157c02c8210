"""What some held-out trajectories tell of a solver's error on new noise.

Most samples end near their own picture, a few at another one, and those few make up most of the mean. Some
tens of trajectories may well hold none of them. So the mean is bounded in two parts: the share that ends
elsewhere, by the interval of a binomial share, and the mean of the others, by the interval of a mean. What
is near is no farther than `ELSEWHERE`, and what is elsewhere about as far as two pictures are.
"""

import dataclasses
import math
import statistics

import torch

CONFIDENCE = 0.95
ELSEWHERE = 0.5  # of the median distance between two pictures, beyond which a sample is at another one
FARTHEST = 2.0  # as many times that distance are a picture's own at most, if it has ended at another


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Distances from the converged picture, RMS in units of the pictures' deviation.

    median, mean     over the samples
    low, high        of the mean on new noise, at 95 %
    elsewhere, most  share of the samples that end at another picture; its upper limit on new noise
    count            samples
    """

    median: float
    mean: float
    low: float
    high: float
    elsewhere: float
    most: float
    count: int


def accuracy(distances: torch.Tensor, between: float, chosen: torch.Tensor | None = None) -> Accuracy:
    """The `Accuracy` of distances (N,); `between` is the typical distance of two different pictures.

    distances  of each sample, by a solver that was chosen without it: by fewer samples, so it may be worse
               than what is handed on
    chosen     (N,) by what is handed on, which these very samples chose: too small. The truth lies between
               the two, so that the interval takes in both of theirs
    """
    told = _accuracy(distances, between)
    if chosen is None:
        return told
    other = _accuracy(chosen, between)
    return dataclasses.replace(told, low=min(told.low, other.low), high=max(told.high, other.high))


def _accuracy(distances, between):
    distances = distances.double()
    away = distances > ELSEWHERE * between
    share_low, share_high = share_interval(int(away.sum()), len(distances))
    near, far = distances[~away], distances[away]
    border = ELSEWHERE * between
    low, high = mean_interval(near) if len(near) > 1 else (0.0, border)
    there = float(far.mean()) if len(far) else between
    far_low, far_high = mean_interval(far) if len(far) > 1 else (there, between)
    farthest = max(FARTHEST * between, float(far.max()) if len(far) else 0.0)
    high, far_low, far_high = min(high, border), max(far_low, border), min(far_high, farthest)
    return Accuracy(
        median=float(distances.median()),
        mean=float(distances.mean()),
        low=(1 - share_low) * low + share_low * min(there, far_low),
        high=(1 - share_high) * high + share_high * max(there, far_high),
        elsewhere=float(away.double().mean()),
        most=share_high,
        count=len(distances),
    )


def times_nearer(own: torch.Tensor, other: torch.Tensor) -> tuple[float, float, float]:
    """(middle, low, high): how many times smaller distances (N,) are than others from the same starts, in the
    typical sample: the geometric mean of the ratios, with its interval at 95 %.
    """
    logs = (other.double() + 1e-9).log() - (own.double() + 1e-9).log()
    if len(logs) < 2:
        return math.exp(float(logs.mean())), 0.0, math.inf
    half = student((1 + CONFIDENCE) / 2, len(logs) - 1) * float(logs.std()) / math.sqrt(len(logs))
    middle = float(logs.mean())
    return math.exp(middle), math.exp(max(middle - half, -50)), math.exp(min(middle + half, 50))


def share_interval(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The limits of a share of which `count` of `total` were seen (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return (0.0 if count == 0 else middle - half), (1.0 if count == total else middle + half)


def mean_interval(values: torch.Tensor, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The limits of the mean of positive, skewed values (N,).

    By Student's t for the mean of the logarithms and half their variance (Cox's method for lognormal data:
    Land 1972; Zhou and Gao 1997).
    """
    logs = (values.double() + 1e-9).log()
    if len(logs) < 2:
        return 0.0, math.inf
    variance = float(logs.var())
    middle = float(logs.mean()) + variance / 2
    error = math.sqrt(variance / len(logs) + variance**2 / (2 * (len(logs) - 1)))
    half = student((1 + confidence) / 2, len(logs) - 1) * error
    return math.exp(middle - half), math.exp(min(middle + half, 50))


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t for so many degrees of freedom (Cornish and Fisher's expansion, Abramowitz
    and Stegun 26.7.5; the exact ones for 1 and 2).
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z, v = statistics.NormalDist().inv_cdf(probability), freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, 1))
