"""One click on graphs of two models: each is trained on its own part of the way."""

import sys

import pytest
from comfy_server import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import one_click
from api_graph import ApiGraph
from one_click_rules import DISTIL, conditioning, latent, model_chain, samplers, texts

pytestmark = pytest.mark.browser
COMMAND = '() => app.extensionManager.command.execute("Fewstep.MakeFewStep")'
CASES = {  # how much of the model's time is over where the second takes over
    "sdxl_refiner_prompt_example": 20 / 24,  # step 20 of 25 of the scheduler normal
    "video_wan2_2_14B_t2v": 0.5,
}


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("comfyui_workflow_templates_json", reason="needs ComfyUI's package of workflows")
    return dict(one_click.workflows("^(" + "|".join(CASES) + ")$"))


@pytest.fixture(scope="module")
def opened(page_of_comfy):
    page_of_comfy.open(**{"Comfy.VueNodes.Enabled": False})
    page_of_comfy.page.evaluate(one_click.WATCH)
    yield page_of_comfy.page, page_of_comfy.server.get("/object_info")
    page_of_comfy.leave()


def click(page, answer):
    """The graph as queued after a click that chooses that answer wherever it is asked for the stage."""
    act = one_click.ACT.replace(
        'dialog.querySelector("button")',
        f'[...dialog.querySelectorAll("button")].at(dialog.innerText.includes("%") ? {answer} : 0)',
    )
    found = page.evaluate(f"([seconds]) => ({act})([{COMMAND}, seconds])", [60])
    assert found["queued"], found["told"]
    return found["after"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stage", [0, 1])
def test_the_chosen_model_is_trained_on_its_own_part(opened, official, name, stage):
    page, info = opened
    before = ApiGraph(page.evaluate(one_click.OPEN, official[name]), info)
    graph = ApiGraph(click(page, stage), info)
    (distil,) = (i for i in graph.nodes if graph.kind(i) == DISTIL)
    part = [graph.value(distil, key) for key in ("from_percent", "to_percent")]
    assert part == pytest.approx([0, CASES[name]] if stage == 0 else [CASES[name], 1], abs=1e-6)
    second = next(one for one in samplers(before) if before.value(one.node, "start_at_step") != 0)
    first = next(one for one in samplers(before) if latent(before, second)[0] == one.node)
    chains = [model_chain(before, one) for one in (first, second)]
    assert graph.origin(distil, "model") in chains[stage]
    if stage == 0:
        assert graph.origin(distil, "first_stage") is None
        return
    assert graph.origin(distil, "first_stage") == chains[0][0]
    prompts = [graph.origin(distil, key) for key in ("positive", "first_positive")]
    same = conditioning(before, first)[0] == conditioning(before, second)[0]
    assert (prompts[1] is None) == same
    for end, one in zip(prompts, (second, first)):
        assert end is None or texts(graph, end) == texts(before, conditioning(before, one)[0])
