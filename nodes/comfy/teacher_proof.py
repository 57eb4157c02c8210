"""Whether what training asks of a model is what a sampler gets from the graph.

The answers that a run is made of are held against those of the host's own sampling: a `CFGGuider` asked
inside its `sample`, along a path, one sample and one level a call, so that hooks, wrappers, callbacks and
every patch of guidance take part. The run's own prompts are asked at its own levels, and ours are asked mixed
in one batch, as training mixes them. Nothing is known of patches by name: what makes a difference is found by
leaving parts of the graph out one at a time (`graph_parts`).

Rounding is measured: how far the host's own answers move when the last digit of their inputs does, in the
dtype in which the model computes. Another order of sums, as another batch has it, makes differences of that
size.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import merge_nested_dicts

from ...diffusion.faults import BadValue, Message
from ...diffusion.step import step
from ...training.models.denoiser import ByLevel, Denoiser, InParts, guided
from ...training.models.memory_errors import is_out_of_memory
from ...training.trajectories.noises import start
from .denoiser import ComfyDenoiser
from .graph_parts import ATTENTION, Graph, graph_of, inside, parts_of

LEVELS = 3  # at which a prompt is asked, where nothing is patched that could look at the level
PROMPTS = 4  # that are asked at most, of each kind the first
ROWS = 8  # of a mixed call
TIMES_ROUNDING = 8  # that two answers may differ by
LEAST = torch.finfo(torch.float32).eps ** 0.5  # share of an answer that is never looked at
TENSOR_CORES = 2.0**-10  # rounding of TF32, in which a card may multiply what is float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """States x (n, ...) in model space at levels sigma (n,) of a path with that prompt, and the host's
    answers to them (n, ...).
    """

    number: int
    x: torch.Tensor
    sigma: torch.Tensor
    answers: torch.Tensor


def proven(
    denoiser: ComfyDenoiser,
    patcher: ModelPatcher,
    positive: list,
    negative: list,
    cfg: float,
    sigmas: torch.Tensor,
    remedy: Message,
) -> Denoiser:
    """The denoiser, so that its guided answers are the host's: itself, with the wrappers of the graph, or
    asked for one level, or one level of one prompt, a call.

    patcher: loaded; sigmas: the run's levels. Raises ValueError naming what in the graph makes a difference,
    with that remedy.
    """
    host = Host(denoiser, patcher, graph_of(patcher, positive, negative, cfg), sigmas)
    with torch.no_grad():
        paths = [host.path(number, levels) for number, levels in plan(host.graph, sigmas)]
        goal = torch.cat([path.answers for path in paths])
        size = distance(goal, torch.zeros_like(goal))
        allowed, tried, failed = LEAST * size, [], None
        for way in ways(denoiser, host.graph):
            try:
                tried.append(mixed(way, paths, cfg))
            except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                failed = failed or error
                continue
            if len(tried) == 1 and (distance(tried[0], goal) > allowed).any():
                host.check_repeats(paths, allowed, remedy)
                allowed = torch.maximum(allowed, TIMES_ROUNDING * host.moved(paths, host.digit))
            if (distance(tried[-1], goal) <= allowed).all():
                return way
        if not tried:
            raise no_answer(failed) from failed
        ours = min(tried, key=lambda answers: float((distance(answers, goal) / allowed).nan_to_num().max()))
        worst = int((distance(ours, goal) / allowed).nan_to_num(torch.inf).argmax())
        parts = host.to_blame(paths, ours, worst, float(allowed[worst]))
    raise _different(parts, float(distance(ours, goal)[worst] / size[worst]), remedy)


def plan(graph: Graph, sigmas: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(prompt, levels) of the paths: every level of the run for the first prompt where something is patched,
    three elsewhere, and three for a prompt of each other kind and the last.
    """
    levels = sigmas[sigmas > 0].double()
    few = levels[torch.linspace(0, len(levels) - 1, min(LEVELS, len(levels))).round().long()]
    kinds: dict[tuple, int] = {}
    for number, (cross, options) in enumerate(graph.positive):
        carried = sorted((key, str(getattr(value, "shape", type(value)))) for key, value in options.items())
        kinds.setdefault((getattr(cross, "shape", None), *carried), number)
    last = len(graph.positive) - 1
    for number in list(dict.fromkeys([*kinds.values(), last]))[:PROMPTS]:
        yield number, levels if number == 0 and graph.is_patched else few


def ways(denoiser: ComfyDenoiser, graph: Graph) -> Iterator[Denoiser]:
    """The ways in which training can ask a model, the quickest first."""
    wrapped = copy.copy(denoiser)
    own = {kind: dict(of) for kind, of in graph.wrappers.items()}
    wrapped.options = merge_nested_dicts({"wrappers": own}, denoiser.options)
    for of_one_prompt in (None, False, True):
        for way in (denoiser, wrapped) if own else (denoiser,):
            yield way if of_one_prompt is None else ByLevel(way, of_one_prompt)


def mixed(denoiser: Denoiser, paths: list[Asked], cfg: float) -> torch.Tensor:
    """The guided answers that a run is made of, prompts and levels in one batch."""
    x, sigma = (torch.cat([getattr(path, name) for path in paths]) for name in ("x", "sigma"))
    condition = torch.cat([torch.full((len(path.x),), path.number) for path in paths])
    parts = InParts(denoiser, 2 * ROWS)
    rows = torch.arange(len(x)).split(ROWS)
    return torch.cat([guided(parts, x[r], sigma[r], condition[r], cfg) for r in rows])


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root mean square of each sample's difference, (n,)."""
    return (a - b).double().flatten(1).square().mean(1).sqrt()


class Host:
    """The host's own sampling of a graph with a loaded model, along the levels `sigmas`."""

    def __init__(self, denoiser: ComfyDenoiser, patcher: ModelPatcher, graph: Graph, sigmas: torch.Tensor):
        self.denoiser, self.patcher, self.graph, self.sigmas = denoiser, patcher, graph, sigmas

    def path(self, number: int, levels: torch.Tensor) -> Asked:
        """Euler's steps from noise down those levels, by the host's answers."""
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(1, *self.denoiser.shape, generator=generator)
        states, answers = [start(noise, levels, self.denoiser.path, self.denoiser.noise_scale)], []

        def work(ask: Callable) -> None:
            for i, level in enumerate(levels):
                answers.append(self._ask(ask, states[-1], level[None]))
                if i + 1 < len(levels):
                    states.append(step(states[-1], answers[-1], self.denoiser.path, level, levels[i + 1]))

        self._inside(self.graph, number, work)
        return Asked(number=number, x=torch.cat(states), sigma=levels.float(), answers=torch.cat(answers))

    def again(self, graph: Graph, asked: Asked, x: torch.Tensor) -> torch.Tensor:
        """The answers to other states at the levels of a path, with another graph."""
        answers = []

        def work(ask: Callable) -> None:
            rows = zip(x.split(1), asked.sigma.split(1))
            answers.extend(self._ask(ask, row, level) for row, level in rows)

        self._inside(graph, asked.number, work)
        return torch.cat(answers)

    def _inside(self, graph, number, work):
        latent, mask = self.denoiser.latent, self.denoiser.mask
        inside(self.patcher, graph, number, latent, mask, self.sigmas, work)

    def _ask(self, ask, x, level):
        comfy.model_management.throw_exception_if_processing_interrupted()
        device, batch = self.patcher.load_device, self.denoiser.batch(len(x))
        level = level.to(device, torch.float32).expand(batch[0])
        return ask(x.to(device).view(batch), level).to(x).view(x.shape)

    @property
    def digit(self) -> float:
        """The last digit, as a share, of what the model computes with. A backend of attention that the graph
        chose may compute in 8 bits.
        """
        if ATTENTION in self.patcher.model_options.get("transformer_options", {}):
            return torch.finfo(torch.bfloat16).eps
        digit = torch.finfo(self.patcher.model.get_dtype_inference()).eps
        on_cpu = comfy.model_management.is_device_cpu(self.patcher.load_device)
        return digit if on_cpu else max(digit, TENSOR_CORES)

    def moved(self, paths: list[Asked], digit: float, graph: Graph | None = None) -> torch.Tensor:
        """How far the answers (n,) move with the last digit of the states."""
        generator, found = torch.Generator().manual_seed(0), []
        for path in paths:
            sign = torch.randint(2, path.x.shape, generator=generator) * 2 - 1
            first = path.answers if graph is None else self.again(graph, path, path.x)
            found.append(distance(self.again(graph or self.graph, path, path.x * (1 + digit * sign)), first))
        return torch.cat(found)

    def check_repeats(self, paths: list[Asked], allowed: torch.Tensor, remedy: Message) -> None:
        """Raise ValueError where the same questions get other answers, naming what is random."""
        if (self.moved(paths, 0.0) <= allowed).all():
            return
        parts = []
        for name, without in parts_of(self.graph, paths[0].number):
            with contextlib.suppress(Exception):  # what other parts need
                if (self.moved(paths[:1], 0.0, without) <= allowed[: len(paths[0].x)]).all():
                    parts.append(name)
        raise BadValue(
            "Training must get the same answer to the same question, and ComfyUI's own sampling gives "
            "another each time, because of {parts}. {remedy}.",
            parts=parts or Message("the model itself"),
            remedy=remedy,
        )

    def to_blame(self, paths: list[Asked], ours: torch.Tensor, worst: int, allowed: float) -> list[str]:
        """The parts of the graph without which the host's answer number `worst` is ours: the one that brings
        it nearest, then others as long as they bring it nearer.
        """
        path, row = [(path, row) for path in paths for row in range(len(path.x))][worst]
        goal, graph, found = ours[worst : worst + 1], self.graph, []
        best = float(distance(path.answers[row : row + 1], goal))
        until = dataclasses.replace(path, x=path.x[: row + 1], sigma=path.sigma[: row + 1])
        while best > allowed:
            tried = []
            for name, without in parts_of(graph, path.number):
                with contextlib.suppress(Exception):  # what other parts need
                    answer = self.again(without, until, until.x)[-1:]
                    tried.append((float(distance(answer, goal)), name, without))
            nearest = min(tried, key=lambda one: one[0], default=(best,))
            if not nearest[0] < best - allowed / 2:
                break
            best, name, graph = nearest
            found.append(name)
        return found


def no_answer(error: BaseException) -> BadValue:
    """What to say of a model that training can't ask at all."""
    return BadValue(
        'The model must answer for this latent and these prompts, and gave "{error}". Wire a latent '
        "made for this model and prompts from its own text encoder; take off patches of its attention.",
        error=error,
    )


def _different(parts: list[str], share: float, remedy: Message) -> BadValue:
    fields = {"share": f"{share:.0%}" if share >= 0.01 else f"{share:.2%}", "remedy": remedy}
    if not parts:
        return BadValue(
            "Training must ask the model for what ComfyUI's own sampling gets from it; the answers differ by "
            "{share}, and no patch, hook or conditioning of the graph is why. {remedy}.",
            **fields,
        )
    return BadValue(
        "Training must ask the model for what ComfyUI's own sampling gets from it; the answers differ by "
        "{share}, because of {parts}. {remedy}.",
        parts=parts,
        **fields,
    )
