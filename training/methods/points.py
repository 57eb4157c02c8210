"""Points of trajectories, and what noise that is added to them says of their distribution.

A point y at the level e of a path is noised on to a level t > e:

    x_t = a y + r z,     a = alpha_t / alpha_e,  r^2 = sigma_t^2 - (a sigma_e)^2,  z ~ N(0, 1)

The score of x_t's distribution is E[-z / r | x_t] (Vincent 2011, "A connection between score matching and
denoising autoencoders", eq. 11), which as a prediction of x0, D = (x_t + sigma_t^2 score) / alpha_t, is the
mean given x_t of

    known(y, z) = (y - (a sigma_e^2 / r) z) / alpha_e

with a variance that grows as r falls: (r / sigma_t)^2 weighs it. Of a picture, e = 0, known is the picture
itself. TDM (Luo et al. 2025, arXiv:2503.06674, eq. 9) learns the predicted x0 of the step in its place. That
is the same where the noise inside y is independent of that x0, and at the first step it is the noise which x0
was made of: docs/findings/trajectory_points.md.
"""

import torch

from ...diffusion.paths import Path
from ...diffusion.predictions import expand
from ...diffusion.step import step
from .method import Answer


def noised_on(
    y: torch.Tensor, noise: torch.Tensor, path: Path, e: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_t, known, (r / sigma_t)^2) as above: y and noise (B, ...), levels e < t (B,), alpha at e above 0."""
    e, t = e.double(), t.double()
    alpha = path.alpha(e)
    a = path.alpha(t) / alpha
    r = (t.square() - (a * e).square()).clamp_min(0).sqrt()
    known = y / expand(alpha, y) - expand(a * e.square() / (r * alpha), y) * noise
    return expand(a, y) * y + expand(r, y) * noise, known, (r / t).square().float()


def walked(
    student: Answer,
    x: torch.Tensor,
    path: Path,
    levels: torch.Tensor,
    last: torch.Tensor,
    condition: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, x0), each (R, S, ...), of R runs of the student's own steps: where each step is made from, and its
    prediction there; 0 after a run's `last` step, and no step after the last of all.

    x (R, ...) at levels[0]; last, condition (R,). Without churn, which is how the student is sampled.
    """
    states, predictions = [x], []
    for number in range(int(last.max()) + 1):
        on = (last >= number).nonzero()[:, 0]
        t, s = (levels[n].expand(len(on)) for n in (number, number + 1))
        here = states[-1][on]
        x0 = student(here, t, condition[on])
        for found, values in ((states, step(here, x0, path, t, s).to(x)), (predictions, x0)):
            found.append(values.new_zeros(len(x), *values.shape[1:]).index_copy(0, on, values))
    return torch.stack(states[:-1], 1), torch.stack(predictions, 1)
