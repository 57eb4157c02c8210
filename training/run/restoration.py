"""Training a model to undo any forward process: de-blur, de-pixelate, in-paint, de-noise.

    process = process_of([{"kind": "pixelate", "largest": 8}])          a list, so that processes can follow
                                                                        one another
    run = Restoration(denoiser, DistilConfig(method="restoration", process=[...], steps=2), data=Data(...))

It is a `distil.Distillation` in all that keeps a run alive; other are the pictures that it learns on (given,
or the teacher's own), the question that it is asked, and what fidelity is: the distance of restored to whole
pictures.

The network knows noise levels, no times of a process. At time t it is asked at the level that has the
process's signal-to-noise ratio, for which x_t is scaled; but nowhere below flow time t/2, from which the
prediction can still change the whole picture: x0 = x_t - sigma v has to undo more than the little noise that
some processes have. Where what is destroyed is gone as a whole, however little it is (missing pixels), it is
about 1/2 at every t.
"""

import torch

from ...diffusion.samplers import batch_noise, sample
from ...diffusion.schedules.grids import descending
from ..formats.processes import process_of
from ..models.denoiser import for_sampler
from ..trajectories.noises import noises
from ..trajectories.sampling import CHUNK
from .data import Data
from .distil import PROBES, Distillation


def times_for(steps):
    """The process's times that restoring in that many steps stops at, float64 (steps + 1,), from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Seen:
    """How a network that knows noise levels sees a process: (sigma, scale) of times t, float64 of their
    shape.
    """

    def __init__(self, process, path, sigma_of):
        self.process, self.path = process, path
        self.most = float(sigma_of(torch.ones(1, dtype=torch.float64)))
        try:
            process.log_snr(torch.ones((), dtype=torch.float64))
            self.noisy = True
        except ValueError:
            self.noisy = False

    def __call__(self, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        # falling with t all the same, as samplers want it of their levels
        least = self.path.at_flow_time(0.45 + 0.05 * t if self.process.sudden else (t / 2).clamp_min(1e-3))
        if not self.noisy:
            return least, torch.ones_like(t)
        sigma = self.path.sigma(self.process.log_snr(t)).clamp_max(self.most)
        scale = sigma / self.process.noise(t).clamp_min(1e-6)
        return torch.maximum(sigma, least), torch.where(sigma >= least, scale, 1.0)

    def ask(self, call, x, t):
        """call(x, sigma (B,)) -> x0 at times t, a number or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        sigma, scale = self(t)
        return call(x * scale.to(x).reshape(-1, *[1] * (x.ndim - 1)), sigma.to(x))


def restore(call, seen, x, times, kappa=0.0, noise=None):
    """Yield the sampler's states from x at times[0] to the last: `samplers.sample` along the process; call as
    in `Seen.ask`.
    """
    return sample(lambda x, t: seen.ask(call, x, t), x, times, seen.process, kappa=kappa, noise=noise)


class Restoration(Distillation):
    """A run that learns to undo `config.process`.

    Of pictures that are given an eighth, at most PROBES, are held out to measure fidelity on.
    """

    def __init__(self, denoiser, config, *others, **options):
        self.process = process_of(config.process)
        self.seen = Seen(self.process, denoiser.path, denoiser.sigma_of)
        self.noise_scale = denoiser.noise_scale if config.process[-1]["kind"] == "gaussian" else 1.0
        super().__init__(denoiser, config, *others, **options)

    @property
    def count(self):
        return super().count if self.given is None else 0

    def _sample_data(self, number=0):
        if self.given is None:
            yield from super()._sample_data(number)
            return
        total = len(self.given.images)
        held = torch.linspace(0, total - 1, max(1, min(PROBES, total // 8))).round().long()
        kept = torch.ones(total, dtype=torch.bool)
        kept[held] = total == 1
        self.data = Data(images=self.given.images[kept], condition=self.given.condition[kept])
        noise = noises(self.noise_seed, range(len(held)), self.denoiser.shape)
        self.probe = noise, self.given.condition[held], self.given.images[held]

    def asked_at(self, batch):
        """student(x_t, t) -> x0 for a batch."""
        student = self.student(batch)
        return lambda x, t: self.seen.ask(lambda x, sigma: student(x, sigma, None), x, t)

    def destroyed(self, images, noise):
        """What sampling begins with: F_1 of pictures (B, ...), with that unit noise."""
        return self.process.corrupt(images, self.noise_scale * noise if self.process.noisy else None, 1.0)

    @torch.no_grad()
    def restored(self, adapter, x, condition, steps, kappa=0.0, seed=0):
        """Pictures (B, ...) restored from x at time 1 by those adapter weights, None for none, in that many
        steps.
        """
        parts = []
        with self.lora.off() if adapter is None else self.lora.using(adapter):
            for i in range(0, len(x), CHUNK):
                call = for_sampler(self.asked, condition[i : i + CHUNK], 1.0)
                run = restore(
                    call, self.seen, x[i : i + CHUNK], times_for(steps), kappa, self._fresh(seed + i)
                )
                parts.append([state.x for state in run][-1])
        return torch.cat(parts)

    def _fresh(self, seed):
        draw = batch_noise(seed)
        return lambda x: self.noise_scale * draw(x)

    def of_probe(self, adapter):
        noise, condition, images = self.probe
        return self.restored(adapter, self.destroyed(images, noise), condition, self.config.steps)

    def before(self, count):
        noise, _, images = (v[:count] for v in self.probe)
        return self.destroyed(images, noise)

    def _trained(self):
        return {**super()._trained(), "process": [dict(part) for part in self.config.process]}

    def sigmas_for(self, steps):
        """The noise levels at which the network is asked in that many steps, and 0."""
        levels = self.seen(times_for(steps)[:-1])[0]
        return descending(torch.cat([levels, levels.new_zeros(1)]))


def run_of(denoiser, config, *others, **options):
    """The run that a config asks for: a `Restoration` where it has a process, else a `Distillation`."""
    return (Restoration if config.process else Distillation)(denoiser, config, *others, **options)
