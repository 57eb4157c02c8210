"""The host's own samplers and schedulers, run on any denoiser: what the other benchmarks compare with.

    model = core.model("flow shift 3")
    samples, calls = core.run(model, core.sampler("dpmpp_2m"), sigmas, noise, denoiser)
    for pair in core.core_pairs(model, nfe=6): ...

ComfyUI runs in this process on the CPU (COMFYUI_PATH, or ~/ComfyUI). Its samplers meet a real CFGGuider and a
real MODEL (the demo teacher's, with the noise levels of the wanted type), of which only the prediction is
replaced, so no weights are used; that is what the pack's own *Inspect Sampler* does, whose code runs them.
"""

import asyncio
import dataclasses
import functools
import os
import sys
import warnings
from pathlib import Path

import torch
from exact import EDM_RANGE

ROOT = Path(__file__).resolve().parent.parent
ADAPTIVE = "chooses its own number of model calls"


class NoHost(SystemExit):
    """ComfyUI is not where it was looked for; uncaught it ends the program with its message."""


@functools.cache
def start():
    """ComfyUI's `nodes` module in this process, on the CPU, with this pack loaded by ComfyUI's own loader."""
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    if not (folder / "comfy" / "samplers.py").is_file():
        raise NoHost(f"ComfyUI is not in {folder}: set COMFYUI_PATH to its folder.")
    sys.path.insert(0, str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import nodes

    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        raise RuntimeError(f"ComfyUI could not load the pack from {ROOT}; see its message above.")
    warnings.filterwarnings("ignore", "Should have t", UserWarning)  # rounding inside torchsde
    warnings.filterwarnings("ignore", "To copy construct", UserWarning)  # dpm_fast
    return nodes


def pack_module(node_id):
    """The module of this pack, as the host loaded it, in which a node is defined."""
    return sys.modules[start().NODE_CLASS_MAPPINGS[node_id].__module__]


@functools.cache
def model(kind):
    """A MODEL with the sampling of `exact.TYPES`, or untouched for "teacher flow" and "teacher epsilon"."""
    teacher = kind.removeprefix("teacher ") if kind.startswith("teacher ") else "flow"
    patcher = start().NODE_CLASS_MAPPINGS["FewstepLoadDemoTeacher"].execute(teacher, "smiling face").args[0]
    if not kind.startswith("teacher "):
        patcher.model.model_sampling = _sampling(kind)
    return patcher


def _sampling(kind):
    import comfy.model_sampling as ms

    if kind in ("eps", "v"):
        prediction = ms.EPS if kind == "eps" else ms.V_PREDICTION
        return type("Discrete", (ms.ModelSamplingDiscrete, prediction), {})()
    if kind == "EDM":
        sampling = type("Continuous", (ms.ModelSamplingContinuousEDM, ms.EDM), {})()
        sampling.set_parameters(*EDM_RANGE, sigma_data=0.5)
        return sampling
    sampling = type("Flow", (ms.ModelSamplingDiscreteFlow, ms.CONST), {})()
    sampling.set_parameters(shift=float(kind.removeprefix("flow shift ")))
    return sampling


def sampler(name):
    """The host's SAMPLER of that name."""
    start()
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def names():
    """(samplers, schedulers) of the host's KSampler."""
    start()
    from comfy.samplers import KSampler

    return list(KSampler.SAMPLERS), list(KSampler.SCHEDULERS)


def sigmas(model, sampler_name, scheduler, steps):
    """The noise levels that the host's KSampler makes for this pair."""
    from comfy.samplers import KSampler

    return KSampler(model, steps, torch.device("cpu"), sampler_name, scheduler).sigmas


def run(model, sampler, sigmas, noise, denoiser, seed=0, latent=None):
    """(samples, model calls) of a SAMPLER from unit `noise` (B, C, H, W), over `latent` or an empty one.

    denoiser(x, sigma) -> x0 with sigma a float. The global generator, which some samplers use, is seeded and
    put back.
    """
    calls = 0

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        return denoiser(x, sigma)

    if latent is None:
        latent = torch.zeros_like(noise)
    probing = pack_module("FewstepInspectSampler").probing
    samples = probing.run(model, sampler, sigmas, counted, noise, latent, seed)
    return samples, calls


def twin(name):
    """The sampler that this one is another name for where there is no mask and no GPU, or None."""
    if name == "ddim":
        return "euler"
    return name.removesuffix("_gpu") if name.endswith("_gpu") else None


def _tiny(model, name, levels, seed=0):
    noise = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    return run(model, sampler(name), levels, noise, lambda x, sigma: 0.5 * x, seed)


@functools.cache
def draws_noise(model, name):
    """Whether the sampler's result depends on its seed."""
    levels = sigmas(model, name, "simple", 4)
    return not torch.equal(_tiny(model, name, levels, 1)[0], _tiny(model, name, levels, 2)[0])


@dataclasses.dataclass(frozen=True)
class Pair:
    """A sampler and a scheduler of the host, with the noise levels that cost `calls` model calls."""

    sampler: str
    scheduler: str
    sigmas: torch.Tensor
    calls: int

    @property
    def name(self):
        return f"{self.sampler} + {self.scheduler}"


_counted = {}  # (model type's id, sampler, steps) -> calls, or the reason why there is no number


def count(model, name, levels):
    """How many model calls a run over `levels` costs, an int, or why it can't be run, a string."""
    key = (id(model), name, len(levels))
    if key not in _counted:
        try:
            _counted[key] = _tiny(model, name, levels)[1]
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, ZeroDivisionError) as error:
            _counted[key] = f"fails at {len(levels) - 1} steps: {type(error).__name__} {str(error)[:60]}"
    return _counted[key]


def descends(levels):
    """Whether these are noise levels that a sampler can run over."""
    return len(levels) > 1 and bool(torch.isfinite(levels).all()) and bool((levels[1:] < levels[:-1]).all())


def core_pairs(model, nfe, report=print):
    """Every distinct (sampler, scheduler) of the host with as many model calls as fit into `nfe`, as `Pair`s.

    `report` gets one line for each sampler that is left out, and why.
    """
    pairs, seen = [], set()
    samplers, schedulers = names()
    for name in samplers:
        if twin(name) or name == "dpm_adaptive":
            reason = f"the same as {twin(name)}" if twin(name) else ADAPTIVE
            report(f"left out: {name}, {reason}")
            continue
        why = {}
        for scheduler in schedulers:
            pair, reason = _fit(model, name, scheduler, nfe)
            if pair is None:
                why.setdefault(reason, []).append(scheduler)
                continue
            levels = (name, tuple(pair.sigmas.tolist()))
            if levels not in seen:
                seen.add(levels)
                pairs.append(pair)
        for reason, left_out in why.items():
            which = "all" if len(left_out) == len(schedulers) else ", ".join(left_out)
            report(f"left out at {nfe} calls: {name} with {which}, {reason}")
    return pairs


def _fit(model, name, scheduler, nfe):
    """(the pair that costs the most calls up to `nfe`, None) or (None, why there is no such pair)."""
    reason = f"needs more than {nfe} calls"
    for steps in range(nfe + 1, 0, -1):
        levels = sigmas(model, name, scheduler, steps)
        if not descends(levels):
            reason = f"its noise levels for {steps} steps are not finite and descending"
            continue
        calls = count(model, name, levels)
        if isinstance(calls, str):
            reason = calls
        elif calls <= nfe:
            return Pair(name, scheduler, levels, calls), None
    return None, reason
