"""The plan of memory for models of real size on cards of 6 to 48 GB, without weights and without a card.

    python benchmarks/memory_plan.py [--json FILE] [--families SDXL ...] [--tiny]

Each model is built from ComfyUI's own config (`real_sizes`) and run on fake tensors: one sample and two,
forward and backward, with a LoRA on all layers, weights resident and streamed. The bytes are followed storage
by storage by the very code that plans a run (`training.run.weighing`), and the plan is made of them as for a
card. A row says what a user's run would be: the first that fits of resident, with the usual rank or a lower
one, and streamed; micro-batches of at most 8. Peaks are bytes; a budget is the preset x 1024^3 minus what the
host reserves.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import real_sizes
import torch
from fewstep.diffusion.faults import NoMemory
from fewstep.training.adapter.lora import Lora
from fewstep.training.models.families import usual
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.memory import CARD, LEAST_RANK, Memory, ranks, staying, weights_of
from fewstep.training.run.weighing import weigh
from torch._subclasses.fake_tensor import FakeTensorMode

PRESETS = (6, 8, 12, 16, 24, 48)  # GB; 6 is none of the node's
BATCH = 8
SMALL = 16 << 10  # bytes of a layer that the host never streams
DTYPE = torch.bfloat16
RESIDENT, STREAMED = "resident", "streamed"


class Fake:
    """A model of real size on fake tensors, as a plan sees a denoiser on a card."""

    def __init__(self, family: real_sizes.Family, **changes):
        self.family, self.device = family, torch.device("cuda")
        self.model = real_sizes.build(family, "meta", DTYPE, **changes)
        self.module = self.model.diffusion_model
        _pretend(self.module)
        kind = type(self.model.model_config)
        self.rank = usual(*(known.__name__ for known in kind.__mro__)).rank
        self.residency = RESIDENT

    def streamed(self) -> list[torch.nn.Module]:
        """The layers that are fetched for each call."""
        if self.residency == RESIDENT:
            return []
        return [m for m in self.module.modules() if _own_bytes(m) > SMALL]

    def loss_of(self, latent: tuple[int, ...]):
        """Number of samples -> their loss."""

        def of(samples):
            x, goal = (torch.randn(samples, *latent) for _ in range(2))
            sigma = torch.full((samples,), 0.5)
            conds = real_sizes.conditioning(self.family, samples, "cpu", DTYPE)
            return lambda: (real_sizes.call(self.model, x, sigma, conds) - goal).square().mean()

        return of


def _own_bytes(module):
    return sum(p.numel() * p.element_size() for p in module._parameters.values() if p is not None)


def _pretend(module):
    """Fake tensors for those without numbers."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensor.device.type == "meta":
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    store[name] = torch.nn.Parameter(fake, False) if store is part._parameters else fake


class Measured:
    """The `Memory` of one model and size, by residency and rank, each measured when it is asked for."""

    def __init__(self, fake: Fake, latent: tuple[int, ...]):
        self.fake, self.latent, self.known = fake, latent, {}

    def memory(self, residency: str, rank: int) -> Memory:
        """What a run takes whose weights live like that."""
        if (residency, rank) not in self.known:
            self.fake.residency = residency
            lora = Lora(self.fake.module, rank)
            try:
                passes = weigh(self.fake, lora, self.fake.loss_of(self.latent), BATCH)
            finally:
                lora.remove()
            memory = Memory(
                weights=weights_of(self.fake), adapter=lora.bytes, place=CARD, online=False, **passes
            )
            self.known[residency, rank] = memory
        return self.known[residency, rank]

    def plan(self, preset: int) -> dict:
        """The row of a preset."""
        budget, config = (preset << 30) - reserved(), DistilConfig(rank=self.fake.rank)
        for residency in (RESIDENT, STREAMED):
            self.fake.residency = residency
            for rank in ranks(self.fake.module, config, CARD.copies, budget, lower=True):
                if staying(self.fake) > budget:
                    continue
                memory = self.memory(residency, rank)
                try:
                    micro, recompute = memory.choose(budget, BATCH)
                except NoMemory:
                    continue
                return self._row(preset, budget, residency, rank, memory, micro, recompute)
        rank = min(self.fake.rank, LEAST_RANK)
        return self._row(preset, budget, STREAMED, rank, self.memory(STREAMED, rank), 1, True)

    def _row(self, preset, budget, residency, rank, memory, micro, recompute):
        peak = memory.peak(micro, recompute)
        return {
            "preset": preset,
            "budget": budget,
            "residency": residency,
            "checkpointing": recompute,
            "micro_batch": micro,
            "rank": rank,
            "peak": peak,
            "fits": peak <= budget,
            "weights": memory.weights,
            "adapter": CARD.copies * memory.adapter,
            "sample": (memory.recomputed if recompute else memory.whole).one,
        }


def reserved() -> int:
    """Bytes that the host leaves to others."""
    import comfy.model_management

    return comfy.model_management.extra_reserved_memory()


def rows_of(name: str, presets=PRESETS, latents=None, **changes) -> list[dict]:
    """The rows of one family: each size, each preset."""
    family = real_sizes.FAMILIES[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = Fake(family, **changes)
        rows = []
        for size, latent in (latents or family.latents).items():
            measured = Measured(fake, latent)
            rows += [{"family": name, "size": size, **measured.plan(preset)} for preset in presets]
    return rows


def line_of(row: dict) -> str:
    """A row in words."""
    gib = {key: row[key] / 2**30 for key in ("peak", "weights", "adapter", "sample")}
    how = "blocks" if row["checkpointing"] else "whole"
    fits = "" if row["fits"] else "  does not fit"
    sizes = "".join(f"{gib[key]:9.2f}" for key in ("weights", "adapter", "sample", "peak"))
    what = f"{row['family']:16}{row['size']:>16}{row['preset']:4} GB{row['residency']:>10}"
    return f"{what}{how:>8}{row['micro_batch']:8}{row['rank']:5}{sizes}{fits}"


HEAD = (
    f"{'family':16}{'size':>16}{'card':>7}{'weights':>10}{'graph':>8}{'samples':>8}{'rank':>5}"
    f"{'weights':>9}{'LoRA':>9}{'sample':>9}{'peak':>9} (GiB)"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=list(real_sizes.FAMILIES), metavar="NAME")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tiny", action="store_true", help="one small model, in seconds")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    print(HEAD, flush=True)
    work = {name: {} for name in args.families or real_sizes.FAMILIES}
    if args.tiny:
        work = {"Flux dev fp8": {"depth": 1, "depth_single_blocks": 1, "hidden_size": 128, "num_heads": 1}}
    for name, changes in work.items():
        latents = {"64": (16, 8, 8)} if args.tiny else None
        found = rows_of(name, latents=latents, **changes)
        for row in found:
            print(line_of(row), flush=True)
        rows += found
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
