"""Runs of a part of the way: two LoRAs, one after the other, draw what the whole teacher draws."""

import pytest
import torch
from fewstep.training.methods.phases import Phases
from fewstep.training.models.denoiser import Guided
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import manifest
from fewstep.training.run.run import Run
from fewstep.training.run.source import starts_wanted
from fewstep.training.trajectories.data import Data
from fewstep.training.trajectories.first_stage import FirstStage
from tiny import Tiny

SPLIT = 0.4
SMALL = dict(steps=2, updates=4, images=4, batch=4, chunk=8, image_steps=4, rank=2)
PARTS = ({"to_percent": SPLIT}, {"from_percent": SPLIT})


def first_stage(denoiser, config, folder, count):
    """The states in which the teacher leaves off where that run begins."""
    level = float(Phases(config, denoiser.path, denoiser.sigma_of).fine[0])
    stage = FirstStage(Guided(denoiser, config.cfg), level, 8, config.shift, 0, folder)
    for _ in stage.build(count):
        pass
    return stage.states(count)


def trained(denoiser, config, folder):
    """A finished run, its adapter still on the model."""
    starts = first_stage(denoiser, config, folder, starts_wanted(config)) if config.from_percent else None
    run = Run(denoiser, config, starts=starts)
    assert len([*run.progress()]) > config.updates
    return run


def test_the_grids_of_two_parts_are_those_of_the_whole_cut_in_two():
    tiny = Tiny()
    whole, high, low = (
        Phases(DistilConfig(steps=4, phases=4, image_steps=8, **part), tiny.path, tiny.sigma_of)
        for part in ({}, *PARTS)
    )
    assert high.end == low.fine[0] and high.fine[-1] == high.end and low.fine[-1] == 0
    assert abs(high.end - (1 - SPLIT)) < 1e-12  # percent_to_sigma of a flow model without a shift
    assert high.sigmas_for(3)[0] == whole.fine[0] and high.sigmas_for(3)[-1] == high.end
    assert abs(high.plain(2) - torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)).max() < 1e-12
    # the same shifted times: a step that ends at the split on the whole grid divides it alike
    times = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    joined = torch.cat([high.sigma_of(times), low.sigma_of(times)])
    u = joined / (3 - 2 * joined)
    assert abs(u[:4].diff().diff()).max() < 1e-12 and abs(u[4:].diff().diff()).max() < 1e-12


def test_two_loras_in_sequence_come_as_close_to_the_whole_teacher_as_one(tmp_path):
    settings = dict(updates=400, images=120, batch=32, image_steps=8, cfg=2.0, rank=16)
    teacher = Tiny()
    noise = torch.randn(32, *teacher.shape, generator=torch.Generator().manual_seed(5))
    condition = torch.arange(32) % teacher.conditions
    whole = trained(teacher, DistilConfig(**settings, steps=4), tmp_path)
    wanted = whole.student.sample_base(noise, condition, whole.phases.sigmas_for(40), order=2)
    drawn = dict.fromkeys(("in two parts", "untrained"), noise)
    drawn["in one"] = whole.student.sample(noise, condition, whole.task.sigmas_for(4), adapter=whole.adapter)
    whole.close()
    for part in PARTS:
        run = trained(teacher, DistilConfig(**settings, steps=2, **part), tmp_path)
        sigmas = run.task.sigmas_for(2)
        scale = float(sigmas[0])  # flow: a state is as noise times its level
        nothing = [torch.zeros_like(v) for v in run.adapter]
        for name, adapter in (("in two parts", run.adapter), ("untrained", nothing)):
            drawn[name] = run.student.sample(drawn[name] / scale, condition, sigmas, adapter=adapter)
        run.close()
    off = {name: float((v - wanted).square().mean().sqrt()) for name, v in drawn.items()}
    print(off)
    assert off["in two parts"] < 1.1 * off["in one"] and off["in two parts"] < 0.6 * off["untrained"]


@pytest.mark.parametrize("method", ["phased", "windowed-reflow"])
def test_a_second_part_begins_where_the_first_left_off_from_a_cache_too(method, tmp_path):
    tiny, config = Tiny(), DistilConfig(**SMALL, method=method, **PARTS[1])
    starts = first_stage(tiny, config, tmp_path / "first", starts_wanted(config))
    data = []
    for cache in (None, (tmp_path / "second", {"patches": "after the first", "conditioning": ""})):
        run = Run(tiny, config, starts=starts, cache=cache)
        assert len([*run.progress()]) and run.recipe().from_percent == SPLIT
        run.close()
        data.append(run.source.data.anchors)
        assert abs(data[-1][:, 0] - starts[: config.images]).max() < 1e-6
        assert run.probe.held.reference.shape == (8, *tiny.shape)
    assert abs(data[0] - data[1]).max() < 1e-5


def test_a_first_part_is_judged_where_it_ends_and_shown_as_the_teacher_would_finish_it():
    tiny = Tiny()
    run = Run(tiny, DistilConfig(**SMALL, **PARTS[0]))
    assert len([*run.progress()])
    held, end = run.probe.held, run.phases.end
    recipe = run.recipe()
    assert recipe.sigmas[-1] == end and recipe.to_percent == SPLIT
    wanted = run.student.teacher(held.reference, torch.full((8,), end), held.condition)
    assert torch.equal(run.task.finished(held.reference, held.condition), wanted)
    run.close()


def test_consistency_in_parts_learns_from_pictures_and_samples_without_fresh_noise_above_the_data():
    tiny = Tiny()
    data = Data(images=torch.randn(4, *tiny.shape), condition=torch.tensor([0, 1, 2, 0]))
    config = DistilConfig(**SMALL, method="consistency", phases=1, **PARTS[0])
    with pytest.raises(ValueError, match="method consistency needs pictures to learn a part"):
        Run(tiny, config)
    run = Run(tiny, config, data=data)
    assert len([*run.progress()]) and run.task.churn == 0
    batch = run.method.draw(run.context())
    assert (batch["t"] > run.phases.end).all() and (batch["e"] >= run.phases.end - 1e-6).all()
    run.close()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"from_percent": 0.5, "to_percent": 0.5}, "to_percent must be at least 0.01 above from_percent"),
        ({"to_percent": 1.5}, "to_percent must be"),
        ({"method": "reflow", "to_percent": 0.5}, "must be 0 and 1 for the method reflow.*phased"),
        (
            {"method": "rectified-diffusion", "from_percent": 0.5},
            "0 and 1 for the method rectified-diffusion",
        ),
    ],
)
def test_parts_that_cannot_be_are_refused_by_name(changes, why):
    with pytest.raises(ValueError, match=why):
        DistilConfig(**{**SMALL, **changes})


def test_a_second_part_without_its_first_is_refused_by_name():
    with pytest.raises(ValueError, match="from from_percent 0.4 needs states to start from, .* first_stage"):
        Run(Tiny(), DistilConfig(**SMALL, **PARTS[1]))
    with pytest.raises(ValueError, match="from_percent 0 starts from noise"):
        Run(Tiny(), DistilConfig(**SMALL), starts=torch.zeros(16, 2, 4, 4))


def test_a_run_of_the_whole_way_is_called_what_it_was_before_there_were_parts():
    whole, part = (manifest(DistilConfig(**SMALL, **part), {})["spec"]["config"] for part in ({}, PARTS[0]))
    assert "from_percent" not in whole and part["to_percent"] == SPLIT
