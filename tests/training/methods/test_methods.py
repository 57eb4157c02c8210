"""What the methods draw: weights of the levels drawn, the share that goes the whole way, pairs that begin
where sampling does.
"""

import dataclasses

import pytest
import torch
from fewstep.diffusion.paths import VARIANCE_EXPLODING
from fewstep.diffusion.predictions import expand
from fewstep.training import methods
from fewstep.training.methods.consistency_loss import noised
from fewstep.training.methods.matching import places as matching_places
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from fewstep.training.run.source import PROBES
from fewstep.training.trajectories.noises import noises, start
from tiny import Tiny

SMALL = dict(updates=4, images=6, batch=8, chunk=8, image_steps=4, steps=2, phases=2, rank=2)
REALS = [{"method": name, "real": "guided"} for name in ("matching", "anchored")]


def begun(denoiser=None, **changes):
    """A run with its data, off the model."""
    run = Run(denoiser or Tiny(), DistilConfig(**{**SMALL, **changes}))
    for _ in run.source.gather():
        pass
    run.close()
    return run


def test_flow_matchings_weighting_is_what_reflow_does_anyway():
    """Velocity loss, flow time uniform: the total weighting is flow matching's, so that its name changes
    nothing.
    """
    run = begun(method="reflow", weighting="flow matching")
    u = torch.linspace(0.01, 0.99, 50)
    weights = run.weighting(u)
    assert (
        torch.allclose(weights, weights.mean().expand(50), rtol=1e-4)
        and abs(float(weights.mean()) - 1) < 2e-3
    )
    other = begun(method="reflow", weighting="eps-MSE").weighting(u)
    assert other.max() > 1.5 * other.min()


def test_windowed_reflow_is_weighted_by_the_levels_that_the_student_is_asked_at():
    run, asked = begun(method="windowed-reflow", image_steps=12, between=2, weighting="EDM"), []
    context = dataclasses.replace(run.context(), student=lambda x, sigma, c: asked.append(sigma) or x)
    batch = run.method.draw(context)
    run.method.loss(context, batch)
    assert torch.allclose(asked[0].double(), run.weighting.sigma_at(batch["u"]), atol=1e-6)
    assert torch.equal(batch["weight"], run.weighting(batch["u"]))


def test_phased_matching_is_weighted_by_the_levels_of_the_method_whose_turn_it_is():
    run = begun(method="phased-matching", steps=4, phases=3, image_steps=12, weighting="EDM")
    u, phased = torch.tensor([0.05, 0.3, 0.55, 0.8]), run.context()
    run.probe.fidelity = [(run.config.updates, 1.0)]
    matching = run.context()
    for context, name in ((phased, "phased"), (matching, "matching")):
        alone = begun(method=name, steps=4, phases=3, image_steps=12, weighting="EDM").weighting
        assert torch.equal(context.weighting(u), alone(u))
    batch = matching_places(matching)
    wanted = matching.weighting.sigma_at(batch["u"]).float()
    assert torch.allclose(batch["t"], wanted, atol=1e-6)


@pytest.mark.parametrize("batch, share, count", [(8, 0.25, 2), (2, 0.2, 1), (1, 0.2, 1), (8, 0.0, 0)])
def test_the_share_that_goes_the_whole_way(batch, share, count):
    run = begun(batch=batch, one_step=share, weighting="min-SNR")
    drawn = run.method.draw(run.context())
    last = len(run.phases.levels) - 1
    assert (drawn["u"] < 0).sum() == count
    assert (
        (drawn["index"][:count] == 0).all()
        and (drawn["after"][:count] == last).all()
        and (drawn["end"][:count] == last).all()
    )
    assert (drawn["weight"][:count] == 1).all()
    before = run.times.moments.clone()
    run.times.distribution = "adaptive"
    run.times.learn(drawn["u"][:count], torch.full((count,), 9.0))
    assert torch.equal(run.times.moments, before)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_pairs_begin_where_sampling_begins(kind):
    """alpha x_0 + sigma eps of a pair at the largest level is the state that the solver started from, pure
    noise or not.
    """
    run = begun(DemoTeacher(kind), method="reflow", images=2)
    top = run.phases.fine[:1].float().expand(2)
    begins = noised(run.source.data.images, run.source.data.noise, run.denoiser.path, top)
    drawn = noises(run.source.seed, range(2), run.denoiser.shape)
    assert torch.allclose(
        begins, start(drawn, run.phases.fine, run.denoiser.path, run.denoiser.noise_scale), atol=1e-4
    )
    if run.denoiser.path is VARIANCE_EXPLODING:  # and the picture doesn't shine through
        leaking = run.source.data.images + expand(top, begins) * (begins / (1 + top[0] ** 2) ** 0.5)
        assert (leaking - begins).abs().max() > 0.1


def test_windows_stay_off_the_last_points_singularity():
    run = begun(method="windowed-reflow")
    drawn = run.method.draw(run.context())
    drawn["u"] = torch.full_like(drawn["u"], 1 - 1e-7)
    assert bool(run.method.loss(run.context(), drawn).isfinite().all())


@pytest.mark.parametrize(
    "method, held",
    [
        ("phased", {"images", "trajectories"}),
        ("windowed-reflow", {"images", "trajectories"}),
        ("consistency", {"images"}),
        ("reflow", {"images", "pairs"}),
    ],
)
def test_a_run_keeps_of_its_trajectories_what_the_method_needs(method, held):
    data = begun(method=method).source.data
    assert set(data.holds) == held
    tensors = [t for t in (data.images, data.noise, data.anchors) if t is not None]
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    samples = len(data.images) + (
        0 if data.anchors is None else PROBES
    )  # the held-out trajectories lie beside them
    each = data.anchors[0].nbytes if data.anchors is not None else sum(t[0].nbytes for t in tensors)
    assert sum(memory.values()) == samples * each


@pytest.mark.parametrize(
    "settings", [*({"method": name} for name in methods.names()), *REALS], ids=lambda s: "-".join(s.values())
)
def test_a_method_asks_the_teacher_at_an_update_exactly_if_it_says_so(settings):
    """Otherwise whatever drew the data, any guider of a graph, may have been the teacher."""
    run, asked = begun(**settings), []
    context = run.context()

    def teacher(*question):
        asked.append(question)
        return context.teacher(*question)

    told = dataclasses.replace(context, teacher=teacher, asked={**context.asked, "teacher": teacher})
    run.method.loss(told, run.method.draw(told))
    assert bool(asked) == run.method.asks_teacher(run.config)
