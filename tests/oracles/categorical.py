"""Discrete data: the categorical process of Austin et al. 2021 (D3PM, arXiv:2107.03006), as a forward process
like any other.

Tokens x in 0 .. K-1, written as one-hot rows; the chance a_t that a token is still its own falls from 1 to 0.

    Qbar_t = a_t I + (1 - a_t) 1 pi'        pi = 1/K ("uniform") or the last token K-1, which data has not
                                            ("mask"); q(x_t | x0) = Cat(x0 Qbar_t), eq. 3 with eq. 2
    Q_t|s  = Qbar_s^{-1} Qbar_t, of the same form with a_t/a_s

    q(x_s | x_t, x0) = Cat( x_t Q_t|s' * x0 Qbar_s / x0 Qbar_t x_t' )                     `posterior`, eq. 3
    q(x_s | x_t, x0) = Cat( r x_t + (a_s - r a_t) x0 + (1 - a_s - r (1 - a_t)) pi )       `reuse`
                       r = (1 - kappa^2) (1 - a_s)/(1 - a_t)

Both have the marginals q(x_s | x0), which is all that the unified diffusion model asks (`forward.py`).
`reuse` is its own kernel: F_t keeps a token or replaces it by one drawn from pi, eps being both draws, and
the noise that x_t and x0 show is kept with the chance 1 - kappa^2. It is the family of Song et al. 2021
(arXiv:2010.02502, appendix A), their sigma_t being r; kappa = 1 is q(x_s | x0). For "mask" kappa = 0 is the
posterior itself.

x0 is tokens (B, ...) or what a model says of them, p(x0 | x_t) as (B, ..., K), over which the kernels are
averaged: with the true p(x0 | x_t) of a single token the step is exact, posterior mean or not, because the
kernel is linear in one-hot x0. (D3PM's eq. 4 averages q(x_s, x_t | x0) instead, which is not the same for a p
that has seen x_t; this is its neighbour from Bayes' rule.) Of several tokens each is taken alone, which is
exact in the limit of short steps.
"""

import dataclasses
from collections.abc import Callable

import torch
from fewstep.diffusion.destruction.forward import ForwardProcess, time_of
from fewstep.diffusion.step import check_kappa
from torch.nn.functional import one_hot

KINDS = ("uniform", "mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical(ForwardProcess):
    """The process on `classes` tokens; `keep(t)` is a_t, 1 at 0, 0 at 1 and falling. Times are numbers.

    ancestral   whether a step is the `posterior`, the Markov chain's own, instead of `reuse` with kappa
    Raises ValueError for a kind that is not one of `KINDS`, and fewer than two classes.
    """

    classes: int
    kind: str = "uniform"
    keep: Callable = lambda t: 1 - t
    ancestral: bool = False
    name = "categorical"
    draws = "always"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.classes < 2:
            raise ValueError(f"classes must be 2 or more, the mask counted, got {self.classes}.")

    def kept(self, t):
        """a_t, a float."""
        return float(self.keep(time_of(t)))

    def rest(self):
        """pi (K,), what tokens are replaced from, float64."""
        if self.kind == "uniform":
            return torch.full((self.classes,), 1 / self.classes, dtype=torch.float64)
        return one_hot(torch.tensor(self.classes - 1), self.classes).double()

    def matrix(self, t, s=0.0):
        """Q_t|s (K, K), rows from tokens at s to tokens at t >= s; Qbar_t for s = 0. float64."""
        if not self.kept(t) <= self.kept(s):
            raise ValueError(f"t must be s or more, got t = {t:g} and s = {s:g}.")
        share = self.kept(t) / self.kept(s) if self.kept(s) > 0 else 0.0
        return share * torch.eye(self.classes, dtype=torch.float64) + (1 - share) * self.rest()

    def chances(self, x0, t):
        """q(x_t | x0), (B, ..., K) float64, for tokens or chances x0."""
        return self._chances_of(x0) @ self.matrix(t)

    def posterior(self, x, x0, t, s):
        """q(x_s | x_t, x0) of the Markov chain (eq. 3), averaged over x0 where those are chances; (B, ...,
        K).
        """
        p, forward, before, after = self._seen(x, x0), self.matrix(t, s), self.matrix(s), self.matrix(t)
        seen = after.T[x]  # q(x_t | x0) for every x0
        p = torch.where(seen > 0, p / seen, 0.0)
        out = (p @ before) * forward.T[x]
        total = out.sum(-1, keepdim=True)
        own = one_hot(x, self.classes).double()  # what is not masked at t = 1 stays
        return torch.where(total > 0, out / total, own)

    def reuse(self, x, x0, t, s, kappa=0.0):
        """q(x_s | x_t, x0) that keeps the noise of x_t with the chance 1 - kappa^2; averaged like
        `posterior`; (B, ..., K).
        """
        kappa, before, after = float(check_kappa(kappa)), self.kept(s), self.kept(t)
        r = (1 - kappa**2) * (1 - before) / (1 - after) if after < 1 else 0.0
        same, seen = one_hot(x, self.classes).double(), self._seen(x, x0)
        return r * same + (before - r * after) * seen + (1 - before - r * (1 - after)) * self.rest()

    def corrupt(self, x0, eps, t):
        """Tokens x_t (B, ...) from unit Gaussian eps (B, ...), by the inverse cumulative distribution."""
        return draw(self.chances(x0, t), eps)

    def solve_noise(self, x0, x, t, fresh=None):
        raise ValueError(
            "process must have noise to solve for, got categorical, which draws twice a token. Use `reuse`."
        )

    def transition(self, x, x0, t, s, kappa=0.0, fresh=None):
        if fresh is None:
            raise ValueError(
                "fresh must be given on the process categorical, got None. Pass a function that draws unit "
                "noise."
            )
        chances = self.posterior(x, x0, t, s) if self.ancestral else self.reuse(x, x0, t, s, kappa)
        return draw(chances, fresh(torch.empty(x.shape, dtype=torch.float64)))

    def _chances_of(self, x0):
        return x0.double() if x0.is_floating_point() else one_hot(x0, self.classes).double()

    def _seen(self, x, x0):
        """p(x0), put right where x_t shows x0: a token that is not masked is its own."""
        p = self._chances_of(x0)
        if self.kind == "uniform":
            return p
        return torch.where((x == self.classes - 1)[..., None], p, one_hot(x, self.classes).double())


def draw(chances, eps):
    """Tokens (B, ...) with `chances` (B, ..., K), float64, from unit Gaussian eps (B, ...)."""
    place = torch.special.ndtr(eps.double())[..., None]
    below = chances.cumsum(-1) / chances.sum(-1, keepdim=True) <= place
    return below.sum(-1).clamp(max=chances.shape[-1] - 1)
