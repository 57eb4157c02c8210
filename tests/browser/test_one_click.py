"""One click on official workflows, judged by the benchmark's rules, and on graphs as artists leave them."""

import sys

import pytest
from comfy_server import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import one_click
import one_click_rules as rules

pytestmark = pytest.mark.browser
# of each kind of graph that once was read wrong
RIGHT = (
    "image_z_image",  # its CFG and its empty negative
    "image_flux2_klein_text_to_image",  # a prompt on the outer node of a subgraph
    "sdxl_revision_text_prompts",
    "image_chroma_text_to_image",  # the negative apart
    "image_anima_base_v1",
    "image_netayume_lumina_t2i",
    "hidream_i1_full",
    "flux_dev_full_text_to_image",
    "flux_kontext_dev_basic",  # a reference latent
    "flux_canny_model_example",  # a picture among the channels
    "flux_fill_inpaint_example",
    "flux_redux_model_example",  # a style
    "flux1_dev_uso_reference_image_gen",
    "hidream_e1_1",  # a guider of two CFGs, and a guidance node
    "image_qwen_image",  # a guidance node
    "image_qwen_image_edit",  # an encoder that sees a picture
    "image_qwen_image_layered",
    "image_omnigen2_image_edit",
    "image_ideogram4_t2i",  # a guider of two models
    "wan2.1_fun_control",  # guidance nodes between other patches
    "image_to_video_wan",  # a start image
    "text_to_video_wan",  # the same latent, size and length
    "ltxv_text_to_video",  # a node that passes both on, and a frame rate
    "video_kandinsky5_t2v",
    "video_hunyuan_video_1.5_720p_t2v",
)
ASKED = (
    "flux_schnell",
    "image_z_image_turbo",
    "sdxlturbo_example",
    "basic_switch_node",  # loader and sampler on two sides of a wall
    "image_flux2_klein_image_edit_4b_distilled",
    "image_qwen_image_edit_2509",  # an accelerator LoRA behind a switch
    "sdxl_refiner_prompt_example",  # two models
    "video_wan2_2_14B_i2v",
)
REFUSED = (
    "audio_stable_audio_example",
    "3d_hunyuan3d-v2.1",
    "utility_image_segment_sam3",
    "utility_sdpose_ood_image_to_pose",
    "image_lotus_depth_v1_1",
    "video_ltx2_t2v",  # sound beside the picture
    "sd3.5_large_canny_controlnet_example",
)
SWITCHES = """async (value) => {
  app.graph.nodes.find(({ id }) => String(id) === "66").widgets[0].value = value;
  return (await app.graphToPrompt()).output;
}"""
# an artist's other prompt on the outer node of a subgraph, whose inner one is stale
OUTER = """async (text) => {
  const outer = app.graph.nodes.find((node) => node.subgraph);
  const widget = outer.widgets.find((one) => ["text", "value"].includes(one.name));
  widget.value = text;
  return (await app.graphToPrompt()).output;
}"""
# as packs make them: virtual nodes that the page resolves when it queues
SETS = """async () => {
  class Named extends LiteGraph.LGraphNode {
    isVirtualNode = true;
  }
  class SetIt extends Named {
    constructor() {
      super("Set");
      this.addInput("value", "*");
    }
  }
  class GetIt extends Named {
    constructor() {
      super("Get");
      this.addOutput("value", "*");
    }
    getInputLink() {
      const named = ({ title, type }) => type === "TestSet" && title === this.properties.of;
      const setter = this.graph.nodes.find(named);
      return this.graph.links.get(setter.inputs[0].link);
    }
  }
  LiteGraph.registerNodeType("TestSet", SetIt);
  LiteGraph.registerNodeType("TestGet", GetIt);
  const sampler = app.graph.nodes.find(({ type }) => type === "KSampler");
  for (const [i, input] of sampler.inputs.filter(({ link }) => link !== null).entries()) {
    const link = app.graph.links.get(input.link);
    const [set, get] = ["TestSet", "TestGet"].map((type) => LiteGraph.createNode(type));
    app.graph.add(set);
    app.graph.add(get);
    set.title = get.properties.of = `shared ${i}`;
    app.graph.getNodeById(link.origin_id).connect(link.origin_slot, set, 0);
    get.connect(0, sampler, sampler.inputs.indexOf(input));
  }
  return (await app.graphToPrompt()).output;
}"""
# guidance that the LoRA is to learn, and behind it a node of a pack that makes its widgets as they are wanted
PATCHES = """async () => {
  class Power extends LiteGraph.LGraphNode {
    comfyClass = "TestPower";
    constructor() {
      super("Power");
      this.serialize_widgets = true;
      this.addInput("model", "MODEL");
      this.addOutput("MODEL", "MODEL");
    }
    load(name) {
      this.addWidget("text", `lora_${(this.widgets ?? []).length + 1}`, name);
    }
    onConfigure({ widgets_values: names }) {
      (names ?? []).slice((this.widgets ?? []).length).forEach((name) => this.load(name));
    }
  }
  LiteGraph.registerNodeType("TestPower", Power);
  const sampler = app.graph.nodes.find(({ type }) => type === "KSampler");
  const into = sampler.inputs.findIndex(({ name }) => name === "model");
  const link = app.graph.links.get(sampler.inputs[into].link);
  const [guide, power] = ["RescaleCFG", "TestPower"].map((type) => LiteGraph.createNode(type));
  app.graph.add(guide);
  app.graph.add(power);
  power.load("style");
  app.graph.getNodeById(link.origin_id).connect(link.origin_slot, guide, 0);
  guide.connect(0, power, 0);
  power.connect(0, sampler, into);
  return (await app.graphToPrompt()).output;
}"""
BYPASSES = """async () => {
  app.graph.nodes.filter((node) => node.subgraph).forEach((node) => { node.mode = 4; });
  return (await app.graphToPrompt()).output;
}"""
TYPES = """[app.graph, ...app.graph.subgraphs.values()]
  .flatMap(({ nodes }) => nodes.map((node) => node.type)).sort()"""


@pytest.fixture(scope="module")
def official():
    pytest.importorskip("comfyui_workflow_templates_json", reason="needs ComfyUI's package of workflows")
    return dict(one_click.workflows(""))


@pytest.fixture(scope="module")
def opened(page_of_comfy):
    page_of_comfy.open(**{"Comfy.VueNodes.Enabled": False})
    page_of_comfy.page.evaluate(one_click.WATCH)
    yield page_of_comfy.page, page_of_comfy.server.get("/object_info")
    page_of_comfy.leave()


@pytest.fixture
def show(page_of_comfy, opened):
    """Puts a graph into the page, changed by a script; the prompt of it. Our code must leave no error."""
    page_of_comfy.trouble.clear()

    def do(graph, change=None, argument=None):
        page, _ = opened
        prompt = page.evaluate(one_click.OPEN, graph)
        return page.evaluate(change, argument) if change else prompt

    yield do
    assert page_of_comfy.trouble == []


@pytest.fixture
def click(opened):
    """(verdict, why) of a click on the graph that is shown, with that prompt."""

    def do(prompt):
        row, _ = one_click.judge_shown(*opened, one_click.one_click(), "", prompt)
        return row["verdict"], row["why"]

    return do


@pytest.mark.parametrize(
    ("verdict", "name"),
    [
        *((rules.RIGHT, name) for name in RIGHT),
        *((rules.ASKED, name) for name in ASKED),
        *((rules.REFUSED, name) for name in REFUSED),
    ],
)
def test_official_workflows(show, click, official, verdict, name):
    found, why = click(show(official[name]))
    assert found == verdict, why


def test_a_prompt_changed_on_the_outer_node_of_a_subgraph(show, click, official, opened):
    prompt = show(official["blueprint Text to Image (Z-Image-Base)"], OUTER, "a lighthouse in a storm")
    assert click(prompt) == (rules.RIGHT, "")
    after = opened[0].evaluate("async () => (await app.graphToPrompt()).output")
    texts = [node["inputs"]["text"] for node in after.values() if node["class_type"] == "FewstepPrompts"]
    assert texts == ["a lighthouse in a storm"]


@pytest.mark.parametrize("on", [True, False])
def test_switches_as_they_stand(show, click, official, opened, on):
    found, why = click(show(official["basic_switch_node"], SWITCHES, on))
    assert found == rules.ASKED, why
    after = opened[0].evaluate("async () => (await app.graphToPrompt()).output")
    [text] = [node["inputs"]["text"] for node in after.values() if node["class_type"] == "FewstepPrompts"]
    assert text.startswith("Pixel art style") == on


def test_set_and_get_nodes(show, click, official):
    assert click(show(official["sdxl_revision_text_prompts"], SETS)) == (rules.RIGHT, "")


def test_copies_hold_what_packs_keep_in_their_nodes_and_are_found_again(show, official, opened):
    page, _ = opened
    show(official["sdxl_revision_text_prompts"], PATCHES)
    for change, loras, groups in (
        ("() => {}", ["style", "style"], 1),
        ("() => {}", ["style", "style"], 1),  # pressed again it is the same
        (
            "() => { app.graph.nodes.find(({ type }) => type === 'TestPower').widgets[0].value = 'other'; }",
            ["other", "other", "style"],
            2,
        ),
    ):
        page.evaluate(change)
        page.evaluate("bench.queued = null")
        page.evaluate("() => { app.extensionManager.command.execute('Fewstep.MakeFewStep'); }")
        page.wait_for_function("bench.queued")
        after = page.evaluate("async () => (await app.graphToPrompt()).output")
        kept = sorted(n["inputs"]["lora_1"] for n in after.values() if n["class_type"] == "TestPower")
        assert kept == loras
        assert sum(node["class_type"] == "FewstepDistil" for node in after.values()) == groups


def test_nothing_is_left_of_a_click_on_a_bypassed_subgraph(show, click, official, opened):
    page, _ = opened
    prompt = show(official["image_z_image"], BYPASSES)
    before = page.evaluate(TYPES)
    found, why = click(prompt)
    assert found == rules.REFUSED and "muted and bypassed nodes don't count" in why
    assert page.evaluate(TYPES) == before


def test_cancel_leaves_the_graph_as_it_was_and_escape_is_cancel(show, official, opened):
    page, _ = opened
    show(official["flux_schnell"])
    before = page.evaluate(TYPES)
    cancel = page.locator(".fewstep-ask").get_by_role("button", name="Cancel")
    for leave in (cancel.click, lambda: page.keyboard.press("Escape")):
        page.evaluate("() => { app.extensionManager.command.execute('Fewstep.MakeFewStep'); }")
        page.get_by_text("4 steps at CFG 1").wait_for()
        leave()
        page.locator("dialog.fewstep-ask").wait_for(state="detached")
        assert page.evaluate(TYPES) == before


def test_all_of_a_click_is_one_step_of_undo(show, click, official, opened):
    page, _ = opened
    prompt = show(official["flux_kontext_dev_basic"])
    page.mouse.click(1200, 880)  # the host notes changes when a mouse button comes up
    page.wait_for_timeout(1000)
    before = page.evaluate(TYPES)
    assert click(prompt) == (rules.RIGHT, "")
    assert page.evaluate(TYPES) != before
    page.wait_for_timeout(1000)
    page.keyboard.press("Control+z")
    page.wait_for_function(f"(types) => String({TYPES}) === String(types)", arg=before)


def test_a_refiner_learns_its_own_part_from_what_the_base_leaves(show, official, opened):
    page, _ = opened
    show(official["sdxl_refiner_prompt_example"])
    page.evaluate("() => { app.extensionManager.command.execute('Fewstep.MakeFewStep'); }")
    page.locator(".fewstep-ask").get_by_role("button", name="refiner").click()
    page.wait_for_function("app.graph.nodes.some(({ type }) => type === 'FewstepDistil') && bench.queued")
    after = page.evaluate("async () => (await app.graphToPrompt()).output")
    [distil] = [node["inputs"] for node in after.values() if node["class_type"] == "FewstepDistil"]
    # step 20 of the 25 levels that the scheduler "normal" spreads over the whole time
    assert distil["from_percent"] == pytest.approx(20 / 24) and (distil["to_percent"], distil["cfg"]) == (
        1,
        8,
    )
    assert (distil["model"], distil["first_stage"], distil["latent"]) == (["12", 0], ["4", 0], ["5", 0])
    lists = [after[distil[name][0]]["inputs"] for name in ("positive", "first_positive")]
    assert [one["clip"] for one in lists] == [["12", 1], ["4", 1]]
    assert [one["text"].split()[0] for one in lists] == ["daytime", "daytime"]
    assert lists[0]["source"] == lists[1]["source"] and lists[0]["count"] == lists[1]["count"]
