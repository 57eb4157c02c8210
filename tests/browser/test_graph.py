"""What the panel's buttons, the command and the plots do to the user's graph, and how it is undone."""

import pytest

pytestmark = pytest.mark.browser
LORA = "old-0.safetensors"
# how far the selected nodes stick out of the part of the canvas that nothing covers, in pixels
COVERED = """() => {
  const open = document.querySelector(".graph-canvas-panel").getBoundingClientRect();
  const bar = document.querySelector(".side-bar-panel").getBoundingClientRect();
  const overlap = Math.max(open.left, bar.left) < Math.min(open.right, bar.right);
  if (!bar.width || overlap) throw new Error("another layout");
  return [...app.canvas.selectedItems].map(({ pos, size }) => {
    const [left, top] = app.canvas.convertOffsetToCanvas([pos[0], pos[1] - 30]);
    const [right, bottom] = app.canvas.convertOffsetToCanvas([pos[0] + size[0], pos[1] + size[1]]);
    return Math.max(open.left - left, right - open.right, open.top - top, bottom - open.bottom);
  });
}"""
WIRES = """() => {
  const restorers = app.graph.nodes.filter((node) => node.type.startsWith("FewstepRestore"));
  const wires = (node) => node.inputs.map((input, i) => [input.name, node.getInputNode(i)?.type]);
  return restorers.flatMap((node) => wires(node).filter((wire) => wire[1]));
}"""
COUNTS = """() => {
  window.watching = new Set();
  const { observe, disconnect } = IntersectionObserver.prototype;
  IntersectionObserver.prototype.observe = function (element) {
    if (element.classList.contains("fewstep-nodeplot")) watching.add(this);
    return observe.call(this, element);
  };
  IntersectionObserver.prototype.disconnect = function () {
    watching.delete(this);
    return disconnect.call(this);
  };
}"""
FOLDS = """(types) => {
  const nodes = app.graph.nodes.filter((node) => types.includes(node.type));
  app.canvas.selectItems(nodes);
  app.graph.convertToSubgraph(new Set(nodes));
}"""
NOTES = """() => app.graph.nodes.find((node) => node.subgraph).subgraph.nodes.flatMap((node) => {
  const plot = node.widgets?.find((widget) => widget.name === "fewstep_plot");
  return plot ? [plot.element.querySelector(".fewstep-nodeplot-note").textContent] : [];
})"""
BUSY = """() => {
  const buttons = [...document.querySelectorAll(".fewstep-buttons button")];
  return buttons.map((one) => one.getAttribute("aria-disabled"));
}"""
RESTORER = "app.graph.nodes.find((node) => node.type === 'FewstepRestore')"
MENU = '[data-testid="comfy-menu-button"], .comfyui-logo-menu, .comfy-menu-button-wrapper'
QUEUED = {"prompt_id": "of-no-run", "number": 1, "node_errors": {}}


@pytest.fixture
def lora(comfy):
    """A file that the page lists; nothing here loads it."""
    path = comfy.base / "models" / "loras" / LORA
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    yield
    path.unlink()


def use(front):
    front.button("Use it").click()
    front.page.get_by_text("are in the graph").wait_for()
    front.page.wait_for_timeout(1500)  # the view moves


def undo(front, wanted):
    front.page.keyboard.press("Control+z")
    front.page.wait_for_function(
        "(types) => String(app.graph.nodes.map((node) => node.type).sort()) === String(types)",
        arg=sorted(wanted),
    )


@pytest.mark.parametrize(
    "vue, side", [(False, "left"), (True, "left"), (True, "right")], ids=["canvas", "vue", "vue-right"]
)
def test_use_it_is_seen_beside_the_sidebar_and_undone_at_once(front, old_runs, lora, vue, side):
    old_runs(1)
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": vue, "Comfy.Sidebar.Location": side})
    front.open_tab()
    page, before = front.page, front.types()
    page.route("**/object_info", lambda route: None)  # not answered for now
    front.button("Use it").click()
    page.get_by_text("Working on it").wait_for()
    assert set(page.evaluate(BUSY)[:5]) == {"true"}
    front.button("Delete").click(force=True)  # it is not asked meanwhile
    assert page.locator(".fewstep-confirm").is_hidden()
    page.wait_for_timeout(500)
    page.unroute_all()
    page.get_by_text("are in the graph").wait_for()
    assert set(page.evaluate(BUSY)[:5]) == {"false"}
    page.wait_for_timeout(1500)
    front.shot(f"use_{'vue' if vue else 'canvas'}_{side}")
    sticks_out = page.evaluate(COVERED)
    assert sticks_out and max(sticks_out) <= 0, sticks_out
    after = front.types()
    assert sorted(after) == sorted([*before, "FewstepLoadLora"])
    page.keyboard.press("Delete")  # the button has the focus, and the new node is selected
    page.wait_for_timeout(500)
    assert front.types() == after
    undo(front, before)


def test_a_lora_that_restores_gets_the_node_that_does(front, old_runs, lora):
    old_runs(1, method="restoration")
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": False, "Comfy.Sidebar.Location": "left"})
    front.open_tab()
    page = front.page
    front.button("Use it").click()
    page.get_by_text("There is no picture in the graph to restore").wait_for()
    page.evaluate("""() => {
      const node = LiteGraph.createNode("FewstepForwardProcess");
      node.pos = [40, 500];
      app.graph.add(node);
    }""")
    page.mouse.click(1200, 900)  # the host notes changes when a mouse button comes up
    before = front.types()
    use(front)
    added = ["FewstepCorrupt", "FewstepRestore", "VAEDecode", "PreviewImage"]
    assert sorted(front.types()) == sorted([*before, *added])
    assert page.evaluate(WIRES) == [
        ["model", "FewstepLoadDemoTeacher"],
        ["positive", "FewstepLoadDemoTeacher"],
        ["latent", "FewstepCorrupt"],
    ]
    front.shot("restorer")
    undo(front, before)

    front.load("restore_a_pixelated_emoji")
    before = front.types()
    use(front)
    # the node that is there takes the file, on the model without another LoRA
    assert sorted(front.types()) == sorted(before)
    assert dict(page.evaluate(WIRES)) == {
        "model": "FewstepLoadDemoTeacher",
        "positive": "FewstepLoadDemoTeacher",
        "latent": "FewstepCorrupt",
        "process": "FewstepForwardProcess",
    }
    assert page.evaluate(f"{RESTORER}.widgets[0].value") == LORA
    assert page.evaluate("app.graph.nodes.find((node) => node.type === 'FewstepDistil').mode") == 2  # muted


def test_the_command_makes_few_step_beside_subgraphs_that_take_more_than_they_give(front):
    front.open(
        "sample_in_4_steps",
        **{"Comfy.VueNodes.Enabled": False, "Comfy.Sidebar.Location": "left", "Comfy.Locale": "zh"},
    )
    page = front.page
    page.evaluate(FOLDS, ["SamplerCustom", "VAEDecode"])
    page.wait_for_timeout(500)
    page.route("**/api/prompt", lambda route: route.fulfill(json=QUEUED))
    page.locator(MENU).first.click()
    page.get_by_role("menuitem", name="Extensions").first.hover()
    page.get_by_role("menuitem", name="Fewstep").first.hover()
    with page.expect_request("**/api/prompt") as sent:
        page.get_by_role("menuitem", name="让此模型少步出图").last.click()
    types = {node["class_type"] for node in sent.value.post_data_json["prompt"].values()}
    assert "FewstepDistil" in types and "FewstepDistil" in front.types()


def test_plots_see_through_subgraphs_and_go_with_them(front):
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": False})
    page = front.page
    page.evaluate(COUNTS)
    page.evaluate(FOLDS, ["FewstepSchedule", "FewstepSampler"])
    # as a file has it: what is undefined would come back from here as null, which frontend 1.58 can't load
    graph = page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    for _ in range(2):
        page.evaluate("(graph) => app.loadGraphData(graph)", graph)
        page.wait_for_timeout(1500)
        assert page.evaluate("watching.size") == 2
    page.evaluate("app.canvas.setGraph(app.graph.nodes.find((node) => node.subgraph).subgraph)")
    page.wait_for_function(f"() => ({NOTES})().every((note) => note.includes('Flow model'))")
    assert any("4 steps of the wired schedule" in note for note in page.evaluate(NOTES))
    front.load("how_many_steps")
    page.wait_for_function(
        "watching.size === app.graph.nodes.filter((node) => "
        "node.widgets?.some((widget) => widget.name === 'fewstep_plot')).length"
    )


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_each_move_of_a_drawn_schedule_is_a_step_of_undo(front, vue):
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": vue, "Comfy.Sidebar.Location": "left"})
    page = front.page
    page.evaluate("""() => {
      app.canvas.emitBeforeChange();
      app.graph.clear();
      const node = LiteGraph.createNode("FewstepDrawSchedule");
      node.pos = [100, 100];
      app.graph.add(node);
      [app.canvas.ds.offset, app.canvas.ds.scale] = [[200, 100], 1];
      app.canvas.setDirty(true, true);
      app.canvas.emitAfterChange();      // as when a user adds it, so that there is a state to go back to
    }""")
    page.wait_for_timeout(1500)
    page.mouse.click(1200, 880)
    page.wait_for_function("""() => {
      const { activeState } = app.extensionManager.workflow.activeWorkflow.changeTracker;
      return activeState.nodes.length === 1 && activeState.nodes[0].type === "FewstepDrawSchedule";
    }""")
    value = "app.graph.nodes[0]?.widgets.find((widget) => widget.name === 'points')?.value"
    met = [page.evaluate(value)]
    point = page.locator(".fewstep-nodeplot-point").nth(1)
    place = point.bounding_box()
    page.mouse.move(place["x"] + 11, place["y"] + 11)
    page.mouse.down()
    page.mouse.move(place["x"] + 20, place["y"] + 25, steps=4)
    page.mouse.up()
    met.append(page.evaluate(value))
    page.keyboard.press("ArrowRight")
    met.append(page.evaluate(value))
    page.locator(".fewstep-nodeplot button", has_text="reset").click()
    assert len({*met, page.evaluate(value)}) == 4
    for wanted in reversed(met):
        page.keyboard.press("Control+z")
        page.wait_for_function(f"(wanted) => {value} === wanted", arg=wanted)
        page.wait_for_timeout(500)
