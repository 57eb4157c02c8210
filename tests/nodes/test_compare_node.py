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
    assert data["chosen"] == f"{best['name']}, {best['steps']} steps" and data["enough"] == bool(near)
    assert [row for row in rows.values() if row["chosen"]] == [best]
    assert f"{best['name']} in {best['steps']} steps" in data["verdict"][0] == text.splitlines()[0]
    assert image.shape[0] == 1 and image.shape[1] > 3 * 128
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    again = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, seed=1, latent=latent)
    assert torch.isfinite(again).all() and len(sigmas) == best["steps"] + 1


@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
def test_a_cached_model_competes_by_the_calls_that_it_makes(host, teacher, cache):
    from comfy_extras import nodes_easycache

    node = getattr(nodes_easycache, f"{cache}Node")
    cached = node.execute(teacher[0], 0.5, 0.15, 0.95, False).result[0]
    data = compare(host, teacher, samplers="euler", steps="2, 20", cached=cached).ui["fewstep"][0]
    rows = {(r["name"], r["steps"]): r for r in data["rows"]}
    assert rows["euler", 20]["nfe"] == 40 and rows["euler", 2]["nfe"] == rows["euler · cached", 2]["nfe"] == 4
    assert rows["euler · cached", 20]["nfe"] < 36
    assert any("with cached" in line and "(40 without it)" in line for line in data["verdict"])


def test_a_cache_on_the_model_itself_is_told(host, flow):
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(flow[0], 0.5, 0.15, 0.95, False).result[0]
    lines = compare(host, (cached, *flow[1:]), samplers="euler", steps="2").ui["fewstep"][0]["verdict"]
    assert any("of the reference's model calls were left out" in line for line in lines)
    lines = compare(host, flow, samplers="euler", steps="2", cached_2=cached).ui["fewstep"][0]["verdict"]
    assert any("cached_2 left out no call in so few steps" in line for line in lines)


def test_another_model_is_no_cached_one(host, flow):
    other = host.NODE_CLASS_MAPPINGS["FewstepLoadDemoTeacher"].execute("epsilon", "cat").result[0]
    with pytest.raises(ValueError, match="cached must be the model itself with a cache"):
        compare(host, flow, cached=other)


def test_the_verdict_says_where_auto_loses_and_where_nothing_is_near_enough(host, flow):
    out = compare(host, flow, samplers="auto, order 1", steps="2, 4", seed=3, tolerance=0.001)
    data = out.ui["fewstep"][0]
    rows = {(r["name"], r["steps"]): r for r in data["rows"]}
    assert data["verdict"][0].startswith("None is within 0.001. Nearest: ") and not data["enough"]
    lost = [n for n in (2, 4) if rows["order 1", n]["distance"] < rows["auto", n]["distance"]]
    told = [line for line in data["verdict"] if line.startswith("auto is beaten")]
    assert bool(lost) == bool(told) and all(f"{n} steps by order 1" in told[0] for n in lost)


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
