"""In the real ComfyUI, in process: schedules made, edited, translated and shown."""

import pytest
import torch
from graph import pack, run, show, uniform

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
