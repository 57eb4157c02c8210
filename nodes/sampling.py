"""Samplers as nodes: SAMPLER for the host's own sampling nodes, all on the kernel of `diffusion.samplers`."""

from collections.abc import Callable, Iterator
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from tqdm.auto import trange

from ..diffusion import samplers
from ..diffusion.faults import BadValue
from ..diffusion.paths import Path
from ..diffusion.schedules import auto, grids
from ..diffusion.solvers import linear
from ..diffusion.step import share_of
from ..training.formats.recipe import Recipe
from .comfy import fresh_noise, levels
from .comfy.guider_apart import answers_apart, ask
from .comfy.guider_teacher import strength_of
from .comfy.inpainting import given_in
from .server import messages

ORDERS = ("auto", "1", "2", "3", samplers.HEUN)


@messages.in_words
def sample(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    order: float | str = 1,
    kappa: float | None = None,
    gamma: float | None = None,
    s_noise: float = 1.0,
    churn: float = 0.0,
    mode: str = samplers.MODES[0],
    start: float = 0.0,
    end: float = 1.0,
) -> torch.Tensor:
    """`diffusion.samplers.sample` in the signature of ComfyUI's sampler functions.

    order "auto": what `diffusion.schedules.auto` chooses for the guider's guidance. gamma: TCD's, in the
    model's own time. Fresh noise belongs to each picture's own starting noise and to the level
    (`comfy.fresh_noise`). Sigmas of one level, what Split Sigmas leaves after the last step, are no step: x
    is returned, as by the host's own.
    """
    if len(sigmas) < 2:
        return x
    extra_args = extra_args or {}
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    path = levels.path_of(sampling)
    grid = levels.check_range(sigmas, sampling)
    _check_mask(extra_args.get("denoise_mask"), x)
    if gamma is not None:
        kappa = tcd_share(gamma, path, levels.sigma_of(sampling))
    samplers.check_order(1 if order == "auto" else order, s_noise)
    first, last = (float(level) for level in (sigmas[0], sigmas[-1]))
    keys = fresh_noise.keys_of(model, x, first, extra_args.get("seed") or 0)
    noise = samplers.RowNoise(keys.rows, levels.noise_scale_of(sampling))
    highest = keys.began or float(sampling.sigma_max)
    moves = samplers.plan(
        grid, path, churn=churn, kappa=kappa, mode=mode, start=start, end=end, highest=highest
    )
    corrector = False
    if order == "auto":
        solver = auto.solver(grid, path, strength_of(model.inner_model))
        order, corrector = solver["order"], solver["corrector"]
    denoiser = _denoiser(model, x, extra_args)
    run = samplers.follow(
        denoiser, x, moves, path, order=order, corrector=corrector, s_noise=s_noise, noise=noise
    )
    x = last_of(run, x, len(moves), len(grid) - 2, callback, disable)
    fresh_noise.leave(x, last, keys)
    return x


def _denoiser(model: Any, x: torch.Tensor, extra_args: dict) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The model that the host hands to a sampler function, with sigma a number."""
    ones = x.new_ones(x.shape[0])

    def denoiser(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return model(x, sigma * ones, **extra_args)

    return denoiser


def last_of(
    run: Iterator[samplers.State],
    x: torch.Tensor,
    moves: int,
    last: int,
    callback: Callable[[dict], None] | None,
    disable: bool | None,
) -> torch.Tensor:
    """The end of a run of that many moves from x. The host's callback hears of each, with a step number of at
    most `last`: modes that go back make more moves than the schedule has steps.
    """
    for _ in trange(moves, disable=disable):
        before, state = x, next(run)
        if callback is not None:
            callback(
                {
                    "x": before,
                    "i": min(state.index, last),
                    "sigma": state.sigma,
                    "sigma_hat": state.sigma,
                    "denoised": state.x0,
                }
            )
        x = state.x
    return x


@messages.in_words
def sample_recipe(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    *,
    recipe: Recipe,
) -> torch.Tensor:
    """`diffusion.solvers.linear` of a recipe's own solver, in ComfyUI's signature of sampler functions.

    Raises ValueError for another path, for other sigmas than the recipe's, as its weights are right for no
    others, and for a guider that can't answer what its solver asks. Sigmas of one level are no step, as in
    `sample`. Outside an inpainting mask the end is the latent.
    """
    if len(sigmas) < 2:
        return x
    extra_args = extra_args or {}
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    path, solver = levels.path_of(sampling), recipe.solver
    if path.name != recipe.path:
        raise BadValue(
            "model must be on the {path} path that the sampler's solver was fitted on, this one is on "
            "{got}. Fit a solver to it, or wire Few-Step Sampler.",
            path=recipe.path,
            got=path.name,
        )
    own = torch.tensor(solver.sigmas)
    if len(sigmas) != len(own) or not torch.allclose(sigmas.cpu().float(), own, rtol=1e-5, atol=0):
        raise BadValue(
            "sigmas must be those that the solver was fitted for, {own}, got {got}. Wire SIGMAS of the "
            "same node as SAMPLER. For image-to-image and split schedules set denoise of Fit Few-Step "
            "Solver, or wire an unfitted sampler, such as Few-Step Sampler.",
            own=_listed(own),
            got=_listed(sigmas),
        )
    levels.check_range(own, sampling)
    _check_mask(extra_args.get("denoise_mask"), x)
    given = given_in(model, path, extra_args)
    if solver.asks and not answers_apart(model.inner_model):
        raise BadValue(
            "guider must be the GUIDER of the node that gave SAMPLER: this solver asks for the conditional "
            "and the unconditional prediction apart, {calls} calls in {steps} steps. Wire GUIDER, SAMPLER "
            "and SIGMAS to SamplerCustomAdvanced.",
            calls=recipe.calls,
            steps=solver.steps,
        )
    noise = None
    if solver.fresh:
        keys = fresh_noise.keys_of(model, x, float(sigmas[0]), extra_args.get("seed") or 0)
        noise = samplers.RowNoise(keys.rows, levels.noise_scale_of(sampling))
    if solver.asks:
        ones = x.new_ones(x.shape[0])

        def asked(x: torch.Tensor, sigma: float, kinds: str) -> list[torch.Tensor]:
            return ask(model, x, sigma * ones, kinds, extra_args)

        # a part of guidance is no picture: what is left at the end is
        run = (
            step if step.sigma_next > 0 else step._replace(x0=step.x)
            for step in linear.follow(solver, asked, x, noise, given)
        )
    else:
        run = linear.run(solver, _denoiser(model, x, extra_args), x, noise, given)
    return last_of(run, x, solver.steps, solver.steps - 1, callback, disable)


def _listed(sigmas: torch.Tensor) -> str:
    return ", ".join(f"{v:.4g}" for v in sigmas.tolist())


def recipe_sampler(recipe: Recipe) -> comfy.samplers.KSAMPLER:
    """A recipe's SAMPLER: its own solver, or the kernel's of that churn and order where it has none."""
    if recipe.coefficients:
        return comfy.samplers.KSAMPLER(sample_recipe, {"recipe": recipe})
    return comfy.samplers.KSAMPLER(sample, {"churn": recipe.churn, "order": recipe.order})


def _check_mask(mask: torch.Tensor | None, x: torch.Tensor) -> None:
    """Raise ValueError for an inpainting mask that does not fit the latent."""
    if mask is None:
        return
    try:
        fits = torch.broadcast_shapes(mask.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise BadValue(
            "mask must fit the latent, whose shape is {shape}, got {got}. Make it with Set Latent Noise "
            "Mask from a mask of the picture.",
            shape=tuple(x.shape),
            got=tuple(mask.shape),
        )


def tcd_share(
    gamma: float, path: Path, sigma_of: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[float, float], float]:
    """TCD's share of fresh noise, (sigma, sigma_next) -> kappa.

    TCD steps to (1 - gamma) of the next time and noises back.
    """

    def share(sigma: float, sigma_next: float) -> float:
        if sigma_next == 0 or gamma == 0:
            return 0.0
        time = grids.time_of(sigma_of, [sigma_next])
        reached = float(sigma_of((1 - gamma) * time)) if gamma < 1 else 0.0
        return share_of(path, reached, sigma_next)

    return share


class Sampler(io.ComfyNode):
    """FewstepSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepSampler",
            display_name="Few-Step Sampler",
            category="Fewstep/sampling",
            description="Flow matching (Euler), DDIM, DDPM, DPM++ 2M and their relatives in one sampler: "
            "order sets how it steps, churn how much noise is renewed. Both mean the same on every model and "
            "at every step count.",
            search_aliases=["ddim", "euler", "flow", "heun", "dpm++", "restart", "edm", "churn", "fewstep"],
            inputs=[
                io.Float.Input(
                    "churn",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=False,
                    tooltip="How much of each step is noised afresh. 0: none, the seed alone decides the "
                    "picture (DDIM, flow Euler). 1: as much as DDPM. More: towards the consistency sampler. "
                    "Use less with fewer steps. The last step, and a step from pure noise (the first on flow "
                    "models), never add any.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="auto",
                    tooltip="How many predictions a step uses. auto: 2 with a corrector that costs no model "
                    "call, the most accurate here; lower where the CFG is above 2 and the steps are few. 1: "
                    "the plain step, for distilled LoRAs. 2 and 3: earlier predictions too. heun: two model "
                    "calls per step.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(samplers.MODES),
                    default=samplers.MODES[0],
                    advanced=True,
                    optional=True,
                    tooltip="Where churn adds its noise. each step: after each step. raise first: before it "
                    "(EDM). restart: the steps between start and end are run again, churn (a whole number "
                    "of) times.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Noise is added only after this share of the run. 0: from the first step.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Noise is added up to this share of the run. 1: to the end; the last step "
                    "never adds any.",
                ),
                io.Float.Input(
                    "s_noise",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    round=False,
                    tooltip="Strength of the added noise. 1 is right for an exact model; a little more can "
                    "bring back detail that a model smooths away.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER")],
        )

    @classmethod
    def execute(
        cls,
        churn: float,
        order: str,
        mode: str = samplers.MODES[0],
        start: float = 0.0,
        end: float = 1.0,
        s_noise: float = 1.0,
    ) -> io.NodeOutput:
        churn = samplers.check_noising(churn, mode, start, end)
        order = order if order in ("auto", samplers.HEUN) else int(order)
        options = {
            "order": order,
            "churn": churn,
            "mode": mode,
            "start": start,
            "end": end,
            "s_noise": s_noise,
        }
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, options))


class ConsistencySampler(io.ComfyNode):
    """FewstepConsistencySampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        noise = io.Float.Input(
            "fresh_noise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of new noise in each step. 1: all of it (LCM). 0: none, the same as "
            "deterministic.",
        )
        gamma = io.Float.Input(
            "gamma",
            default=0.3,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How random TCD is: each step goes on to (1 - gamma) of the next time and is noised "
            "back. 0: no new noise; 1: all noise is new; TCD's authors use 0.2 to 0.3.",
        )
        return io.Schema(
            node_id="FewstepConsistencySampler",
            display_name="Consistency Sampler",
            category="Fewstep/sampling",
            description="For consistency-distilled models and LoRAs (LCM, TCD, PCM, Hyper): predict the "
            "picture, renew the noise, predict again. Works on epsilon, v and flow models.",
            search_aliases=["lcm", "tcd", "pcm", "hyper", "consistency", "fewstep"],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    tooltip="consistency: multistep consistency sampling, which is LCM. TCD: renews only "
                    "part of the noise, set by gamma. deterministic: no new noise.",
                    options=[
                        io.DynamicCombo.Option("consistency", [noise]),
                        io.DynamicCombo.Option("TCD", [gamma]),
                        io.DynamicCombo.Option("deterministic", []),
                    ],
                ),
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER")],
        )

    @classmethod
    def execute(cls, method: dict[str, Any]) -> io.NodeOutput:
        name = method["method"]
        options = {}
        if name == "consistency":
            options["kappa"] = method.get("fresh_noise", 1.0)
        elif name == "TCD":
            options["gamma"] = method.get("gamma", 0.3)
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, options))


NODES = [Sampler, ConsistencySampler]
