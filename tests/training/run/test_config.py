"""Settings of a distillation: what is out of bounds is refused by name."""

import dataclasses

import pytest
from fewstep.training.run.config import WHOLE, DistilConfig, guided_by


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_have_bounds(name):
    least, most = WHOLE[name]
    for value in (least - 1, most + 1, 10**12 if most < 10**12 else 10**30, 1.5, True, "1"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number from {least} to {most}, got"):
            DistilConfig(**{name: value})


@pytest.mark.parametrize("name", ["shift", "cfg", "lr", "alpha"])
@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), "1", True])
def test_numbers_are_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a"):
        DistilConfig(**{name: value})


@pytest.mark.parametrize("process", [[{"kind": []}], [{"kind": {}}], [1], {"kind": "blur"}, 5])
def test_a_process_that_is_none_is_refused(process):
    with pytest.raises(ValueError, match="process must be a list of parts"):
        DistilConfig(method="restoration", process=process)


def test_an_anchor_of_nothing_is_refused_where_the_first_step_would_learn_nothing():
    with pytest.raises(ValueError, match="anchor must be above 0 for the method anchored, got 0"):
        DistilConfig(method="anchored", anchor=0)
    for method in ("matching", "phased"):  # where it does nothing
        assert DistilConfig(method=method, anchor=0).anchor == 0


@pytest.mark.parametrize("method", ["phased", "phased-matching"])
def test_more_phases_than_steps_are_refused_where_phases_matter(method):
    with pytest.raises(ValueError, match=r"phases must be at most steps \(2\), got 4"):
        DistilConfig(method=method, phases=4, steps=2)
    for other in ("matching", "anchored"):
        assert DistilConfig(method=other, phases=4, steps=2).image_steps == 8


def test_strong_guidance_has_pictures_of_twice_as_many_steps():
    assert DistilConfig(cfg=3.0).image_steps == 8 and DistilConfig(cfg=3.5).image_steps == 16
    assert (
        DistilConfig(cfg=7.5, steps=6).image_steps == 18
        and DistilConfig(cfg=7.5, image_steps=8).image_steps == 8
    )


def test_a_guider_is_as_strong_as_its_strongest_guidance():
    """A dual one has no cfg of its own, so that the config's is 1."""
    config = DistilConfig(cfg=1.0, steps=6)
    assert guided_by(config, 7.0) == dataclasses.replace(config, image_steps=18)
    assert guided_by(config, 2.0) == config


def test_what_follows_from_others_has_bounds_too():
    with pytest.raises(ValueError, match="image_steps must be a whole number from 1 to 100000, got 9"):
        DistilConfig(steps=997, phases=996)
