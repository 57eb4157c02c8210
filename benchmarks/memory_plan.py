"""The plan of memory for models of real size on cards of 6 to 48 GB, without weights and without a card.

    python benchmarks/memory_plan.py [--json FILE] [--families SDXL ...] [--tiny]

Each model is built from ComfyUI's own config (`real_sizes`) and run on meta tensors: one sample, two and
three, forward and backward, with a LoRA of the family's usual rank on all layers, weights resident and
streamed. The bytes are followed storage by storage by the very code that plans a run
(`training.run.weighing`), and the plan is made of them as for a card. A row says what a user's run would be:
the first that fits of resident and streamed, with the usual rank or a lower one, and micro-batches of at most
8. A lower rank's samples are taken to cost what the usual one's do, an upper bound. Peaks are bytes, of an
update or of asking the teacher, whichever is more; a budget is the preset x 1024^3 minus what the host
reserves.
"""

import argparse
import functools
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
from fewstep.training.run.memory import CARD, LEAST_RANK, Memory, Plan, copies_of, ranks, staying, weights_of
from fewstep.training.run.student import backward_of
from fewstep.training.run.weighing import asked, passed, taken

PRESETS = (6, 8, 12, 16, 24, 48)  # GB; 6 is none of the node's
BATCH = 8
SMALL = 16 << 10  # bytes of a layer that the host never streams
DTYPE = torch.bfloat16
RESIDENT, STREAMED = "resident", "streamed"


class Unreal:
    """A model of real size without numbers, as a plan sees a denoiser on a card."""

    def __init__(self, family: real_sizes.Family, **changes):
        self.family, self.device = family, torch.device("cuda")
        self.model = real_sizes.build(family, "meta", DTYPE, **changes)
        self.model.model_sampling.to("meta")
        self.module = self.model.diffusion_model
        kind = type(self.model.model_config)
        self.rank = usual(*(known.__name__ for known in kind.__mro__)).rank
        self.residency = RESIDENT

    def streamed(self) -> list[torch.nn.Module]:
        """The layers that are fetched for each call."""
        if self.residency == RESIDENT:
            return []
        casting = [m for m in self.module.modules() if hasattr(m, "comfy_cast_weights")]
        return [m for m in casting if _own_bytes(m) > SMALL]  # a block's own parameters the host keeps there

    def loss_of(self, latent: tuple[int, ...]):
        """Number of samples -> their loss."""

        def of(samples):
            x, goal = (torch.randn(samples, *latent) for _ in range(2))
            sigma = torch.full((samples,), 0.5)
            conds = real_sizes.conditioning(self.family, samples, "meta", DTYPE)
            ask = functools.partial(real_sizes.call, self.model, x, sigma, conds, attention)
            return lambda: (ask() - goal).square().mean()

        return of


def attention(function, q, k, v, heads, *args, skip_reshape=False, skip_output_reshape=False, **options):
    """Fused attention on tensors without numbers, for which PyTorch would choose another kernel."""
    batch, width = len(q), q.shape[-1]
    if not skip_reshape:
        width //= heads
        q, k, v = (t.view(batch, -1, heads, width).transpose(1, 2) for t in (q, k, v))
    out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return out if skip_output_reshape else out.transpose(1, 2).reshape(batch, -1, heads * width)


def _own_bytes(module):
    return sum(p.numel() * p.element_size() for p in module._parameters.values() if p is not None)


class Measured:
    """The `Memory` of one model and size; each residency is measured when it is asked for."""

    def __init__(self, unreal: Unreal, latent: tuple[int, ...]):
        self.unreal, self.loss, self.known = unreal, unreal.loss_of(latent), {}

    def memory(self, residency: str, rank: int) -> Memory:
        """What a run takes whose weights live like that."""
        self.unreal.residency = residency
        if residency not in self.known:
            self.known[residency] = self._passes()
        passes, size = self.known[residency]
        return Memory(
            weights=weights_of(self.unreal),
            adapter=size * rank // self.unreal.rank,
            copies=copies_of(DistilConfig(), CARD),
            place=CARD,
            online=False,
            **passes,
        )

    def _passes(self):
        """({name: `Pass`}, bytes of the LoRA). Graphs hold nothing here, and so all of them are run."""
        lora = Lora(self.unreal.module, self.unreal.rank)
        ways = {"answer": asked}
        for name, recompute in (("whole", False), ("recomputed", True)):
            backward = backward_of(self.unreal, lora.parameters(), recompute)
            ways[name] = functools.partial(taken, backward=backward)
        try:
            return {name: passed(way, self.loss, 3) for name, way in ways.items()}, lora.bytes
        finally:
            lora.remove()

    def plan(self, preset: int) -> dict:
        """The row of a preset."""
        budget, config = (preset << 30) - reserved(), DistilConfig(rank=self.unreal.rank)
        for residency in (RESIDENT, STREAMED):
            self.unreal.residency = residency
            found = ranks(self.unreal.module, config, copies_of(config, CARD), budget, lower=True)
            for rank in found[:1] if residency == RESIDENT else found:
                if staying(self.unreal) > budget:
                    continue
                memory = self.memory(residency, rank)
                try:
                    micro, recompute = memory.choose(budget, BATCH)
                except NoMemory:
                    continue
                return self._row(preset, budget, residency, rank, memory, micro, recompute)
        rank = min(self.unreal.rank, LEAST_RANK)
        return self._row(preset, budget, STREAMED, rank, self.memory(STREAMED, rank), 1, True)

    def _row(self, preset, budget, residency, rank, memory, micro, recompute):
        chunk = memory.chunk(budget, DistilConfig().chunk)
        planned = Plan(micro=micro, checkpointing=recompute, chunk=chunk, rank=rank, memory=memory)
        return {
            "preset": preset,
            "budget": budget,
            "residency": residency,
            "checkpointing": recompute,
            "micro_batch": micro,
            "chunk": chunk,
            "rank": rank,
            "peak": planned.peak,
            "fits": planned.peak <= budget,
            "weights": memory.weights,
            "adapter": round(memory.copies * memory.adapter),
            "sample": (memory.recomputed if recompute else memory.whole).one,
        }


def reserved() -> int:
    """Bytes that the host leaves to others."""
    import comfy.model_management

    return comfy.model_management.extra_reserved_memory()


def rows_of(name: str, presets=PRESETS, latents=None, **changes) -> list[dict]:
    """The rows of one family: each size, each preset."""
    family = real_sizes.FAMILIES[name]
    rows, unreal = [], Unreal(family, **changes)
    with torch.device("meta"):
        for size, latent in (latents or family.latents).items():
            measured = Measured(unreal, latent)
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


def others(file: Path, rows: list[dict]) -> list[dict]:
    """The rows that a file has of other families."""
    found = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    return [row for row in found if row["family"] not in {row["family"] for row in rows}]


def place(row: dict) -> int:
    """The number of a row's family in the table."""
    return list(real_sizes.FAMILIES).index(row["family"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=list(real_sizes.FAMILIES), metavar="NAME")
    parser.add_argument("--json", type=Path, help="also write the rows to this file, beside other families'")
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
        if args.json:  # at once: a run that is cut off leaves what it has
            everything = sorted((*others(args.json, rows), *rows), key=place)
            args.json.write_text(json.dumps({"rows": everything}, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
