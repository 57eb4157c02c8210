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
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import data
from .net import EmojiNet, initialise

HERE = Path(__file__).parent


def draw_angles(count, g, device):
    """theta of random training times, for both kinds: logit-normal t (Esser et al. 2024, arXiv:2403.03206), a
    fifth uniform.
    """
    t = torch.sigmoid(torch.randn(count, generator=g))
    uniform = torch.rand(count, generator=g)
    t = torch.where(torch.rand(count, generator=g) < 0.2, uniform, t)
    return torch.atan2(t, 1 - t).to(device)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024).

    torch.optim.Muon does the same in bfloat16, which is many times slower on CPUs without such units.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
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


def newton_schulz(m):
    """Nearest semi-orthogonal matrices of m (K, rows, columns), singular values about 0.7 to 1.2."""
    tall = m.shape[1] > m.shape[2]
    m = m.mT if tall else m
    m = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = m @ m.mT
        m = 3.4445 * m + (-4.7750 * gram + 2.0315 * gram @ gram) @ m
    return m.mT if tall else m


def optimisers(net, lr):
    """Muon for the matrices of the blocks, AdamW for the rest; both follow one schedule."""
    inner = [p for p in net.blocks.parameters() if p.ndim == 2 and p.shape[0] > 6]
    ids = {id(p) for p in inner}
    rest = [p for p in net.parameters() if id(p) not in ids]
    return [Muon(inner, 20 * lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]


def factor(step, steps):
    """Learning-rate factor: warm-up over 100 steps, constant, linear to 0 over the last 40 %."""
    return min(1.0, (step + 1) / 100, max(0.0, (steps - step) / (0.4 * steps)))


def train(
    kind,
    *,
    steps,
    core_after=0,
    batch=64,
    lr=1e-3,
    seed=0,
    init=None,
    device="cpu",
    part=None,
    compiled=False,
    report=print,
    **size,
):
    """-> the EMA weights, float32 on the CPU, and a dict of figures."""
    images, labels, _ = data.load("train", core=core_after == 0)
    net = initialise(EmojiNet(kind, data.label_width(), **size), seed)
    if init:
        net.load_state_dict({k: v.float() for k, v in load_file(init).items()})
    net.to(device)
    optims = optimisers(net, lr)
    ema = {k: v.detach().clone() for k, v in net.named_parameters()}
    g = torch.Generator().manual_seed(seed + 1)
    order, start, seconds = torch.randperm(len(images), generator=g), 0, 0.0
    cursor = 0
    if part and Path(part).exists():
        state = torch.load(part, weights_only=True)
        net.load_state_dict(state["net"])
        for o, s in zip(optims, state["optims"]):
            o.load_state_dict(s)
        ema, order, cursor, start, seconds = (state[k] for k in ("ema", "order", "cursor", "step", "seconds"))
        g.set_state(state["generator"])
        if start > core_after:
            images, labels, _ = data.load("train")
    eye = torch.eye(data.label_width())
    trunk = torch.compile(net.trunk) if compiled else net.trunk  # a fifth faster on CPU
    running, begun = None, time.perf_counter()
    for step in range(start, steps):
        if step == core_after and step > 0:
            images, labels, _ = data.load("train")
            cursor = len(order)
        if cursor + batch > len(order):
            order, cursor = torch.randperm(len(images), generator=g), 0
        pick = order[cursor : cursor + batch]
        cursor += batch
        context = eye[labels[pick]] * (torch.rand(batch, 1, generator=g) > 0.15)
        theta = draw_angles(batch, g, device)
        eps = torch.randn(images[pick].shape, generator=g).to(device)
        x0 = images[pick].to(device)
        cos, sin = theta.cos().view(-1, 1, 1, 1), theta.sin().view(-1, 1, 1, 1)
        v = trunk(cos * x0 + sin * eps, theta, context[:, None].to(device))
        loss = (v - (cos * eps - sin * x0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o, base in zip(optims, (20 * lr, lr)):
            o.param_groups[0]["lr"] = base * factor(step, steps)
            o.step()
            o.zero_grad(set_to_none=True)
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for k, p in net.named_parameters():
                ema[k].lerp_(p, 1 - decay)
        running = float(loss.detach()) if running is None else 0.99 * running + 0.01 * float(loss.detach())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            total = seconds + time.perf_counter() - begun
            report(
                f"{kind} step {step + 1}/{steps}  loss {running:.4f}  {total:.0f} s  "
                f"{(step + 1 - start) * batch / (total - seconds):.0f} images/s"
            )
            if part:
                torch.save(
                    {
                        "net": net.state_dict(),
                        "optims": [o.state_dict() for o in optims],
                        "ema": ema,
                        "order": order,
                        "cursor": cursor,
                        "step": step + 1,
                        "seconds": total,
                        "generator": g.get_state(),
                    },
                    f"{part}.tmp",
                )
                os.replace(f"{part}.tmp", part)
    figures = {
        "steps": steps,
        "images_seen": steps * batch,
        "seconds": seconds + time.perf_counter() - begun,
        "loss": running,
        "seed": seed,
    }
    return {k: v.cpu() for k, v in ema.items()}, figures


def main():
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
