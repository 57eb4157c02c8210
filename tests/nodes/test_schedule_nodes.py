"""In the real ComfyUI, in process: schedules made, edited, translated and shown."""

import pytest
import torch
from graph import load, pack, run, show, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.comfy


def schedule(host, model, name, steps, denoise=1.0, **options):
    return run(
        host,
        "FewstepSchedule",
        model=model,
        schedule={"schedule": name, **options},
        steps=steps,
        shift=1.0,
        denoise=denoise,
    )[0]


def test_every_schedule_and_its_options(host, teacher):
    grids = pack(host, "diffusion.schedules.grids")
    offered = host.NODE_CLASS_MAPPINGS["FewstepSchedule"].GET_SCHEMA().inputs[1]
    assert [o.key for o in offered.options] == list(grids.NAMES)
    for option in offered.options:
        assert {i.id for i in option.inputs} == set(grids.OPTIONS.get(option.key, {}))
        values = {i.id: i.default for i in option.inputs}
        assert values == grids.OPTIONS.get(option.key, {})
        for steps, denoise in ((1, 1.0), (4, 1.0), (20, 0.3)):
            sigmas = schedule(host, teacher[0], option.key, steps, denoise, **values)
            assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert not torch.equal(
        schedule(host, teacher[0], "karras", 6, rho=3.0), schedule(host, teacher[0], "karras", 6, rho=7.0)
    )


def test_edit_translate_and_show(host, teacher):
    other = run(host, "FewstepLoadDemoTeacher", teacher="epsilon", label="cat")
    plain = uniform(host, teacher, 8)
    edit = dict(model=teacher[0], sigmas=plain, shift=1.0, scale=1.0, blend=0.5, snap=0, split=0)
    same, high, low = run(host, "FewstepEditSchedule", **edit)
    assert torch.equal(same, plain) and torch.equal(high, plain) and torch.equal(low, plain[-2:])
    moved, high, low = run(host, "FewstepEditSchedule", **{**edit, "shift": 3.0, "split": 3, "snap": 100})
    assert len(high) == 4 and len(low) == 6 and high[-1] == low[0] and (moved[1:-1] > plain[1:-1]).all()
    mixed = run(host, "FewstepEditSchedule", **edit, blend_with=schedule(host, teacher[0], "karras", 5))[0]
    assert len(mixed) == 9 and (mixed.diff() < 0).all()
    there = run(host, "FewstepTranslateSchedule", sigmas=plain, from_model=teacher[0], to_model=other[0])[0]
    assert there[0] == pytest.approx(float(other[0].get_model_object("model_sampling").sigma_max))
    assert (there.diff() < 0).all()
    out = show(host, "FewstepShowSchedule", model=teacher[0], sigmas=plain, sigmas_3=moved)
    assert out.result[0].shape[-1] == 3 and out.ui["images"]
    assert set(out.ui["fewstep"][0]["schedules"]) == {"sigmas", "sigmas_3"}


def sampled_as(model, kind, **parameters):
    """The model with the host's sampling object of another kind of model, as its own nodes patch it in."""
    from comfy.model_base import ModelType, model_sampling

    sampling = model_sampling(None, ModelType[kind])
    if parameters:
        sampling.set_parameters(**parameters)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


@pytest.mark.parametrize(
    "kind, parameters",
    [
        ("FLOW", {"shift": 0.1}),
        ("FLOW", {"shift": 3.0}),
        ("FLOW", {"shift": 100.0}),
        ("FLUX", {"shift": 1.15}),
        ("EPS", {}),
        ("V_PREDICTION", {}),
        ("EDM", {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}),
        ("V_PREDICTION_EDM", {}),
        ("V_PREDICTION_CONTINUOUS", {"sigma_min": 0.002, "sigma_max": 700.0, "sigma_data": 1.0}),
    ],
)
def test_schedules_descend_on_every_kind_of_model(host, kind, parameters):
    """All that the node's widgets allow, and then all that Edit Schedule's do to it."""
    model = sampled_as(load(host, "flow")[0], kind, **parameters)
    names = pack(host, "diffusion.schedules.grids").NAMES
    shifts = st.sampled_from([0.1, 0.5, 1.0, 3.0, 100.0])

    def descends(sigmas, steps):
        assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,)
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.sampled_from(names),
        st.one_of(st.integers(1, 12), st.integers(1, 200)),
        st.floats(0.01, 1),
        shifts,
        shifts,
        st.floats(0.01, 100),
        st.floats(0, 1),
    )
    def holds(name, steps, denoise, shift, again, scale, blend):
        made = [
            run(host, "FewstepSchedule", model=model, schedule={"schedule": name}, steps=steps, **widgets)[0]
            for widgets in ({"shift": shift, "denoise": denoise}, {"shift": 1.0, "denoise": 1.0})
        ]
        for sigmas in made:
            descends(sigmas, steps)
        edits = {"shift": again, "scale": scale, "blend": blend, "snap": 0, "split": 0}
        edited = run(host, "FewstepEditSchedule", model=model, sigmas=made[0], blend_with=made[1], **edits)
        descends(edited[0], steps)

    holds()
