"""A guider as the teacher of a solver fit. It is asked inside its own `sample`, where a sampler would ask it,
so that whatever the host can sample can be fitted: LoRAs, ControlNets, regional prompts, quantised and
offloaded weights, other packs' guiders.

    teacher = Teacher(guider, shape, seed)
    teacher.run(work, sigmas)           # within work(), teacher(x, sigma, condition) -> x0

Its `identity` is what a trajectory cache is found by: hashes that are the same after a restart, see `digest`.
"""

import enum
import functools
import hashlib
import math
import types
import uuid

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch

from ...training.models.fingerprint import fingerprint
from . import host

ROWS = 8  # samples of one model call, at most: a shard of the cache
SHARE = 0.9  # of the memory beside the weights that a call may take
PATCHED = (
    "patches",
    "object_patches",
    "weight_wrapper_patches",
    "wrappers",
    "callbacks",
    "injections",
)  # of a ModelPatcher
SAMPLED = 64  # numbers of each patched tensor that are hashed
DEEPEST, LONGEST = 16, 100_000  # of what is hashed: other packs' objects may hold anything
PASSING = {
    "cond_hint",
    "timestep_range",
    "control_input",
    "extra_concat",
    "model_sampling_current",
    "multigpu_clones",
    "need_weight_init",
    "_current_keyframe",
    "_current_used_steps",
    "_current_index",
    "_current_strength",
    "_curr_t",
    "model_patcher",
    "inner_model",
    "conds",
    "loaded_models",
    "uncond_inner",
    "uncond_loaded",
    "_uncond_neg",
    "_uncond_conds",
}  # what objects of the host hold only while they run


class Prompts(comfy.samplers.CFGGuider):
    """The host's guider with each positive entry a prompt of its own; within `sample`, `choose` says which is
    asked for.
    """

    def inner_sample(
        self,
        noise,
        latent_image,
        device,
        sampler,
        sigmas,
        denoise_mask,
        callback,
        disable_pbar,
        seed,
        latent_shapes=None,
    ):
        every, self.prompts = self.conds, []
        for entry in every["positive"]:
            self.conds = {**every, "positive": [entry]}
            self.prompts.append(
                comfy.samplers.process_conds(
                    self.inner_model,
                    noise,
                    self.conds.copy(),
                    device,
                    latent_image,
                    denoise_mask,
                    seed,
                    latent_shapes=latent_shapes,
                )
            )
        try:
            return super().inner_sample(
                noise,
                latent_image,
                device,
                sampler,
                sigmas,
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                latent_shapes=latent_shapes,
            )
        finally:
            self.conds, self.prompts = every, []  # what the host cleans up after

    def choose(self, number):
        """Ask for that prompt from now on."""
        self.conds = self.prompts[number]


class _Inside(comfy.samplers.Sampler):
    """Calls `work(ask)` in the place of a sampler, with `ask(x, sigma) -> x0`, x in model space."""

    def __init__(self, work):
        self.work = work

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        self.work(lambda x, sigma: model_wrap(x, sigma, **extra_args))
        return noise


class Teacher:
    """A guider as `training.fitting.SolverFit` asks it: (x, sigma, condition) -> x0, on the CPU in float32.
    Only within `run`.

    Every call looks for the user's cancel first. shape: of one sample.
    """

    def __init__(self, guider, shape, seed=0):
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")
        self.guider, self.shape, self.seed = guider, tuple(shape), seed
        self.path, self.sigma_of = host.path_of(sampling), host.sigma_of(sampling)
        self.noise_scale = float(getattr(sampling, "noise_scale", 1.0))
        self.conditions = len(guider.original_conds["positive"]) if isinstance(guider, Prompts) else 1
        cfg = getattr(guider, "cfg", 1.0)
        self.base, self.cfg = host.base_of(patcher), float(cfg) if isinstance(cfg, (int, float)) else 1.0
        self.device, self.rows = patcher.load_device, rows_at_once(patcher, self.shape)
        self.identity = {
            "model": self.base,
            "patches": patches_of(patcher, guider.model_options),
            "conditioning": digest(getattr(guider, "original_conds", None)),
            "guidance": guidance_of(guider),
        }
        self._ask = None

    def run(self, work, sigmas):
        """Call work() where a sampler would run along `sigmas`, with the model loaded for batches of `rows`."""

        def inside(ask):
            self._ask = ask
            work()

        empty = torch.zeros(self.rows, *self.shape)
        try:
            self.guider.sample(
                empty, empty, _Inside(inside), sigmas.float(), disable_pbar=True, seed=self.seed
            )
        finally:
            self._ask = None

    def __call__(self, x, sigma, condition):
        out = torch.empty(x.shape, dtype=torch.float32)
        for number in condition.unique().tolist():
            if isinstance(self.guider, Prompts):
                self.guider.choose(number)
            for which in (condition == number).nonzero()[:, 0].split(self.rows):
                comfy.model_management.throw_exception_if_processing_interrupted()
                rows = x[which].to(self.device, torch.float32)
                out[which] = self._ask(rows, sigma[which].to(self.device, torch.float32)).to(out)
        return out


def rows_at_once(patcher, shape):
    """How many samples of that shape a call may have: with guidance they must fit beside the weights, or into
    half the memory.
    """
    total = comfy.model_management.get_total_memory(patcher.load_device)
    room = SHARE * max(total - patcher.model_size(), total / 2)
    rows = ROWS
    while rows > 1 and patcher.model.memory_required([2 * rows, *shape]) > room:
        rows //= 2
    return rows


# ---- identity --------------------------------------------------------------------------------------


def patches_of(patcher, options):
    """Hash of what is patched into a model: LoRAs with their strengths, replaced objects, wrappers, options.
    "" for nothing.
    """
    found = _present([{name: getattr(patcher, name, None) for name in PATCHED}, options])
    return digest(found, SAMPLED) if found else ""


def _present(value):
    """Without the empty parts of nested dicts and lists."""
    if isinstance(value, dict):
        return (
            {k: kept for k, v in value.items() if (kept := _present(v)) not in ({}, [], None)}
            if value
            else value
        )
    if isinstance(value, list):
        return [kept for v in value if (kept := _present(v)) not in ({}, [], None)]
    return value


def guidance_of(guider):
    """CFG as text; for other guiders their type and a hash of their settings."""
    if type(guider) in (comfy.samplers.CFGGuider, Prompts):
        return f"CFG {float(guider.cfg):g}"
    settings = {
        k: v
        for k, v in vars(guider).items()
        if k not in PASSING and k not in ("model_options", "original_conds")
    }
    return f"{_name(type(guider))} {digest(_present(settings), SAMPLED)}"


def digest(value, most=math.inf):
    """16 hex digits that tell settings apart, and are the same after a restart.

    Nested containers, objects' attributes and what functions have captured are followed; addresses are not
    looked at. most: of tensors with more numbers than that, so many are looked at.
    """
    run = _Digest(most)
    run.add(value)
    return run.hash.hexdigest()[:16]


class _Digest:
    """State: the hash, and the objects met so far, which also keeps their ids from being given to others."""

    def __init__(self, most):
        self.hash, self.most, self.met = hashlib.sha256(), most, {}

    def put(self, *words):
        self.hash.update("\0".join([*map(str, words), "\n"]).encode(errors="replace"))

    def add(self, value, depth=0):
        if value is None or isinstance(
            value, (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.Size)
        ):
            self.put(type(value).__name__, value)
        elif torch.is_tensor(value):
            self.tensor(value)
        elif isinstance(value, (uuid.UUID, torch.device, torch.Generator, types.ModuleType)):
            self.put(type(value).__name__)
        elif isinstance(value, type):
            self.put(_name(value))
        elif not isinstance(value, (dict, list, tuple)) or value:  # the empty tuple is one object everywhere
            if id(value) in self.met:
                self.put("again", self.met[id(value)][0])
            elif depth < DEEPEST and len(self.met) < LONGEST:
                self.met[id(value)] = (len(self.met), value)
                self.inside(value, depth + 1)

    def inside(self, value, depth):
        self.put(_name(type(value)))
        if isinstance(value, dict):
            for key in sorted(value, key=_key):
                self.put(_key(key))
                self.add(value[key], depth)
        elif isinstance(value, (list, tuple)):
            for part in value:
                self.add(part, depth)
        elif isinstance(value, (set, frozenset)):
            self.put(*sorted(map(_key, value)))
        elif isinstance(value, comfy.model_patcher.ModelPatcher):
            self.put(
                host.base_of(value) if hasattr(value.model, "diffusion_model") else fingerprint(value.model)
            )
            self.add(
                _present({name: getattr(value, name, None) for name in (*PATCHED, "model_options")}), depth
            )
        elif isinstance(value, functools.partial):
            self.add([value.func, value.args, value.keywords], depth)
        elif isinstance(value, types.MethodType):
            self.add([value.__func__, value.__self__], depth)
        elif isinstance(value, types.FunctionType):
            self.put(
                value.__module__,
                value.__qualname__,
                value.__code__.co_firstlineno,
                value.__code__.co_code.hex(),
            )
            self.add([value.__defaults__, value.__kwdefaults__], depth)
            for cell in value.__closure__ or ():
                self.add(_content(cell), depth)
        elif isinstance(value, torch.nn.Module):
            self.put(*[_name(kind) for kind in type(value).__mro__], fingerprint(value))
            self.add({k: v for k, v in vars(value).items() if isinstance(v, (bool, int, float, str))}, depth)
        else:
            for name, part in sorted(getattr(value, "__dict__", {}).items()):
                if name not in PASSING:
                    self.put(name)
                    self.add(part, depth)

    def tensor(self, value):
        value = (
            value.dequantize() if value.is_quantized or type(value).__name__ == "QuantizedTensor" else value
        )
        self.put(tuple(value.shape), value.dtype)
        flat = value.detach().reshape(-1)
        if flat.numel() > self.most:
            flat = flat[
                torch.linspace(0, flat.numel() - 1, self.most, dtype=torch.float64).long().to(flat.device)
            ]
        self.hash.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def _key(key):
    """A dict's key as text: itself, or the kind of object that it is."""
    if isinstance(key, tuple):
        return "(" + " ".join(map(_key, key)) + ")"
    return (
        repr(key)
        if key is None or isinstance(key, (bool, int, float, str, enum.Enum))
        else _name(key if isinstance(key, type) else type(key))
    )


def _content(cell):
    """What a closure's cell holds; a variable that was never set has nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
