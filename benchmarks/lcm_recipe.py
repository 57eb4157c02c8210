"""The LCM-LoRA recipe of the diffusers scripts, built with diffusers' and peft's own parts.

Our trainer is held against it (`distil.py`).

    python benchmarks/lcm_recipe.py [--teacher flow|epsilon] [--updates N] [--lr LR] [--loss huber|l2]

checks its parts and runs it for a short while. It needs `pip install diffusers peft`.

One update (Luo et al. 2023, arXiv:2310.04378, algorithm 1; with LoRA arXiv:2311.05556) draws real pictures
x_0 with their labels c and a trained level t, uniformly from 50 (every 20th of 1000), with s the next one
below:

    x_t  = alpha_t x_0 + sigma_t eps
    x_s  = one DDIM step from x_t of the teacher, which is the student with its adapter disabled, at
           u + CFG (c - u)
    loss = d( f(x_t, t), f(x_s, s) ),   the second without gradient, at the same weights
    f(x, t) = c_skip(t) x + c_out(t) x0
    c_skip = d^2 / ((10 t)^2 + d^2),   c_out = 10 t / sqrt((10 t)^2 + d^2),   d = 0.5, t in 0..999

As in the scripts: rank 64, alpha 64, AdamW (0.9, 0.999) with weight decay 1e-2, gradients clipped to norm 1,
a constant rate, u by an all-zero embedding in a call of its own, no EMA. Three choices are ours, none to its
harm: guidance is fixed at the CFG 2 that everything here distils (the scripts draw 4 to 16, and would miss
it); the adapter covers every Linear and convolution layer, as ours does (their list leaves out the first and
last convolution and the time embedding); pictures are in memory, none is decoded. The scripts' default loss
is l2, that of their guide pseudo-Huber (c = 1e-3, each number by itself). The default here is the second: in
short runs it is the better one (60 updates at 1e-4 bring 4 steps to 0.116 of RMSE on the flow teacher, l2 to
0.174).

Levels come from diffusers: the epsilon teacher's from DDIMScheduler's `alphas_cumprod`, made of the teacher's
own table. The scripts know no flow models. There the levels are FlowMatchEulerDiscreteScheduler's at i/50,
and DDIM's step is its Euler step.
"""

import argparse
import dataclasses
import itertools
import math
import resource
import statistics
import sys
import time
from pathlib import Path

import diffusers
import peft
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_PRESERVING
from fewstep.diffusion.step import step
from fewstep.training.models.demo import data
from fewstep.training.models.demo.net import TIMESTEPS
from fewstep.training.models.demo.teacher import DemoTeacher, label_vector
from fewstep.training.models.denoiser import guided

LEVELS, CFG = 50, 2.0
RANK, CLIP, WEIGHT_DECAY = 64, 1.0, 1e-2
SIGMA_DATA, TIME_SCALE, HUBER = 0.5, 10.0, 1e-3
SAMPLERS = {  # options of `Trained.sample`
    "LCM": {"fresh": True},
    "DDIM": {},
    "LCM, shift 3": {"fresh": True, "shift": 3.0},
    "DDIM, shift 3": {"shift": 3.0},
}
RESET = Path("/proc/self/clear_refs")  # of Linux


class Memory:
    """The most bytes that this process holds from here on, beyond those of now; on CUDA, of its tensors."""

    def __init__(self, device):
        self.cuda = torch.device(device).type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif RESET.exists():
            RESET.write_text("5")  # ru_maxrss would keep the peak of the imports, and of the parent
        self.before = self._largest()

    def _largest(self):
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        if RESET.exists():
            lines = RESET.with_name("status").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def peak(self):
        return self._largest() - self.before


@dataclasses.dataclass(frozen=True)
class Levels:
    """The 51 trained levels, from data up, and diffusers' scheduler.

    times (of the network), alphas, sigmas   float32 (51,)
    """

    kind: str
    times: torch.Tensor
    alphas: torch.Tensor
    sigmas: torch.Tensor
    scheduler: object


def levels_of(kind, device, table=None):
    """The `Levels` of a flow model, or of an epsilon one with that ascending sigma/alpha (1000,)."""
    if kind == "flow":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)
        scheduler.set_timesteps(sigmas=[i / LEVELS for i in range(LEVELS, 0, -1)])
        sigmas = scheduler.sigmas.flip(0).to(device)
        return Levels("flow", TIMESTEPS * sigmas, 1 - sigmas, sigmas, scheduler)
    scheduler = diffusers.DDIMScheduler(
        trained_betas=betas_of(table), clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(LEVELS)
    upper = torch.arange(1, LEVELS + 1) * (TIMESTEPS // LEVELS) - 1
    places = torch.cat([torch.zeros(1, dtype=torch.long), upper])
    kept = scheduler.alphas_cumprod[places]
    tables = [each.to(device) for each in (places.float(), kept.sqrt(), (1 - kept).sqrt())]
    return Levels("epsilon", *tables, scheduler)


def betas_of(table):
    """The betas whose `alphas_cumprod` mean these ascending sigma/alpha (N,), as the list diffusers wants."""
    kept = 1 / (1 + table.double() ** 2)
    return (1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])).tolist()


def at(table, index):
    """Entries (B,) of a table, shaped to multiply pictures."""
    return table[index].view(-1, 1, 1, 1)


def predict(net, levels, x, index, context):
    """(x0, eps) that the network predicts at the levels index (B,)."""
    out = net(x, levels.times[index], context)
    alpha, sigma = at(levels.alphas, index), at(levels.sigmas, index)
    if levels.kind == "flow":
        return x - sigma * out, x + alpha * out
    return (x - sigma * out) / alpha, out


def boundary(levels, x, x0, index):
    """f of the recipe: x0, but x itself at level 0."""
    t = TIME_SCALE * at(levels.times, index)
    return SIGMA_DATA**2 / (t**2 + SIGMA_DATA**2) * x + t / (t**2 + SIGMA_DATA**2).sqrt() * x0


def ddim(levels, x0, eps, index):
    """The state at the levels index."""
    return at(levels.alphas, index) * x0 + at(levels.sigmas, index) * eps


@dataclasses.dataclass
class Trained:
    """What a run leaves: the model with its adapter on, and what it took. Seconds and bytes count from the
    call of `train`.
    """

    model: peft.PeftModel
    levels: Levels
    labels: torch.Tensor  # (conditions, width)
    losses: list
    samples_seen: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    @torch.no_grad()
    def sample(self, noise, condition, steps, fresh=False, shift=1.0, seed=0, chunk=32):
        """Images (N, ...) in model space from unit noise, without guidance, at that many of the levels.

        fresh: new noise after every step, as LCMScheduler draws it; else DDIM. shift 1: LCMScheduler's own
        timesteps; 3: nearer to the noise.
        """
        g = torch.Generator().manual_seed(seed)
        places = places_of(steps, shift)
        device = self.levels.times.device
        parts = []
        for x, numbers in zip(noise.split(chunk), condition.split(chunk)):
            x, context = x.to(device), self.labels[numbers.to(device)][:, None]
            for now, after in itertools.pairwise([*places, None]):
                index = torch.full((len(x),), now, device=device)
                x0, eps = predict(self.model, self.levels, x, index, context)
                if fresh:
                    x0 = boundary(self.levels, x, x0, index)
                    eps = torch.randn(x.shape, generator=g).to(device)
                x = x0 if after is None else ddim(self.levels, x0, eps, torch.full_like(index, after))
            parts.append(x.cpu())
        return torch.cat(parts)


def places_of(steps, shift=1.0):
    """The trained levels (1..50) of a run, from noise; at shift 1 those of LCMScheduler."""
    times = [shift * t / (1 + (shift - 1) * t) for t in (1 - i / steps for i in range(steps))]
    return [LEVELS - math.floor(LEVELS * (1 - t) + 1e-9) for t in times]


def pictures(teacher):
    """(images, contexts) of the training emoji whose label is offered, on the teacher's device."""
    images, places, _ = data.load("train")
    keep = torch.isin(places, torch.tensor(list(data.label_numbers().values())))
    context = torch.nn.functional.one_hot(places[keep], data.label_width()).float()[:, None]
    return images[keep].to(teacher.device), context.to(teacher.device)


def adapted(module, seed, rank=RANK):
    """The module with a peft adapter on every Linear and convolution layer; they are replaced in place."""
    names = [name for name, m in module.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(module, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names))


@torch.no_grad()
def teacher_step(model, levels, x, index, context, cfg=CFG):
    """One guided DDIM step of the model without its adapter, to the level below; at CFG 1 in one call."""
    with model.disable_adapter():
        answer = predict(model, levels, x, index, context)
        if cfg != 1:
            u = predict(model, levels, x, index, torch.zeros_like(context))
            answer = [b + cfg * (a - b) for a, b in zip(answer, u)]
    return ddim(levels, *answer, index - 1)


def distance(a, b, loss):
    """() of two batches: the mean squared difference, or pseudo-Huber of each number by itself."""
    squared = (a - b).square()
    if loss == "l2":
        return squared.mean()
    return ((squared + HUBER**2).sqrt() - HUBER).mean()


def loss_of(model, levels, images, noise, index, context, loss="huber", cfg=CFG):
    """() of one batch of pictures at the levels index, with its gradient."""
    x_t = ddim(levels, images, noise, index)
    x_s = teacher_step(model, levels, x_t, index, context, cfg)
    with torch.no_grad():
        x0, _ = predict(model, levels, x_s, index - 1, context)
        target = boundary(levels, x_s, x0, index - 1)
    x0, _ = predict(model, levels, x_t, index, context)
    return distance(boundary(levels, x_t, x0, index), target, loss)


def train(
    teacher,
    seconds=None,
    updates=None,
    batch=16,
    lr=1e-4,
    seed=0,
    loss="huber",
    clock=time.perf_counter,
):
    """Run the recipe on a `DemoTeacher`, whose module it changes, for that many updates, or seconds of that
    clock.
    """
    if (seconds is None) == (updates is None):
        raise ValueError(f"Give either seconds or updates, got {seconds} and {updates}.")
    memory, began = Memory(teacher.device), clock()
    levels, g = levels_of(teacher.kind, teacher.device, teacher.table), torch.Generator().manual_seed(seed)
    images, contexts = pictures(teacher)
    model = adapted(teacher.module, seed)
    labels = torch.stack([label_vector(name) for name in teacher.labels]).to(teacher.device)
    trained = Trained(model, levels, labels, [])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)

    def unfinished():
        if updates is not None:
            return len(trained.losses) < updates
        return clock() - began < seconds

    while unfinished():
        pick = torch.randint(len(images), (batch,), generator=g).to(teacher.device)
        index = torch.randint(1, LEVELS + 1, (batch,), generator=g).to(teacher.device)
        noise = torch.randn(batch, *teacher.shape, generator=g).to(teacher.device)
        value = loss_of(model, levels, images[pick], noise, index, contexts[pick], loss)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        trained.losses.append(float(value.detach()))
    trained.samples_seen, trained.seconds = batch * len(trained.losses), clock() - began
    trained.peak_memory = memory.peak()
    return trained


# ---- checks ----------------------------------------------------------------------------------------


def worst(a, b):
    """The largest difference of two tensors."""
    return float((a - b).abs().max())


@torch.no_grad()
def check_parts(kind):
    """{what: largest difference} of the recipe's parts from diffusers' schedulers and ours; all should be
    rounding.
    """
    teacher, base = DemoTeacher(kind), DemoTeacher(kind)
    levels = levels_of(kind, teacher.device, teacher.table)
    path = FLOW if kind == "flow" else VARIANCE_PRESERVING
    model = adapted(teacher.module, 0)
    g = torch.Generator().manual_seed(0)
    index, x = torch.arange(1, LEVELS + 1), torch.randn(LEVELS, *teacher.shape, generator=g)
    numbers = index % teacher.conditions
    context = torch.stack([label_vector(base.labels[n]) for n in numbers])[:, None]
    x0, eps = predict(model, levels, x, index, context)
    with model.disable_adapter():
        off = predict(model, levels, x, index, context)[0]
    ours, after = ddim(levels, x0, eps, index - 1), (path, levels.sigmas[index], levels.sigmas[index - 1])
    out = {
        "student at its start - teacher": worst(x0, off),
        "DDIM step - fewstep's": worst(ours, step(x, x0, *after)),
    }
    scale = 1 if kind == "flow" else at(levels.alphas, index)  # the teacher's own states have alpha 1
    sigmas = levels.sigmas if kind == "flow" else levels.sigmas / levels.alphas
    guess = guided(base, x / scale, sigmas[index], numbers, CFG)
    stepped = teacher_step(model, levels, x, index, context)
    out["guided teacher step - fewstep's"] = worst(stepped, step(x, guess, *after))
    theirs, raw = [], model(x, levels.times[index], context)
    for i in range(LEVELS):
        levels.scheduler._step_index = None  # of the flow scheduler, which otherwise counts on
        t = levels.times[index[i]]
        theirs.append(levels.scheduler.step(raw[i], t if kind == "flow" else int(t), x[i]).prev_sample)
    out["DDIM step - diffusers'"] = worst(ours, torch.stack(theirs))
    trained = Trained(model, levels, torch.stack([label_vector(name) for name in base.labels]), [])
    for steps in (1, 4, 8):
        theirs = scheduler_samples(kind, base, model, x[:4], context[:4], steps)
        own = trained.sample(x[:4], numbers[:4], steps, fresh=True)
        out[f"{steps} steps of LCM - diffusers'"] = worst(own, theirs)
    return out


def scheduler_samples(kind, teacher, model, x, context, steps):
    """Images by diffusers' own consistency samplers."""
    g = torch.Generator().manual_seed(0)
    if kind == "flow":
        scheduler = diffusers.FlowMatchLCMScheduler(num_train_timesteps=TIMESTEPS)
        scheduler.set_timesteps(sigmas=[place / LEVELS for place in places_of(steps)])
    else:
        betas = betas_of(teacher.table)
        scheduler = diffusers.LCMScheduler(trained_betas=betas, original_inference_steps=LEVELS)
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.float().expand(len(x)), context), t, x, generator=g).prev_sample
    return x


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", choices=("flow", "epsilon"), help="only this one")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--loss", choices=("huber", "l2"), default="huber")
    args = parser.parse_args()
    for kind in [args.teacher] if args.teacher else ["flow", "epsilon"]:
        print(f"\n{kind}")
        for name, value in check_parts(kind).items():
            print(f"  {name:34} {value:.1e}{'' if value < 1e-5 else '  WRONG'}", flush=True)
        run = train(DemoTeacher(kind), updates=args.updates, lr=args.lr, loss=args.loss)
        first = statistics.mean(run.losses[: args.updates // 4 + 1])
        last = statistics.mean(run.losses[-args.updates // 4 :])
        print(
            f"  {args.updates} updates: loss {first:.5f} in the first quarter, {last:.5f} in the last; "
            f"{run.seconds:.0f} s, {run.peak_memory / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
