""" "Use it" on official workflows, judged by the rules of the benchmark; and what it does where it can't."""

import sys

import pytest
from comfy_server import ROOT
from frontend import FOLDER

sys.path.insert(0, str(ROOT / "benchmarks"))

import one_click
import one_click_use as rules
from api_graph import ApiGraph
from one_click_rules import ASKED, REFUSED, RIGHT, Seen

pytestmark = pytest.mark.browser
# of each kind of graph: what it once came to nothing or to something else in
KINDS = {
    "flux_dev_full_text_to_image": RIGHT,  # a plain sampler
    "hidream_i1_full": RIGHT,
    "image_z_image": RIGHT,  # inside a subgraph, its seed on the outside
    "basic_switch_node": RIGHT,  # loader and sampler on two sides of a wall
    "flux1_dev_uso_reference_image_gen": RIGHT,  # beside a bypassed subgraph
    "image_flux2": RIGHT,  # a guider without CFG, and a schedule of the family's own
    "image_flux2_klein_text_to_image": RIGHT,  # a guider with CFG
    "hidream_e1_1": RIGHT,  # a guider of two CFGs, and a guidance node
    "image_qwen_image": RIGHT,  # a guidance node
    "video_ltx2_3_t2v": RIGHT,  # the first pass, not the one that makes it larger
    "sdxl_refiner_prompt_example": ASKED,  # the base hands its leftover noise on
    "video_wan2_2_14B_t2v": ASKED,  # one expert takes its own part
    "video_wan_animate2": RIGHT,  # a cache that changes no picture
    "utility_sdpose_ood_image_to_pose": REFUSED,  # nothing draws
}
STATE = """() => {
  const { nodes, links, groups } = app.graph.serialize();
  const plain = nodes.map(({ id, type, mode, inputs, pos, flags }) =>
    [id, type, mode, flags, (inputs ?? []).map(({ link }) => link !== null), pos.map(Math.round)]);
  return JSON.stringify([plain.sort((a, b) => a[0] - b[0]), links.length, groups.length]);
}"""
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("comfyui_workflow_templates_json", reason="needs ComfyUI's package of workflows")
    return dict(one_click.workflows(""))


@pytest.fixture(scope="module")
def opened(page_of_comfy):
    rules.prepare(page_of_comfy.server.base)
    page_of_comfy.open(**{"Comfy.VueNodes.Enabled": False})
    page_of_comfy.page.evaluate(one_click.WATCH)
    yield page_of_comfy.page, page_of_comfy.server.get("/object_info")
    page_of_comfy.leave()
    for name in (rules.NAME, rules.FIRST, rules.SECOND):
        (page_of_comfy.server.base / "models" / "loras" / name).unlink()


def use(page, name=rules.NAME):
    """(graph as queued afterwards, what was asked, what was said)."""
    call = f"([seconds]) => ({one_click.ACT})([{rules.script(name, FOLDER)}, seconds])"
    found = page.evaluate(call, [60])
    return (
        found["after"],
        tuple(found["asked"]),
        (*found["told"], *([found["end"]] if found["end"] else [])),
    )


def test_each_kind_of_graph_gets_what_it_was_promised(opened, official):
    page, info = opened
    found = {}
    for name in KINDS:
        before = ApiGraph(page.evaluate(one_click.OPEN, official[name]), info)
        after, asked, told = use(page)
        found[name] = rules.verdict(before, ApiGraph(after, info), Seen(asked=asked, told=told))
    assert {name: verdict for name, (verdict, _) in found.items()} == KINDS, found


def test_two_loras_of_two_parts_find_their_stages_one_after_the_other(opened, official):
    page, info = opened
    page.evaluate(one_click.OPEN, official["video_wan2_2_14B_t2v"])
    for name in (rules.FIRST, rules.SECOND):
        after, asked, told = use(page, name)
        assert not asked, asked
    graph = ApiGraph(after, info)
    loaders = {graph.value(i, "lora_name"): i for i in graph.nodes if graph.kind(i) == rules.LORA}
    assert set(loaders) == {rules.FIRST, rules.SECOND}, told
    first, second = (
        next(
            i
            for i in graph.nodes
            if graph.kind(i) == "SamplerCustom" and graph.origin(i, "model")[0] == loader
        )
        for loader in (loaders[rules.FIRST], loaders[rules.SECOND])
    )
    assert graph.origin(second, "latent_image") == (first, 0)
    assert graph.value(first, "add_noise") is True and graph.value(second, "add_noise") is False
    parts = [graph.origin(graph.origin(i, "sigmas")[0], "part") for i in (first, second)]
    assert [(graph.kind(i), slot) for i, slot in parts] == [("SplitSigmas", 0), ("SplitSigmas", 1)]
    again, *_ = use(page, rules.FIRST)  # the file of a loader that is there
    assert len(again) == len(after)


def test_a_lora_of_a_part_is_refused_where_nothing_samples_that_part_alone(opened, official):
    page, _ = opened
    page.evaluate(one_click.OPEN, official["flux_dev_full_text_to_image"])
    before = page.evaluate(STATE)
    _, _, told = use(page, rules.SECOND)
    assert any("for 50 to 100 % of the way" in one for one in told), told
    assert page.evaluate(STATE) == before


@pytest.mark.parametrize(
    "name", ["flux_dev_full_text_to_image", "sdxl_refiner_prompt_example", "hidream_e1_1"]
)
def test_what_would_not_run_as_promised_is_taken_back_and_said(opened, official, name):
    """A graph that is changed meanwhile: the sampler is bypassed before it is read again."""
    page, _ = opened
    page.evaluate(one_click.OPEN, official[name])
    before = page.evaluate(STATE)
    page.evaluate("""() => {
      window.readQueue = app.graphToPrompt;
      app.graphToPrompt = async (...given) => {
        const made = await readQueue.apply(app, given);
        if (Object.values(made.output).some((node) => node.class_type === "FewstepLoadLora")) {
          Object.values(made.output).filter((node) => "sigmas" in node.inputs).forEach((node) => {
            delete node.inputs.sampler;
          });
        }
        return made;
      };
    }""")
    _, _, told = use(page)
    page.evaluate("() => { app.graphToPrompt = readQueue; }")
    assert any("would not get their sampler" in one for one in told), told
    assert page.evaluate(STATE) == before


def test_it_is_undone_in_one_step(opened, official):
    page, _ = opened
    page.evaluate(one_click.OPEN, official["hidream_i1_full"])
    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    types = "app.graph.nodes.map((node) => [node.type, node.mode]).sort().join()"
    before = page.evaluate(types)
    use(page)
    assert page.evaluate(types) != before
    page.evaluate(UNDO)
    page.wait_for_function(f"(wanted) => {types} === wanted", arg=before)
