"""Training to undo forward processes: what the network is asked, what is learnt, and what is refused."""

import dataclasses

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import solve
from fewstep.diffusion.schedules.grids import discrete_sigma, flow_sigma
from fewstep.training.formats.processes import KINDS, checked, process_of
from fewstep.training.methods.restoration import Seen, restoration, restore, times_for
from fewstep.training.models.demo.net import discrete_sigmas
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.restoration import Restoration
from fewstep.training.run.run import Run
from fewstep.training.trajectories.data import Data
from tiny import Tiny

BLUR = [{"kind": "blur", "width": 1.5}]
SETTINGS = dict(
    method="restoration", process=BLUR, updates=60, batch=8, images=8, image_steps=4, steps=2, rank=8, lr=3e-2
)


def stripes(count, seed=0):
    """Pictures (count, 2, 4, 4) of hard stripes, which a blur takes away; their places are drawn."""
    g = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (count, 2, 1, 1), generator=g) * 2.0 - 1
    return signs * torch.tensor([1.0, -1.0, 1.0, -1.0])[None, None, None].expand(count, 2, 4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_made_with_its_defaults_and_alone_or_last_in_a_chain(kind):
    (whole,) = checked([{"kind": kind}])
    assert set(whole) == {"kind", *KINDS[kind][1]} and checked([whole]) == (whole,)
    process, x = process_of([whole]), torch.randn(2, 3, 8, 8)
    assert process.corrupt(x, torch.randn_like(x), 1.0).shape == x.shape
    assert torch.allclose(process.corrupt(x, torch.randn_like(x), 0.0), x, atol=1e-5)
    if kind == "mask":
        with pytest.raises(ValueError, match="process mask must be alone"):
            process_of([{"kind": "blur"}, whole])
        return
    chain = process_of([{"kind": "blur"}, whole])
    assert chain.corrupt(x, torch.randn_like(x), 0.5).shape == x.shape


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], "process must be a list of parts"),
        ("blur", "process must be a list"),
        ([3], "process must be a list"),
        ([{"kind": "melt"}], "kind of a process must be one of pixelate, .* got 'melt'"),
        ([{"kind": "blur", "size": 3}], "process blur has the options width, got size"),
        ([{"kind": "blur", "width": -1}], "width of process blur must be a number from"),
        ([{"kind": "blur", "width": "3"}], "width of process blur must be a number from"),
        ([{"kind": "pixelate", "largest": 6}], "largest must be a power of two"),
        (
            [{"kind": "pixelate", "largest": 8.5}],
            "largest of process pixelate must be a whole number from 2 to 256, got 8.5",
        ),
        (
            [{"kind": "noise"}, {"kind": "blur"}],
            "parts must be one or more processes, of which only the last has noise",
        ),
    ],
)
def test_wrong_processes_are_refused_by_name(parts, message):
    with pytest.raises(ValueError, match=message):
        process_of(parts)


def test_a_process_belongs_to_restoration_alone():
    for settings in ({"method": "restoration"}, {"process": BLUR}, {"method": "reflow", "process": BLUR}):
        with pytest.raises(
            ValueError, match="process must be given for the method restoration and for no other"
        ):
            DistilConfig(**settings)
    with pytest.raises(ValueError, match="weighting must be none for the method restoration"):
        DistilConfig(**SETTINGS, weighting="min-SNR")
    config = DistilConfig(**SETTINGS)
    assert DistilConfig.from_dict(config.to_dict()) == config and config.process == (
        {"kind": "blur", "width": 1.5},
    )
    assert dataclasses.replace(config, micro=2).process == config.process


@pytest.mark.parametrize(
    "path, sigma_of", [(FLOW, flow_sigma(3.0)), (VARIANCE_EXPLODING, discrete_sigma(discrete_sigmas()))]
)
def test_noise_is_asked_at_its_own_level(path, sigma_of):
    """On the Gaussian process the network sees exactly what it was trained on: alpha x0 + sigma eps of its
    own path.
    """
    seen, t = (
        Seen(process_of([{"kind": "gaussian"}]), path, sigma_of),
        torch.linspace(0.05, 0.9, 9, dtype=torch.float64),
    )
    x0, eps = torch.randn(9, 2, 4, 4, dtype=torch.float64), torch.randn(9, 2, 4, 4, dtype=torch.float64)
    asked = []
    seen.ask(lambda x, sigma: asked.append((x, sigma)), seen.process.corrupt(x0, eps, t), t)
    x, sigma = asked[0]
    level = sigma.reshape(-1, 1, 1, 1)
    assert torch.allclose(x, path.alpha(level) * x0 + level * eps, atol=1e-9)
    assert torch.allclose(path.log_snr(sigma), seen.process.log_snr(t), atol=1e-9)


@pytest.mark.parametrize(
    "path, sigma_of", [(FLOW, flow_sigma()), (VARIANCE_EXPLODING, discrete_sigma(discrete_sigmas()))]
)
@pytest.mark.parametrize("parts", [BLUR, [{"kind": "pixelate"}], [*BLUR, {"kind": "noise", "strength": 0.1}]])
def test_a_little_noise_or_none_is_asked_at_half_of_flow_time(path, sigma_of, parts):
    seen = Seen(process_of(parts), path, sigma_of)
    sigma, scale = seen(torch.tensor([1.0, 0.5, 0.0]))
    assert (
        torch.allclose(path.flow_time(sigma), torch.tensor([0.5, 0.25, 1e-3]).double(), atol=1e-6)
        and (scale == 1).all()
    )
    levels = seen(times_for(7)[:-1])[0]
    assert (levels.diff() < 0).all() and float(levels[-1]) > 0


def test_restoring_the_gaussian_process_is_the_samplers_own_step():
    run = Run(Tiny(), DistilConfig(**{**SETTINGS, "process": [{"kind": "gaussian"}]}))
    call = lambda x, sigma: Tiny()(x, sigma, torch.zeros(len(x), dtype=torch.long))
    x = torch.randn(3, 2, 4, 4)
    ours = [state.x for state in restore(call, run.task.seen, x, times_for(5))][-1]
    theirs = solve(lambda x, sigma: call(x, torch.full((3,), sigma)), x, times_for(5), FLOW)
    run.close()
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_loss_is_least_for_the_mean_of_what_the_picture_could_have_been():
    """Two pictures that one blur makes equal: the best answer is their mean, and the loss there is their
    variance.
    """
    process, pair = (
        process_of([{"kind": "pixelate", "largest": 4}]),
        torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)]),
    )
    pair[:, :, :, ::2] *= -1
    x0 = pair.repeat(50, 1, 1, 1)
    assert torch.equal(process.corrupt(pair, None, 1.0)[0], process.corrupt(pair, None, 1.0)[1])
    at = lambda value: float(
        restoration(lambda x, t: torch.full_like(x, value), process, x0, None, 1.0).mean()
    )
    assert at(0.0) == pytest.approx(1.0) and all(at(v) > at(0.0) + 1e-3 for v in (-0.5, -0.1, 0.1, 0.5))


def test_a_run_learns_to_undo_its_process_and_its_recipe_says_which():
    data = Data(images=stripes(64), condition=torch.zeros(64, dtype=torch.long))
    run = Run(Tiny(), DistilConfig(**SETTINGS), data=data)
    assert isinstance(run.task, Restoration)
    for _ in run.progress():
        pass
    assert len(run.source.data.images) == 56 and len(run.probe.held.reference) == 8  # held out
    fresh, rows = stripes(16, seed=1), torch.zeros(16, dtype=torch.long)
    x = run.task.destroyed(fresh, torch.zeros_like(fresh))
    zero = [torch.zeros_like(p) for p in run.student.lora.parameters()]
    error = lambda adapter, steps: float(
        (run.task.restored(adapter, x, rows, steps) - fresh).square().mean().sqrt()
    )
    untouched = float((x - fresh).square().mean().sqrt())
    assert error(run.adapter, 1) < 0.25 * untouched and error(run.adapter, 4) < 0.35 * untouched < error(
        zero, 1
    )
    recipe = run.recipe()
    run.close()
    assert recipe.method == "restoration" and process_of(recipe.trained["process"]).width == 1.5
    assert recipe.sigmas == pytest.approx((0.5, 0.25, 0.0)) and recipe.from_json(recipe.to_json()) == recipe


def test_without_pictures_it_learns_on_the_models_own():
    run = Run(Tiny(), DistilConfig(**{**SETTINGS, "updates": 3}))
    stages = {progress.stage for progress in run.progress()}
    assert stages == {"sampling the teacher", "training"} and len(run.source.data.images) == 8
    assert run.task.before(run.probe.held.first(3)).shape == (3, 2, 4, 4) and torch.equal(
        run.task.before(run.probe.held),
        run.task.destroyed(run.probe.held.reference, run.probe.held.noise),
    )
    assert float(run.probe.drawn.sub(run.probe.held.reference).square().mean().sqrt()) == pytest.approx(
        run.probe.fidelity[-1][1]
    )
    run.close()
