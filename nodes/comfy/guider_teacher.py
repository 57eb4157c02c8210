"""A guider as a teacher: what the host's own sampling predicts, without gradient.

It is asked inside its own `sample`, where a sampler would ask it, so that whatever the host can sample can be
a teacher: LoRAs, ControlNets, regional prompts, quantised and offloaded weights, other packs' guiders.

    teacher = Teacher(prompted(guider, positive), shape, seed)
    teacher.run(work, sigmas)           # within work(), teacher(x, sigma, condition) -> x0

Its `identity` is what a trajectory cache is found by: hashes of `fingerprints`.
"""

import copy
import functools
from collections.abc import Callable

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

from ...diffusion.faults import BadValue
from ...training.models.denoiser import InParts
from .fingerprints import PASSING, SAMPLED, base_of, digest, name_of, patches_of, present
from .guider_apart import ApartGuider, answers_apart, ask
from .latents import takes_batch_for_frames
from .levels import check_range, noise_scale_of, path_of, sigma_of

ROWS = 8  # samples of one model call, at most: a shard of the cache
STRENGTHS = ("cfg", "cfg1", "cfg2")  # where the host's guiders keep theirs
SHARE = 0.9  # of the memory beside the weights that a call may take


class Prompts(CFGGuider):
    """What `prompted` puts before a guider's class: each entry of its positive conditioning is a prompt of
    its own, and within `sample` `choose` says which is used.
    """

    prompts: list[dict] = []  # worked out, while it samples
    prompted_kind: type = CFGGuider  # the guider's own class

    def inner_sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        device: torch.device,
        sampler: comfy.samplers.Sampler,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None,
        callback: Callable | None,
        disable_pbar: bool,
        seed: int,
        latent_shapes: list | None = None,
    ) -> torch.Tensor:
        """The host's, with `prompts` worked out as it works out the conditioning."""
        every, self.prompts = self.conds, []
        for entry in every["positive"]:
            self.conds = {**every, "positive": [entry]}
            processed = comfy.samplers.process_conds(
                self.inner_model,
                noise,
                self.conds.copy(),
                device,
                latent_image,
                denoise_mask,
                seed,
                latent_shapes=latent_shapes,
            )
            self.prompts.append(processed)
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
            self.conds = every  # what the host cleans up after
            del self.prompts

    def choose(self, number: int) -> None:
        """Ask for that prompt from now on."""
        self.conds = self.prompts[number]


def prompted(guider: CFGGuider, positive: list) -> CFGGuider:
    """A guider like that one, which is asked for each of the prompts of a CONDITIONING on its own.

    Where the guider's positive is one entry, each prompt takes its place, and what else that entry carries (a
    ControlNet, hooks, a region) stays. Where it is those very prompts, they are asked one by one. Where it is
    several others, regions for instance, they belong together and teach one prompt: the guider as it is.
    Raises ValueError for several prompts then, and for a guider that keeps its conditioning elsewhere.
    """
    entries = comfy.sampler_helpers.convert_cond(positive)
    own = (getattr(guider, "original_conds", None) or {}).get("positive") or []
    if len(own) != 1 and digest(own) != digest(entries):
        if len(entries) == 1:
            return guider
        raise BadValue(
            "guider must have one positive entry, in whose place each of the {count} prompts is put, or "
            "those very prompts, got {got}. Wire one prompt into positive, or prompts into the guider.",
            count=len(entries),
            got=len(own),
        )
    kind, made = type(guider), copy.copy(guider)
    made.__class__ = type(kind.__name__, (Prompts, kind), {"prompted_kind": kind})
    if len(own) == 1:
        entries = [_instead(own[0], entry) for entry in entries]
    made.original_conds = {**guider.original_conds, "positive": entries}
    return made


def first_prompt(guider: CFGGuider) -> CFGGuider:
    """The guider to sample with where it was asked prompt by prompt: with the first of them."""
    if not isinstance(guider, Prompts):
        return guider
    made = copy.copy(guider)
    made.__class__ = guider.prompted_kind
    made.original_conds = {**guider.original_conds, "positive": guider.original_conds["positive"][:1]}
    return made


def _instead(own: dict, entry: dict) -> dict:
    """A guider's entry with another prompt in it."""
    return {**own, **entry, "model_conds": {**own.get("model_conds", {}), **entry["model_conds"]}}


class Inside(comfy.samplers.Sampler):
    """Calls `work(ask)` in the place of a sampler, with `ask(x, sigma) -> x0`, x in model space; where the
    guider answers apart, also `ask(x, sigma, kinds)`, one for each of the kinds.
    """

    def __init__(self, work: Callable[[Callable], None]):
        self.work = work

    def sample(
        self,
        model_wrap: CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        def answer(x, sigma, kinds=""):
            return (
                ask(model_wrap, x, sigma, kinds, extra_args) if kinds else model_wrap(x, sigma, **extra_args)
            )

        self.work(answer)
        return noise


class Teacher:
    """A guider as `training` asks it: (x, sigma, condition) -> x0, on the CPU in float32. Only within `run`.

    Every call looks for the user's cancel first. shape: of one sample; rows: how many are asked in one call;
    each_path: what each path has to be solved in, where the guider remembers (`guider_proof`); apart: asks
    for the parts of guidance, where it has such (`guider_apart`).
    """

    each_path: Callable[[Callable[[], None]], None] | None = None
    apart: Callable[..., list[torch.Tensor]] | None = None

    def __init__(self, guider: CFGGuider, shape: tuple[int, ...], seed: int = 0):
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")
        self.guider, self.shape, self.seed = guider, tuple(shape), seed
        self.path, self.sigma_of = path_of(sampling), sigma_of(sampling)
        self.noise_scale = noise_scale_of(sampling)
        self.conditions = len(guider.original_conds["positive"]) if isinstance(guider, Prompts) else 1
        self.base = base_of(patcher)
        self.cfg, self.guider_name = cfg_of(guider), guider_name(guider)
        self.strength = strength_of(guider)
        self.frames = self.shape[0] if takes_batch_for_frames(patcher.model) else 0
        self.device = patcher.load_device
        self.rows = 1 if self.frames else rows_at_once(patcher, self.shape)
        self.identity = {
            "model": self.base,
            "patches": patches_of(patcher, guider.model_options),
            "conditioning": digest(getattr(guider, "original_conds", None)),
            "guidance": guidance_of(guider),
        }
        self._ask, self._in_parts = None, InParts(self._asked, self.rows)
        self._apart_in_parts: dict[str, InParts] = {}  # by kinds
        if answers_apart(guider) and self.cfg != 1:
            self.apart = self._apart

    def run(self, work: Callable[[], None], sigmas: torch.Tensor) -> None:
        """Call work() where a sampler would run along `sigmas`, the model loaded for batches of `rows`."""

        def inside(ask: Callable) -> None:
            self._ask = ask
            work()

        empty = torch.zeros(self.shape if self.frames else (self.rows, *self.shape))
        sampler, levels = Inside(inside), sigmas.float()
        try:
            self.guider.sample(empty, empty, sampler, levels, disable_pbar=True, seed=self.seed)
        finally:
            self._ask = None

    def draw(self, work: Callable[[], None], sigmas: torch.Tensor) -> None:
        """`run` of work that solves paths along `sigmas`."""
        work() if self.each_path else self.run(work, sigmas)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """x0 (B, *shape) from x (B, *shape), sigma (B,) and condition (B,)."""
        return self._of_each_prompt(self._in_parts, x, sigma, condition)

    def _apart(self, x, sigma, condition, kinds):
        """A prediction (B, *shape) for each letter of kinds."""
        most = max(1, self._in_parts.most // len(kinds))  # all kinds are one batch
        if kinds not in self._apart_in_parts:
            self._apart_in_parts[kinds] = InParts(functools.partial(self._asked, kinds=kinds), most)
        parts = self._apart_in_parts[kinds]
        parts.most = min(parts.most, most)
        return list(self._of_each_prompt(parts, x, sigma, condition).unbind(1))

    def _of_each_prompt(self, asked, x, sigma, condition):
        """The answers of all rows, which are asked prompt by prompt."""
        numbers = condition.unique().tolist()
        if len(numbers) == 1:
            return self._of_prompt(asked, numbers[0], x, sigma, condition)
        out = None
        for number in numbers:
            which = condition == number
            answer = self._of_prompt(asked, number, x[which], sigma[which], condition[which])
            out = answer.new_empty(len(x), *answer.shape[1:]) if out is None else out
            out[which] = answer
        return out

    def _of_prompt(self, asked, number, *rows):
        if isinstance(self.guider, Prompts):
            self.guider.choose(number)
        return asked(*rows)

    def _asked(self, x, sigma, _, kinds=""):
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows, levels = (part.to(self.device, torch.float32) for part in (x, sigma))
        if self.frames:
            rows, levels = rows.flatten(0, 1), levels.repeat_interleave(self.frames)
        if not kinds:
            return self._ask(rows, levels).to("cpu", torch.float32).view(x.shape)
        answers = self._ask(rows, levels, kinds)
        return torch.stack([part.to("cpu", torch.float32).view(x.shape) for part in answers], 1)


def taught_by(
    guider: CFGGuider, model: ModelPatcher, positive: list, shape: tuple[int, ...], sigmas: torch.Tensor
) -> Teacher:
    """The guider as the teacher of a student that is `model`, plain, with the prompts of `positive`.

    sigmas: the levels that it will be asked at. Raises ValueError where it samples on another path, with
    other noise or from lower levels than the student.
    """
    teacher = Teacher(prompted(guider, positive), shape)
    sampling = model.get_model_object("model_sampling")
    ours = {"path": path_of(sampling).name, "noise scale": noise_scale_of(sampling)}
    got = {"path": teacher.path.name, "noise scale": teacher.noise_scale}
    if odd := [name for name, value in ours.items() if got[name] != value]:
        raise BadValue(
            "guider must sample as the wired model does, and its {odd} differs: {got} and not {wanted}. Wire "
            "a guider of the same kind of model.",
            odd=odd,
            got=got[odd[0]],
            wanted=ours[odd[0]],
        )
    check_range(sigmas, guider.model_patcher.get_model_object("model_sampling"), "the levels of model")
    return teacher


def rows_at_once(patcher: ModelPatcher, shape: tuple[int, ...]) -> int:
    """How many samples of that shape a call may have.

    With guidance they must fit beside the weights, or into half the memory.
    """
    total = comfy.model_management.get_total_memory(patcher.load_device)
    room = SHARE * max(total - patcher.model_size(), total / 2)
    rows = ROWS
    while rows > 1 and patcher.model.memory_required([2 * rows, *shape]) > room:
        rows //= 2
    return rows


def cfg_of(guider: CFGGuider) -> float:
    """The guidance that a recipe names; 1 for a guider that has no such number."""
    return _number(guider, "cfg")


def strength_of(guider: CFGGuider) -> float:
    """How strong a guider's guidance is at its strongest, 1 where it tells of none.

    One guidance nested in the other multiplies it: z + cfg2 ((m + cfg1 (p - m)) - z).
    """
    found = {name: _number(guider, name) for name in STRENGTHS}
    nested = found["cfg1"] * found["cfg2"] if getattr(guider, "nested", False) else 1.0
    return max(1.0, nested, *found.values())


def _number(guider, name):
    """A guider's number of that name, as Python, NumPy or PyTorch have numbers; 1 where it has none."""
    try:
        return float(getattr(guider, name, 1.0))
    except (TypeError, ValueError, RuntimeError):
        return 1.0


def guider_name(guider: CFGGuider) -> str:
    """What a guider is called whose guidance is more than a CFG; "" for one that is just that."""
    kind = getattr(guider, "prompted_kind", type(guider))
    return "" if kind in (CFGGuider, ApartGuider) else kind.__name__


def guidance_of(guider: CFGGuider) -> str:
    """CFG as text; for other guiders their type and a hash of their settings."""
    kind = getattr(guider, "prompted_kind", type(guider))
    if not guider_name(guider):
        return f"CFG {float(guider.cfg):g}"
    others = {*PASSING, "model_options", "original_conds"}  # told by the rest of an identity
    settings = {name: value for name, value in vars(guider).items() if name not in others}
    return f"{name_of(kind)} {digest(present(settings), SAMPLED)}"
