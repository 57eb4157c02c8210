"""Hashes that tell weights, patches and settings apart, and are the same after a restart.

    base_of     a model's own weights, whatever is patched into them
    patches_of  what is patched into them
    digest      any setting of the graph

Trajectory caches and runs are found by them: the same graph must give the same hash, another one another.
"""

import enum
import functools
import hashlib
import math
import types
import uuid
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...training.models.fingerprint import fingerprint
from .residency import declared_dtype

# of a ModelPatcher
PATCHED = ("patches", "object_patches", "weight_wrapper_patches", "wrappers", "callbacks", "injections")
# attributes that objects of the host have only while they run
PASSING = {
    "_current_index",
    "_current_keyframe",
    "_current_strength",
    "_current_used_steps",
    "_curr_t",
    "_uncond_conds",
    "_uncond_neg",
    "cond_hint",
    "conds",
    "control_input",
    "extra_concat",
    "inner_model",
    "loaded_models",
    "model_patcher",
    "model_sampling_current",
    "multigpu_clones",
    "need_weight_init",
    "timestep_range",
    "uncond_inner",
    "uncond_loaded",
}
SAMPLED = 64  # numbers of each patched tensor that are hashed
DEEPEST, LONGEST = 16, 100_000  # of what is hashed: other packs' objects may hold anything
DIGITS = 16

PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.Size)
CHANGING = (uuid.UUID, torch.device, torch.Generator, types.ModuleType)  # from start to start, or too large


def base_of(patcher: ModelPatcher) -> str:
    """Fingerprint of a model's own weights, whether or not LoRAs are patched into them at the moment, and
    whether they are cast already or stored as their file has them.
    """
    unpatched = _Unpatched(patcher)
    return fingerprint(unpatched, unpatched.dtypes())


class _Unpatched:
    """A patcher's diffusion model as `fingerprint` looks at it, with the weights that patching set aside."""

    def __init__(self, patcher: ModelPatcher):
        self.module = patcher.object_patches_backup.get("diffusion_model", patcher.model.diffusion_model)
        self.aside = patcher.backup
        self.named_parameters, self.named_buffers = self.module.named_parameters, self.module.named_buffers

    def dtypes(self) -> dict[str, torch.dtype]:
        """{name: dtype that the model declares for it}"""
        found = {}
        for prefix, part in self.module.named_modules():
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                found[f"{prefix}.{name}" if prefix else name] = declared_dtype(part, name, tensor)
        return {name: dtype for name, dtype in found.items() if dtype is not None}

    def state_dict(self) -> dict[str, torch.Tensor]:
        tensors = dict(self.module.state_dict())
        for key, kept in self.aside.items():
            name = key.removeprefix("diffusion_model.")
            if name != key and hasattr(kept.weight, "state_dict"):  # quantised: in parts
                tensors.update(kept.weight.state_dict(name))
            elif name in tensors:
                tensors[name] = kept.weight
        return tensors


def patches_of(patcher: ModelPatcher, options: dict) -> str:
    """Hash of what is patched into a model: LoRAs with their strengths, replaced objects, wrappers, and the
    model options given. "" for nothing.
    """
    found = present([{name: getattr(patcher, name, None) for name in PATCHED}, options])
    return digest(found, SAMPLED) if found else ""


def present(value: Any) -> Any:
    """Nested dicts and lists without their empty parts."""
    if isinstance(value, dict):
        kept = {key: present(part) for key, part in value.items()}
        return {key: part for key, part in kept.items() if part not in ({}, [], None)}
    if isinstance(value, list):
        return [part for part in map(present, value) if part not in ({}, [], None)]
    return value


def digest(value: Any, most: float = math.inf) -> str:
    """Hex digits that tell settings apart, and are the same after a restart.

    Nested containers, objects' attributes and what functions have captured are followed; addresses are not
    looked at. most: of a tensor with more numbers than that, so many are looked at.
    """
    run = _Digest(most)
    run.add(value)
    return run.hash.hexdigest()[:DIGITS]


class _Digest:
    """State: the hash, and the objects met so far, which also keeps their ids from being given to others."""

    def __init__(self, most: float):
        self.hash, self.most = hashlib.sha256(), most
        self.met: dict[int, tuple[int, Any]] = {}

    def put(self, *words: Any) -> None:
        self.hash.update("\0".join([*map(str, words), "\n"]).encode(errors="replace"))

    def add(self, value: Any, depth: int = 0) -> None:
        """A value of any type: in words, or by what is inside it."""
        if value is None or isinstance(value, PLAIN):
            self.put(type(value).__name__, value)
        elif torch.is_tensor(value):
            self.tensor(value)
        elif isinstance(value, CHANGING):
            self.put(type(value).__name__)
        elif isinstance(value, type):
            self.put(name_of(value))
        elif isinstance(value, (dict, list, tuple)) and not value:
            pass  # the empty tuple is one object everywhere
        elif id(value) in self.met:
            self.put("again", self.met[id(value)][0])
        elif depth < DEEPEST and len(self.met) < LONGEST:
            self.met[id(value)] = (len(self.met), value)
            self.put(name_of(type(value)))
            self.inside(value, depth + 1)

    def inside(self, value: Any, depth: int) -> None:
        """What an object consists of, by its type."""
        match value:
            case dict():
                for key in sorted(value, key=_key):
                    self.put(_key(key))
                    self.add(value[key], depth)
            case list() | tuple():
                for part in value:
                    self.add(part, depth)
            case set() | frozenset():
                self.put(*sorted(map(_key, value)))
            case ModelPatcher():
                self.patcher(value, depth)
            case functools.partial():
                self.add([value.func, value.args, value.keywords], depth)
            case types.MethodType():
                self.add([value.__func__, value.__self__], depth)
            case types.FunctionType():
                self.function(value, depth)
            case torch.nn.Module():
                self.put(*[name_of(kind) for kind in type(value).__mro__], fingerprint(value))
                settings = {k: v for k, v in vars(value).items() if isinstance(v, (bool, int, float, str))}
                self.add(settings, depth)
            case _:
                for name, part in sorted(getattr(value, "__dict__", {}).items()):
                    if name not in PASSING:
                        self.put(name)
                        self.add(part, depth)

    def patcher(self, value: ModelPatcher, depth: int) -> None:
        """Weights, and what is patched into them."""
        is_diffusion = hasattr(value.model, "diffusion_model")  # or a text encoder's, a ControlNet's
        self.put(base_of(value) if is_diffusion else fingerprint(value.model))
        settings = {name: getattr(value, name, None) for name in (*PATCHED, "model_options")}
        self.add(present(settings), depth)

    def function(self, value: types.FunctionType, depth: int) -> None:
        """Name, code and place in its file, defaults, and what it has captured."""
        code = value.__code__
        self.put(value.__module__, value.__qualname__, code.co_firstlineno, code.co_code.hex())
        self.add([value.__defaults__, value.__kwdefaults__], depth)
        for cell in value.__closure__ or ():
            self.add(_content(cell), depth)

    def tensor(self, value: torch.Tensor) -> None:
        """Shape, dtype and numbers; of one that is made of others, these."""
        self.put(tuple(value.shape), value.dtype)
        if is_traceable_wrapper_subclass(value):
            names, about = value.__tensor_flatten__()
            self.add([about, *(getattr(value, name) for name in names)])
            return
        if value.is_meta:
            return
        value = value.dequantize() if value.is_quantized else value
        flat = value.detach().reshape(-1)
        if flat.numel() > self.most:
            pick = torch.linspace(0, flat.numel() - 1, self.most, dtype=torch.float64).long()
            flat = flat[pick.to(flat.device)]
        self.hash.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def name_of(kind: type) -> str:
    """A type's module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _key(key: Any) -> str:
    """A dict's key as text: itself, or the kind of object that it is."""
    if isinstance(key, tuple):
        return "(" + " ".join(map(_key, key)) + ")"
    if key is None or isinstance(key, (bool, int, float, str, enum.Enum)):
        return repr(key)
    return name_of(key if isinstance(key, type) else type(key))


def _content(cell: types.CellType) -> Any:
    """What a closure's cell holds; a variable that was never set has nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
