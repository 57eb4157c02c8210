"""Train a demo teacher from the packaged emoji; writes `<kind>.safetensors` (half precision).

    python -m fewstep.training.models.demo.make_teacher flow --steps 4200 --core-after 2600
    python -m fewstep.training.models.demo.make_teacher epsilon --steps 300 --lr 1e-4 --init flow.safetensors

Loss: E |v - v_theta|^2 with v = alpha eps - sigma x_0 on the normalised path, which is the flow-matching loss
up to the weight (alpha + sigma)^2 and the epsilon loss up to 1/alpha^2. Hidden matrices by Muon (Jordan et
al. 2024), the rest by AdamW; linear warm-up, then a linear decay over the last 40 %; EMA of the weights;
label dropped in 15 %. Everything is drawn from one seed. Resumes from `<kind>.part` when it was stopped.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import data
from .net import EmojiNet, initialise

HERE = Path(__file__).parent
MUON = 20  # times the rate of AdamW
DROPPED = 0.15  # share of the pictures that are shown without their label


def draw_angles(count: int, g: torch.Generator, device: str | torch.device) -> torch.Tensor:
    """theta of random training times, for both kinds: logit-normal t, a fifth of them uniform.

    Logit-normal times: Esser et al. 2024 (arXiv:2403.03206).
    """
    t = torch.sigmoid(torch.randn(count, generator=g))
    uniform = torch.rand(count, generator=g)
    t = torch.where(torch.rand(count, generator=g) < 0.2, uniform, t)
    return torch.atan2(t, 1 - t).to(device)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024).

    torch.optim.Muon does the same in bfloat16, which is many times slower on CPUs without such units.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        """One update, of all matrices of a shape at once."""
        group = self.param_groups[0]
        shapes = {}
        for p in group["params"]:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            shapes.setdefault(p.shape, []).append((p, p.grad.lerp(buffer, group["momentum"])))
        for (rows, columns), pairs in shapes.items():
            update = newton_schulz(torch.stack([u for _, u in pairs])) * max(1, rows / columns) ** 0.5
            for (p, _), u in zip(pairs, update):
                p.add_(u, alpha=-group["lr"])


def newton_schulz(m: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of m (K, rows, columns), singular values about 0.7 to 1.2."""
    tall = m.shape[1] > m.shape[2]
    m = m.mT if tall else m
    m = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = m @ m.mT
        m = 3.4445 * m + (-4.7750 * gram + 2.0315 * gram @ gram) @ m
    return m.mT if tall else m


def optimisers(net: EmojiNet, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; both follow one schedule."""
    inner = [p for p in net.blocks.parameters() if p.ndim == 2 and p.shape[0] > 6]
    ids = {id(p) for p in inner}
    rest = [p for p in net.parameters() if id(p) not in ids]
    return [Muon(inner, MUON * lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]


def factor(step: int, steps: int) -> float:
    """Learning-rate factor: warm-up over 100 steps, constant, linear to 0 over the last 40 %."""
    return min(1.0, (step + 1) / 100, max(0.0, (steps - step) / (0.4 * steps)))


class _Training:
    """The state of a training, which `<kind>.part` holds.

    order, cursor: of the pictures in this epoch, and how many of them were shown; loss: a running mean
    """

    def __init__(self, net, lr, seed, count):
        self.net, self.lr = net, lr
        self.optimisers = optimisers(net, lr)
        self.ema = {k: v.detach().clone() for k, v in net.named_parameters()}
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.order = torch.randperm(count, generator=self.generator)
        self.cursor, self.step, self.seconds, self.loss = 0, 0, 0.0, None

    def pick(self, batch, count):
        """The places of the next pictures, of so many."""
        if self.cursor + batch > len(self.order):
            self.order, self.cursor = torch.randperm(count, generator=self.generator), 0
        picked = self.order[self.cursor : self.cursor + batch]
        self.cursor += batch
        return picked

    def update(self, loss, steps):
        """Follow the gradient of a loss in the step that is under way, of so many."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimiser, base in zip(self.optimisers, (MUON * self.lr, self.lr)):
            optimiser.param_groups[0]["lr"] = base * factor(self.step, steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for k, p in self.net.named_parameters():
                self.ema[k].lerp_(p, 1 - decay)
        value = float(loss.detach())
        self.loss = value if self.loss is None else 0.99 * self.loss + 0.01 * value
        self.step += 1

    def save(self, file, seconds):
        state = {
            "net": self.net.state_dict(),
            "optims": [o.state_dict() for o in self.optimisers],
            "ema": self.ema,
            "order": self.order,
            "cursor": self.cursor,
            "step": self.step,
            "seconds": seconds,
            "generator": self.generator.get_state(),
        }
        torch.save(state, f"{file}.tmp")
        os.replace(f"{file}.tmp", file)

    def restore(self, file):
        state = torch.load(file, weights_only=True)
        self.net.load_state_dict(state["net"])
        for optimiser, held in zip(self.optimisers, state["optims"]):
            optimiser.load_state_dict(held)
        self.ema, self.order, self.cursor = state["ema"], state["order"], state["cursor"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"])


def train(
    kind: str,
    *,
    steps: int,
    core_after: int = 0,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    init: str | Path | None = None,
    device: str | torch.device = "cpu",
    part: str | Path | None = None,
    compiled: bool = False,
    report: Callable[[str], None] = print,
    width: int = 192,
    depth: int = 6,
    heads: int = 6,
    stem: int = 16,
) -> tuple[dict[str, torch.Tensor], dict]:
    """(the EMA weights, float32 on the CPU, and a dict of figures).

    core_after: from this step on only the core emoji are seen. part: where the state is kept every 100 steps,
    and found again. width, depth, heads, stem: of the network.
    """
    images, labels, _ = data.load("train", core=core_after == 0)
    net = EmojiNet(kind, data.label_width(), width=width, depth=depth, heads=heads, stem=stem)
    initialise(net, seed)
    if init:
        net.load_state_dict({k: v.float() for k, v in load_file(init).items()})
    net.to(device)
    run = _Training(net, lr, seed, len(images))
    if part and Path(part).exists():
        run.restore(part)
        if run.step > core_after:
            images, labels, _ = data.load("train")
    eye, g = torch.eye(data.label_width()), run.generator
    trunk = torch.compile(net.trunk) if compiled else net.trunk  # a fifth faster on CPU
    first, begun = run.step, time.perf_counter()
    while run.step < steps:
        if run.step == core_after and run.step > 0:
            images, labels, _ = data.load("train")
            run.cursor = len(run.order)
        pick = run.pick(batch, len(images))
        context = eye[labels[pick]] * (torch.rand(batch, 1, generator=g) > DROPPED)
        theta = draw_angles(batch, g, device)
        eps = torch.randn(images[pick].shape, generator=g).to(device)
        x0 = images[pick].to(device)
        cos, sin = theta.cos().view(-1, 1, 1, 1), theta.sin().view(-1, 1, 1, 1)
        v = trunk(cos * x0 + sin * eps, theta, context[:, None].to(device))
        run.update((v - (cos * eps - sin * x0)).square().mean(), steps)
        if run.step % 100 == 0 or run.step == steps:
            took = time.perf_counter() - begun
            report(
                f"{kind} step {run.step}/{steps}  loss {run.loss:.4f}  {run.seconds + took:.0f} s  "
                f"{(run.step - first) * batch / took:.0f} images/s"
            )
            if part:
                run.save(part, run.seconds + took)
    figures = {
        "steps": steps,
        "images_seen": steps * batch,
        "seconds": run.seconds + time.perf_counter() - begun,
        "loss": run.loss,
        "seed": seed,
    }
    return {k: v.cpu() for k, v in run.ema.items()}, figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("flow", "epsilon"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--core-after", type=int, default=0, help="from this step on only the core emoji are seen"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", help="start from these weights (the flow teacher's, for epsilon)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="needs a C++ compiler; same steps, rounding differs"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    part = args.out / f"{args.kind}.part"
    weights, figures = train(
        args.kind,
        steps=args.steps,
        core_after=args.core_after,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        init=args.init,
        device=args.device,
        part=part,
        compiled=args.compile,
        report=lambda s: print(s, flush=True),
    )
    save_file(
        {k: v.half().contiguous() for k, v in weights.items()},
        args.out / f"{args.kind}.safetensors",
        metadata={"kind": args.kind, **{k: str(v) for k, v in figures.items()}},
    )
    part.unlink()


if __name__ == "__main__":
    main()
