"""In the real ComfyUI, in process: samplers and step counts against a converged reference."""

import pytest
import torch
from graph import sample_custom, show

pytestmark = pytest.mark.comfy


def compare(host, teacher, **changes):
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    inputs = dict(
        model=teacher[0],
        positive=teacher[2],
        negative=teacher[3],
        latent=latent,
        vae=teacher[1],
        samplers="auto, euler, heun/karras",
        steps="2, 6",
        cfg=2.0,
        seed=1,
        tolerance=0.2,
    )
    return show(host, "FewstepCompare", **{**inputs, **changes})


def test_compare_measures_and_hands_on_the_cheapest_that_is_near_enough(host, teacher):
    out = compare(host, teacher)
    image, sampler, sigmas, text = out.result
    data = out.ui["fewstep"][0]
    rows = {(r["name"], r["steps"]): r for r in data["rows"]}
    assert len(rows) == 6 and rows["heun/karras", 6]["nfe"] == 22 and rows["euler", 6]["nfe"] == 12
    assert rows["auto", 6]["distance"] < rows["auto", 2]["distance"] and data["reference"]["drift"] < 0.05
    near = [r for r in rows.values() if r["distance"] <= 0.2]
    best = (
        min(near, key=lambda r: (r["nfe"], r["distance"]))
        if near
        else min(rows.values(), key=lambda r: r["distance"])
    )
    assert data["chosen"] == f"{best['name']}, {best['steps']} steps" and data["chosen"] in text
    assert image.shape[0] == 1 and image.shape[1] > 3 * 128
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    again = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, seed=1, latent=latent)
    assert torch.isfinite(again).all() and len(sigmas) == best["steps"] + 1


def test_compare_measures_inside_the_mask(host, flow):
    mask = torch.nn.functional.pad(torch.ones(1, 8, 8), (0, 24, 0, 24))
    latent = {**host.EmptyLatentImage().generate(32, 32, 1)[0], "noise_mask": mask}
    row = compare(host, flow, samplers="order 1", steps="1", latent=latent).ui["fewstep"][0]["rows"][0]
    assert row["distance"] > 0.15


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"steps": "two"}, "steps must be whole numbers from 1 to 200"),
        ({"steps": "0, 4"}, "steps must be whole numbers"),
        ({"samplers": " , "}, "samplers must name at least one"),
        ({"samplers": "best"}, "samplers must be among auto, .* got 'best'. Nearest: [^,]+(, [^,]+){0,3}.$"),
        ({"samplers": "euler/nice"}, "schedule of 'euler/nice' must be one of"),
        (
            {"samplers": "euler/kl_optimal", "steps": "1"},
            "schedule of 'euler/kl_optimal' with 1 steps must be finite",
        ),
    ],
)
def test_bad_comparisons_are_refused_before_the_model_is_called(host, flow, changes, why, monkeypatch):
    import comfy.sample

    monkeypatch.setattr(comfy.sample, "sample_custom", lambda *a, **k: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=why):
        compare(host, flow, **changes)
