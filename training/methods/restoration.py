"""Restoration: the student learns the picture from what a forward process has left of it.

    loss = d( f(x_t, t), x0 ),   x_t = F_t(x0, eps)

which with d = squared error is -log q(x0 | x_t) of a Gaussian of fixed width, the model that a unified
diffusion process asks for (Su 2022, kexue.fm/archives/9262, eq. 5); its best answer is the mean of all
pictures that could have become x_t.

The network knows noise levels, no times of a process. At time t it is asked at the level that has the
process's signal-to-noise ratio, for which x_t is scaled; but nowhere below flow time t/2, from which the
prediction can still change the whole picture: x0 = x_t - sigma v has to undo more than the little noise that
some processes have. Where what is destroyed is gone as a whole, however little it is (missing pixels), the
level is about 1/2 at every t.
"""

from collections.abc import Callable, Iterator

import torch

from ...diffusion.destruction.forward import ForwardProcess
from ...diffusion.paths import Path
from ...diffusion.samplers import State, sample
from .distances import squared_error
from .method import Batch, Context, Method, Metric, draw_samples
from .phases import shifted_level
from .registry import register


def times_for(steps: int) -> torch.Tensor:
    """The process's times that restoring in that many steps stops at, float64 (steps + 1,), from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Seen:
    """How a network that knows noise levels sees a process.

    A call gives (sigma, scale) of times t, float64 of their shape.
    """

    def __init__(self, process: ForwardProcess, path: Path, sigma_of: Callable[[torch.Tensor], torch.Tensor]):
        self.process, self.path = process, path
        self.most = float(sigma_of(torch.ones(1, dtype=torch.float64)))
        try:
            process.log_snr(torch.ones((), dtype=torch.float64))
            self.noisy = True
        except ValueError:
            self.noisy = False

    def __call__(self, t: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.as_tensor(t, dtype=torch.float64)
        # falling with t all the same, as samplers want it of their levels
        least = self.path.at_flow_time(0.45 + 0.05 * t if self.process.sudden else (t / 2).clamp_min(1e-3))
        if not self.noisy:
            return least, torch.ones_like(t)
        sigma = self.path.sigma(self.process.log_snr(t)).clamp_max(self.most)
        scale = sigma / self.process.noise(t).clamp_min(1e-6)
        return torch.maximum(sigma, least), torch.where(sigma >= least, scale, 1.0)

    def ask(
        self,
        call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        t: torch.Tensor | float,
    ) -> torch.Tensor:
        """call(x, sigma (B,)) -> x0 at times t, a number or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        sigma, scale = self(t)
        return call(x * scale.to(x).reshape(-1, *[1] * (x.ndim - 1)), sigma.to(x))


def restore(
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    seen: Seen,
    x: torch.Tensor,
    times: torch.Tensor,
    kappa: float = 0.0,
    noise: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[State]:
    """Yield the states of `samplers.sample` along the process.

    From x at times[0] to the last; call as in `Seen.ask`.
    """
    return sample(lambda x, t: seen.ask(call, x, t), x, times, seen.process, kappa=kappa, noise=noise)


def restoration(
    student: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    process: ForwardProcess,
    x0: torch.Tensor,
    eps: torch.Tensor | None,
    t: torch.Tensor | float,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """Losses (B,) of student(x_t, t) -> x0 on pictures x0 (B, C, H, W) destroyed to t (B,) in [0, 1]."""
    return metric(student(process.corrupt(x0, eps, t), t), x0)


def draw(context: Context) -> Batch:
    """Pictures, and how far they are destroyed."""
    batch = draw_samples(context)
    noise = torch.randn(len(batch["pick"]), *context.shape, generator=context.generator)
    return {**batch, "noise": context.noise_scale * noise, "t": (1 - batch["u"]).double()}


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`restoration` of what was drawn, (B,)."""

    def student(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return context.seen.ask(lambda asked, sigma: context.student(asked, sigma, batch["condition"]), x, t)

    return restoration(
        student,
        context.seen.process,
        context.data.images[batch["pick"]],
        batch["noise"],
        batch["t"],
        metric=context.metric,
    )


METHOD = register(
    Method(
        name="restoration",
        title="restoration",
        needs="images",
        draw=draw,
        loss=loss,
        level=shifted_level,
        task="restoration",
    )
)
