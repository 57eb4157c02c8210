"""Distribution matching: the student's pictures are made to be distributed as the teacher's are.

DMD (Yin et al. 2024, arXiv:2311.18828) with the trajectories of TDM (Luo et al. 2025, arXiv:2503.06674), on
one base with an adapter for each role. The student steps from noise along its grid. What is matched at a
step, y, is noised on to a level t of the segment (`points`); with q the distribution of that and p that of
the teacher's, noised alike,

    gradient of KL(q || p) on y  =  E[a (score_q - score_p)(x_t)]  =  E[a alpha_t / sigma_t^2 (fake - real)]

where `fake` and `real` predict x0 (DMD, eq. 4). The student's prediction x0 is pulled to x0 - (fake - real),
each sample weighted by `balance`. Nothing but prompts is needed for that; the noise is fresh at each draw.

fake    an adapter that learns the student's own distribution, by denoising its points; ahead of the student
        from the start, and kept ahead (`lead`). Its optimiser has no momentum, as is usual where two learn
        against each other
real    "guided": the base at the user's CFG; "pictures": an adapter that has learnt the teacher's own cached
        pictures by the same denoising, first in the run; "blended": pictures at noise, guided at data. What
        CFG samples is not distributed as its score says: a student that follows it comes out sharper than the
        teacher (docs/findings/guided_score.md)
points  "pictures": y is the step's prediction x0, with fresh noise. "trajectory": y is the next point of the
        trajectory, whose score needs the target that `points.noised_on` gives
span    the noise level tells the fake of which step it is asked, as each has its own segment. Over the "full"
        range above it (DMD2) it learns a mixture of all steps, which can be the teacher's while no step's
        pictures are; for that reason a run matches one number of steps, that of its grid. Within it a small
        network comes as near by either span (docs/findings/one_fake.md)
"""

import math
from collections.abc import Callable, Mapping

import torch

from ...diffusion.predictions import expand
from ...diffusion.step import step
from ..trajectories.noises import start
from .distances import squared_error
from .method import Batch, Context, Method, Role, Settings, draw_samples
from .phases import NEAREST, step_level
from .points import noised_on, walked
from .registry import register
from .times import warm_up_then_cosine

REALS = ("pictures", "guided", "blended")
POINTS = ("pictures", "trajectory")
SPANS = ("segment", "full")
BALANCES = ("distance", "divergence")
DIVERGENCES = ("kl", "fisher")
# alpha of Zhou et al. 2024, arXiv:2404.04057, eq. 23; 1/2 is the gradient of half of the divergence
SID = 1.0
# of a step, that a point of a trajectory is noised on at least: known's variance is finite there
APART = 0.05
MOST_WEIGHT = 5.0  # of a denoising loss (Hang et al. 2023, arXiv:2303.09556), in x0
LR_SHARE = 0.05  # of what regression learns at: the student moves as slowly as the fake can follow
LAST = 0.1  # of the fake's learning rate, at the end
TOLD = ("gap", "cosine", "truth", "claim")
SHOWN = TOLD[:2]  # of that, to people: how far the two scores are from one another
AHEAD, BEHIND = 0.9, 0.5  # share of the truth in what the fake says: fewest updates of it, and most


# ---- where a batch looks -------------------------------------------------------------------------


def places(context: Context, first: int = 0) -> Batch:
    """A level "t" for each sample, and the student's step that is matched there, "from" one level of its grid
    "to" the next; no step before that of number `first`. Its segment has t in it, or of a full span its end
    lies below t.
    """
    batch, settings, g = draw_samples(context), context.settings, context.generator
    count, steps = len(batch["u"]), settings.steps
    share = torch.rand(count, generator=g, dtype=torch.float64)
    if settings.span == "full":
        place = batch["u"].double() * steps
        number = place.long().clamp_min(first)
        number = number + (share * (steps - number)).long()
    else:
        place = first + batch["u"].double() * (steps - first)
        number = place.long()
    if settings.points == "trajectory":
        place = place.minimum(number + 1 - APART)
    t = step_level(context.phases, place / steps)
    least = context.path.at_flow_time(torch.tensor(NEAREST, dtype=torch.float64))
    noise = torch.randn(count, *context.shape, generator=g)
    return {
        **batch,
        "t": t.clamp_min(float(least)).float(),
        "from": number,
        "to": number + 1,
        "noise": context.noise_scale * noise,
    }


def grid_of(context: Context) -> torch.Tensor:
    """The levels that the student is sampled from, (steps + 1,)."""
    return context.phases.levels[context.phases.sampled]


def beginning(context: Context, pick: torch.Tensor) -> torch.Tensor:
    """Where the student starts from, (R, ...): fresh noise, or in the middle of the way what others drew."""
    if context.phases.part[0] < 1:
        return context.data.anchors[pick, 0]
    noise = torch.randn(len(pick), *context.shape, generator=context.generator)
    return start(noise, context.phases.fine, context.path, context.noise_scale)


def runs_of(number: torch.Tensor) -> torch.Tensor:
    """The run (B,) of the student's that each sample is taken from, at its step number (B,): the j-th sample
    of every step is of run j, so that one run serves a sample of each step, and none twice the same step.
    """
    order, counts = number.argsort(stable=True), number.bincount()
    first = (counts.cumsum(0) - counts)[number[order]]
    return torch.empty_like(number).scatter(0, order, torch.arange(len(number)) - first)


def students(context: Context, batch: Batch) -> Batch:
    """The student's step of each sample: from "x" at "sigma" to the point "y" at the level "e", by the
    prediction "x0", under the "condition" of its run.
    """
    grid, student, number = grid_of(context), context.asked["student"], batch["from"]
    run = runs_of(number)
    count = int(run.max()) + 1
    last = torch.zeros(count, dtype=torch.long).scatter_reduce(0, run, number, "amax")
    x = beginning(context, batch["pick"][:count])
    condition = batch["condition"][:count]
    xs, predictions = walked(student, x, context.path, grid, last, condition)
    x, x0 = xs[run, number], predictions[run, number]
    sigma, after = grid[number], grid[batch["to"]]
    if context.settings.points == "pictures":
        y, after = x0, torch.zeros_like(after)
    else:
        y = step(x, x0, context.path, sigma, after)
    return {"x": x, "sigma": sigma, "x0": x0, "y": y, "e": after, "condition": condition[run]}


def teachers(context: Context, batch: Batch) -> Batch:
    """The same point of a cached trajectory of the teacher's: "y" at the level "e"."""
    anchors, pick = context.data.anchors, batch["pick"]
    same = {"condition": batch["condition"]}
    if context.settings.points == "pictures":
        return {**same, "y": context.data.images[pick], "e": torch.zeros(len(pick))}
    kept = context.phases.sampled[batch["to"]]
    return {**same, "y": anchors[pick, kept], "e": context.phases.levels[kept]}


# ---- denoising -----------------------------------------------------------------------------------


def denoising(points: Callable[[Context, Batch], Batch], first: int = 0) -> Callable[[Context], Batch]:
    """`draw` of a role that learns the distribution of (context, places) -> {"y", "e", "condition"}, from the
    student's step of number `first` on.
    """

    def draw(context: Context) -> Batch:
        batch = places(context, first)
        point = points(context, batch)
        x, known, precision = noised_on(point["y"], batch["noise"], context.path, point["e"], batch["t"])
        t = batch["t"].double()
        weight = (1 + (context.path.alpha(t) / t).square()).clamp_max(MOST_WEIGHT).float() * precision
        return {
            "x": x,
            "sigma": batch["t"],
            "condition": point["condition"],
            "target": known,
            "u": batch["u"],
            "weight": weight,
        }

    return draw


def denoising_loss(context: Context, batch: Batch) -> torch.Tensor:
    """The squared error of x0 (B,): its least is the mean, whatever metric the student learns by."""
    return squared_error(context.student(batch["x"], batch["sigma"], batch["condition"]), batch["target"])


def lead(context: Context) -> int:
    """Updates of the fake before the student's next: 1 where what it says is true, `lead` where it isn't.

    With R the real score, F the fake and D the x0 that is known of each sample, the mean of (D - R)(F - R)
    over that of (F - R)^2 is 1 for an F that says how far the student is from R, and not above 0 for one that
    points the wrong way: the regression of the truth on what it says.
    """
    most, truth = context.settings.lead, agreement(context.told)
    if truth is None:
        return most
    return 1 + round((most - 1) * min(1.0, max(0.0, (AHEAD - truth) / (AHEAD - BEHIND))))


def agreement(told: Mapping[str, float]) -> float | None:
    """The share of truth in what the fake says, from a run's means; None before there are any."""
    return told["truth"] / told["claim"] if told.get("claim") else None


def roles(settings: Settings, matched_from: int = 0) -> tuple[Role, ...]:
    """The fake, and before it the real score where that is learnt; of the student's steps from that on."""
    real = Role(
        name="real",
        stage="learning the teacher's pictures",
        draw=denoising(teachers, matched_from),
        loss=denoising_loss,
        first=lambda settings: settings.real_updates,
        each=None,
        rate=lambda settings, made, share: (
            settings.lr * settings.role_lr * warm_up_then_cosine(made, settings.real_updates)
        ),
    )
    fake = Role(
        name="fake",
        stage="learning the student's pictures",
        draw=denoising(students, matched_from),
        loss=denoising_loss,
        first=lambda settings: settings.fake_updates,
        each=lead,
        rate=lambda settings, made, share: settings.lr * settings.role_lr * _slower(share),
        momentum=0.0,
        begins_as="real",
    )
    return (fake,) if settings.real == "guided" else (real, fake)


def _slower(share):
    """Of the fake's learning rate: it follows a student that slows down, and wavers less."""
    return LAST + (1 - LAST) * (0.5 + 0.5 * math.cos(math.pi * share))


# ---- matching ------------------------------------------------------------------------------------


def real_score(context: Context, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """x0 (B, ...) by the real score that the settings choose."""
    kind = context.settings.real
    if kind == "guided":
        return context.asked["teacher"](x, t, condition)
    pictures = context.asked["real"](x, t, condition)
    if kind == "pictures":
        return pictures
    share = expand(context.path.flow_time(t), x)
    return share * pictures + (1 - share) * context.asked["teacher"](x, t, condition)


@torch.no_grad()
def matched(context: Context, batch: Batch) -> Batch:
    """The batch with what the student has to learn of it: at "x", "sigma" the "target" x0 - (fake - real),
    with the "weight" of each sample, and what is TOLD of the fake.

    "gap" and "cosine" are of the triangle of x0, fake and real: |fake - real| over |x0 - real|, and the angle
    at x0 between what either score makes of the student's own picture. They are 0 and 1 where the two say the
    same, as of a student whose pictures are distributed as the real score has it.
    """
    path, t = context.path, batch["t"]
    point = students(context, batch)
    condition = point["condition"]
    x, known, precision = noised_on(point["y"], batch["noise"], path, point["e"], t)
    fake, real = context.asked["fake"](x, t, condition), real_score(context, x, t, condition)
    away, x0 = fake - real, point["x0"]
    pull = (
        away if context.settings.divergence == "kl" else _fisher(context, condition, x, t, known, fake, real)
    )
    distance = _mean((x0 - real).abs())
    return {
        **batch,
        "x": point["x"],
        "sigma": point["sigma"],
        "condition": condition,
        "target": x0 - pull,
        "weight": batch["weight"] * _balance(context, batch, point, distance),
        "gap": _mean(away.abs()) / distance.clamp_min(1e-6),
        "cosine": torch.cosine_similarity((fake - x0).flatten(1), (real - x0).flatten(1)),
        "truth": precision * _mean((known - real) * away),
        "claim": precision * _mean(away.square()),
    }


def _fisher(context, condition, x, t, known, fake, real):
    """How the student's x0 moves (R - F)(R - D) - alpha |R - F|^2, with R, F and the known D of its x_t, over
    alpha_t's share: alpha_t (pulls through both scores) + F - R. In the mean it goes down the divergence of
    Fisher, E |score_q - score_p|^2 (SiD, as of `SID`; SiD-DiT, arXiv:2509.25127).
    """
    # d/dx_t (R - F)(R - D) - alpha |R - F|^2  =  J_R^T ((R - D) + (R - F) - 2 alpha (R - F))
    #                                           +  J_F^T (2 alpha (R - F) - (R - D)),   D held
    to_real, apart = real - known, real - fake
    through_real = to_real + (1 - 2 * SID) * apart
    through_fake = 2 * SID * apart - to_real
    moved = context.pulled["fake"](x, t, condition, through_fake)
    for name, share in _shares(context, x, t):
        moved = moved + context.pulled[name](x, t, condition, share * through_real)
    return expand(context.path.alpha(t.double()), x) * moved - apart


def _shares(context, x, t):
    """(name, share) of whose answers the real score is made."""
    kind = context.settings.real
    if kind == "guided":
        return [("teacher", 1.0)]
    if kind == "pictures":
        return [("real", 1.0)]
    share = expand(context.path.flow_time(t), x)
    return [("real", share), ("teacher", 1 - share)]


def _balance(context, batch, point, distance):
    """The weight of each sample (B,): 1 over its distance to the real score's x0, as DMD has it (eq. 8), or
    what makes the whole the gradient of the divergence.
    """
    if context.settings.balance == "distance":
        return 1 / distance.clamp_min(1e-2)
    path, t, e = context.path, batch["t"].double(), point["e"].double()
    sigma = point["sigma"].double()
    pull = torch.ones_like(t)
    if context.settings.points == "trajectory":
        pull = path.alpha(e) - e / sigma * path.alpha(sigma)  # dy / dx0 of the step
    power = 2 if context.settings.divergence == "kl" else 4
    return (pull * path.alpha(t).square() / (path.alpha(e) * t.pow(power))).float()


def _mean(values):
    return values.flatten(1).mean(1)


def draw(context: Context) -> Batch:
    """Fresh noise, the student's steps, and what the two scores say of where they lead."""
    return matched(context, places(context))


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """The distance of the student's prediction to its target, (B,)."""
    return context.metric(context.student(batch["x"], batch["sigma"], batch["condition"]), batch["target"])


METHOD = register(
    Method(
        name="matching",
        title="distribution matching",
        needs="trajectories",
        draw=draw,
        loss=loss,
        level=step_level,
        on_the_grid=True,
        in_phases=False,
        in_parts=True,
        asks_teacher=lambda settings: settings.real != "pictures",
        lr_share=LR_SHARE,
        churn=lambda settings: 0.0,
        roles=roles,
        tells=TOLD,
    )
)
