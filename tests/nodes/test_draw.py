"""In the real ComfyUI: the schedule that is drawn, and what plots are told of a model, loaded or by its
file's header alone.
"""

import json

import pytest
import torch
from graph import load, pack, run

pytestmark = pytest.mark.comfy
POINTS = "[[0.2, 0.5], [0.7, 0.25]]"


def draw(host, model, points=POINTS, **changes):
    return run(
        host,
        "FewstepDrawSchedule",
        **{"model": model, "points": points, "steps": 5, "denoise": 1.0, **changes},
    )[0]


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_a_drawn_schedule_is_one_for_the_model(host, kind):
    model = load(host, kind)[0]
    sampling = model.get_model_object("model_sampling")
    sigmas = draw(host, model)
    assert sigmas.dtype == torch.float32 and len(sigmas) == 6 and (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(float(sampling.sigma_max), rel=1e-6) and sigmas[-1] == 0
    middle = float(pack(host, "nodes.comfy.levels").sigma_of(sampling)(torch.tensor([0.5])))
    assert sigmas[1] == pytest.approx(
        middle, rel=1e-5
    )  # the curve's first point: a fifth of the steps, half of the time
    assert len(draw(host, model, steps=1)) == 2
    assert draw(host, model, denoise=0.5)[0] == pytest.approx(middle, rel=1e-5)


def test_the_editors_own_points_are_the_uniform_schedule(host):
    model = load(host, "flow")[0]
    start = host.NODE_CLASS_MAPPINGS["FewstepDrawSchedule"].GET_SCHEMA().inputs[2].default
    plain = run(
        host,
        "FewstepSchedule",
        model=model,
        schedule={"schedule": "uniform"},
        steps=7,
        shift=1.0,
        denoise=1.0,
    )[0]
    assert len(json.loads(start)) > 1 and torch.allclose(draw(host, model, start, steps=7), plain, atol=1e-6)


@pytest.mark.parametrize(
    "points",
    [
        "",
        "no JSON",
        "[" * 5000,
        "[[0.5, 0.5]" + " " * 20_000 + "]",
        "{}",
        "[[0.5, NaN]]",
        "[[0.5, 0.5], [0.6, 0.6]]",
        5,
        None,
    ],
    ids=lambda p: str(p)[:20],
)
def test_points_that_are_no_curve_are_refused_before_the_queue_and_by_the_node(host, points):
    node = host.NODE_CLASS_MAPPINGS["FewstepDrawSchedule"]
    if points is not None:  # None is what the host gives for a value that is wired
        assert str(node.validate_inputs(points=points)).startswith("points must")
    with pytest.raises(ValueError, match="^points must"):
        draw(host, load(host, "flow")[0], points)
    assert node.validate_inputs(points=POINTS) is True
