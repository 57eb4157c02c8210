"""How a guider can be asked so that its answers are those that a sampler gets: it may look at the whole batch
(a deviation over all samples), or remember what it was asked before (momentum, caches).
"""

import functools

import torch

from ...diffusion.faults import BadValue
from ...diffusion.step import step
from ...training.trajectories.noises import start
from .guider_teacher import Teacher
from .teacher_proof import LEAST, TIMES_ROUNDING, distance

LEVELS = 3  # from the noise on, one after the other


def settle(teacher: Teacher, sigmas: torch.Tensor) -> Teacher:
    """The teacher, asked along `sigmas` as it can be: `rows` samples a call, one, or one path in a sampling
    run of its own (`each_path`).

    Two paths that are sampled alone are asked again, together and in turn. Raises ValueError for a guider
    that gives two prompts the same answer.
    """
    levels = sigmas[sigmas > 0][:LEVELS].double()
    noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    first = start(noise, levels, teacher.path, teacher.noise_scale)
    paths = [_path(teacher, x, levels, sigmas) for x in first.split(1)]
    states = [torch.cat(pair) for pair in zip(*(path[0] for path in paths))]
    goal = torch.cat([torch.cat(pair) for pair in zip(*(path[1] for path in paths))])
    digit = torch.finfo(teacher.guider.model_patcher.model.get_dtype_inference()).eps
    alone = [_again(teacher, [x[i : i + 1] * (1 + digit) for x in states], levels, sigmas, 1) for i in (0, 1)]
    moved = torch.stack(alone, 1).flatten(0, 1)
    allowed = TIMES_ROUNDING * distance(moved, goal) + LEAST * distance(goal, torch.zeros_like(goal))

    def differs(parts: int) -> bool:
        return bool((distance(_again(teacher, states, levels, sigmas, parts), goal) > allowed).any())

    if differs(1):
        teacher.rows, teacher.each_path = 1, functools.partial(teacher.run, sigmas=sigmas)
    elif teacher.rows > 1 and differs(2):
        teacher.rows = 1
    if teacher.conditions > 1 and _is_deaf(teacher, states[0][:1], levels[:1], sigmas):
        raise BadValue(
            "guider must answer each of the {count} prompts for itself, and gives two the same answer: it "
            "keeps its conditioning elsewhere. Wire one prompt into positive.",
            count=teacher.conditions,
        )
    return teacher


def _path(teacher, x, levels, sigmas):
    """(states, answers) of Euler's steps from x (1, ...), sampled alone."""
    states, answers = [x], []

    def work() -> None:
        for i, level in enumerate(levels):
            answers.append(_ask(teacher, states[-1], level))
            if i + 1 < len(levels):
                states.append(step(states[-1], answers[-1], teacher.path, level, levels[i + 1]))

    teacher.run(work, sigmas)
    return states, answers


def _again(teacher, states, levels, sigmas, parts):
    """Answers to states (n, ...) at each of the levels, in one sampling run, so many samples a call."""
    answers = []

    def work() -> None:
        for x, level in zip(states, levels):
            answers.extend(_ask(teacher, part, level) for part in x.split(parts))

    teacher.run(work, sigmas)
    return torch.cat(answers)


def _is_deaf(teacher, x, level, sigmas):
    """Whether the first and the last prompt have one answer."""
    answers = []

    def work() -> None:
        answers.extend(_ask(teacher, x, level[0], number) for number in (0, teacher.conditions - 1))

    teacher.run(work, sigmas)
    own = teacher.guider.original_conds["positive"]
    return torch.equal(*answers) and not torch.equal(own[0]["cross_attn"], own[-1]["cross_attn"])


def _ask(teacher, x, level, number=0):
    return teacher(x, level.expand(len(x)), torch.full((len(x),), number))
