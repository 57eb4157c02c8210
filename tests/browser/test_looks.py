"""Every node of the pack, dropped and measured in both renderers, in English and in Chinese.

Nothing lies over anything else, no text is cut, no part of a node is empty for more than `MOST_GAP` pixels,
and no value reads "undefined"; folded as it is dropped, with all settings shown, and folded again. One page
for each renderer and language.
"""

import pytest

pytestmark = pytest.mark.browser
MOST_GAP = 40  # pixels of nothing
SCALE = 0.8
SETTLED = """const settled = async () => {
  const sizes = () => String(app.graph.nodes.map((node) => [...node.size]));
  for (let before = ""; before !== sizes();) {
    before = sizes();
    await new Promise((done) => setTimeout(done, 800));
  }
};"""
DROP = (
    f"async () => {{ {SETTLED}"
    + """
  app.graph.clear();
  const types = Object.keys(LiteGraph.registered_node_types).filter((type) => type.startsWith("Fewstep"));
  const made = types.sort().map((type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  });
  await settled();
  return made.map((node) => node.id);
}"""
)
ARRANGE = (
    f"async ([height, scale]) => {{ {SETTLED}"
    + """
  let [x, y, width] = [60, 110, 0];
  for (const node of app.graph.nodes) {
    const own = node.size[1] + 30;
    if (y + own > height / scale - 60) [x, y, width] = [x + width + 60, 110, 0];
    node.pos = [x, y];
    width = Math.max(width, node.size[0]);
    y += own + 70;
  }
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [20, 0];
  app.canvas.setDirty(true, true);
  await settled();
}"""
)
# what the classic canvas draws, by its own places and fonts
ON_CANVAS = """([most]) => {
  const pen = document.createElement("canvas").getContext("2d");
  const measure = (text, size) => {
    pen.font = `${size}px Inter, Arial, sans-serif`;
    return pen.measureText(text).width;
  };
  const odd = [];
  for (const node of app.graph.nodes) {
    const say = (what) => odd.push(`${node.type}: ${what}`);
    const shown = (node.widgets ?? []).filter((one) => node.isWidgetVisible(one));
    const rows = shown.map((one) => [one.y, one.y + (one.computedHeight ?? 24), one]);
    rows.sort((a, b) => a[0] - b[0]);
    const slots = Math.max(
      node.inputs?.filter((slot) => !slot.widget).length ?? 0, node.outputs?.length ?? 0);
    let bottom = slots * LiteGraph.NODE_SLOT_HEIGHT;
    for (const [top, end, one] of rows) {
      if (top < bottom - 6) say(`${one.name} lies over what is above`);
      if (top - bottom > most) say(`${Math.round(top - bottom)} pixels of nothing above ${one.name}`);
      bottom = end;
      if (one.element) {
        const box = one.element.getBoundingClientRect(), { scale, offset } = app.canvas.ds;
        const lowest = (box.bottom - app.canvas.canvas.getBoundingClientRect().top) / scale - offset[1];
        const below = Math.round(lowest - node.pos[1] - node.size[1]);
        if (box.height && below > 0) say(`${one.name} ends ${below} pixels below the node`);
        continue;
      }
      const value = one.type === "button" ? "" : String(one._displayValue ?? one.value);
      if (/undefined|NaN|null/.test(value)) say(`${one.name} reads ${value}`);
      const arrows = ["number", "combo"].includes(one.type) ? 40 : 10;
      const room = node.size[0] - 2 * 15 - arrows;
      const text = one.type === "button" ? [one.label] : [one.label ?? one.name, value];
      const wide = text.reduce((sum, part) => sum + measure(part, 12), 5);
      if (wide > room) say(`${one.name} needs ${Math.round(wide)} of ${Math.round(room)} pixels`);
    }
    if (bottom - node.size[1] > 2) say(`${Math.round(bottom - node.size[1])} pixels stick out`);
    if (node.size[1] - bottom > most) say(`${Math.round(node.size[1] - bottom)} pixels of nothing below`);
    if (measure(node.title, 14) > node.size[0] - 40) say("the title is cut");
    for (let i = 0; i < slots; i++) {
      const name = (slot) => (slot && !slot.widget ? slot.label ?? slot.localized_name ?? slot.name : "");
      const left = node.inputs?.filter((slot) => !slot.widget)[i];
      const wide = measure(name(left), 14) + measure(name(node.outputs?.[i]), 14);
      if (wide > node.size[0] - 50) say(`slots ${i} lie over each other`);
    }
  }
  return odd;
}"""
# what Nodes 2.0 lays out, by the boxes of its elements
IN_NODES_2 = """([most, scale]) => {
  const odd = [];
  const nodes = [...document.querySelectorAll("[data-node-id]")];
  for (const element of nodes) {
    const node = app.graph.getNodeById(Number(element.dataset.nodeId));
    const say = (what) => odd.push(`${node.type}: ${what}`);
    const box = element.getBoundingClientRect();
    const seen = [...element.querySelectorAll("*")].filter((one) => one.checkVisibility());
    const texts = seen.filter((one) => one.matches("input, textarea")
      || [...one.childNodes].some((part) => part.nodeType === 3 && part.textContent.trim()));
    for (const one of texts) {
      const text = one.value ?? one.textContent;
      if (/undefined|NaN|\\bnull\\b/.test(text)) say(`reads ${text}`);
      const clips = getComputedStyle(one).overflowX !== "visible" || one.matches("input");
      if (clips && one.scrollWidth > one.clientWidth + 1) say(`"${text}" is cut`);
    }
    const rows = [...element.querySelectorAll('[data-testid="node-widget"]')]
      .filter((one) => one.checkVisibility()).map((one) => one.getBoundingClientRect());
    rows.forEach((row, i) => rows.slice(0, i).forEach((other) => {
      if (Math.min(row.bottom, other.bottom) - Math.max(row.top, other.top) > 1) say("widgets overlap");
    }));
    const other = seen.filter((one) => one.matches("canvas, img, button, svg, .fewstep-nodeplot"));
    const full = [...texts, ...other]
      .map((one) => one.getBoundingClientRect()).filter((one) => one.height > 0)
      .sort((a, b) => a.top - b.top);
    let bottom = box.top;
    for (const one of [...full, { top: box.bottom, bottom: box.bottom }]) {
      const gap = Math.round((one.top - bottom) / scale);
      if (gap > most) say(`${gap} pixels of nothing`);
      bottom = Math.max(bottom, one.bottom);
    }
    for (const other of nodes) {
      const its = other.getBoundingClientRect();
      if (other !== element && Math.min(its.right, box.right) - Math.max(its.left, box.left) > 1
          && Math.min(its.bottom, box.bottom) - Math.max(its.top, box.top) > 1) say("lies over another node");
    }
  }
  return odd;
}"""
FOLD = (
    f"async () => {{ {SETTLED}"
    + """
  for (const node of app.graph.nodes) {
    if (LiteGraph.vueNodesMode) {
      document.querySelector(`[data-node-id="${node.id}"] [data-testid="advanced-inputs-button"]`)?.click();
    } else {
      node.widgets?.find((widget) => widget.name === "fewstep_more")?.callback();
    }
  }
  await settled();
}"""
)
SIZES = "() => app.graph.nodes.map((node) => [node.type, ...node.size.map(Math.round)])"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_every_node_is_whole(front, vue, language):
    front.open(height=1500, **{"Comfy.VueNodes.Enabled": vue, "Comfy.Locale": language})
    page = front.page
    page.set_viewport_size({"width": 2200, "height": 1500})
    assert len(page.evaluate(DROP)) > 20

    def measured(shot=None):
        for _ in range(2):  # Nodes 2.0 knows how tall a node is once it was in sight
            page.evaluate(ARRANGE, [1500, SCALE])
        if shot:
            front.shot(f"looks_{'vue' if vue else 'canvas'}_{language}{shot}")
        return page.evaluate(IN_NODES_2 if vue else ON_CANVAS, [MOST_GAP, SCALE])

    assert measured("_dropped") == []
    folded = page.evaluate(SIZES)
    page.evaluate(FOLD)
    opened = page.evaluate(SIZES)
    assert sum(size[2] for size in opened) > sum(size[2] for size in folded) + 400
    assert measured("_opened") == []
    page.evaluate(FOLD)
    assert measured() == []


WIRED = """async () => {
  app.graph.clear();
  app.graph.id = crypto.randomUUID();
  const types = ["FewstepLoadDemoTeacher", "EmptyLatentImage", "FewstepDistil"];
  const [teacher, latent, distil] = types.map((type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  });
  distil.pos = [700, 200];
  teacher.connect(0, distil, 0);
  latent.connect(0, distil, distil.inputs.findIndex((input) => input.name === "latent"));
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
  return distil.id;
}"""
READS = """(id) => {
  const widget = app.graph.getNodeById(id).widgets.find((one) => one.name === "cfg");
  const field = document.querySelector(`[data-node-id="${id}"] [aria-label="cfg"] input`);
  return field ? getComputedStyle(field.parentElement, "::after").content : `"${widget._displayValue}"`;
}"""
SAY = """async ([id, workflow, text]) => {
  const detail = { node: String(id), workflow: workflow ?? app.graph.id, text, used: { cfg: 7 } };
  window.comfyAPI.api.api.dispatchEvent(new CustomEvent("fewstep.say", { detail }));
  await new Promise((done) => setTimeout(done, 500));
  const node = app.graph.getNodeById(id);
  const { element } = node.widgets.find((one) => one.name === "fewstep_status");
  return [element.textContent, Math.round(node.size[1])];
}"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_node_tells_what_automatic_is_and_has_a_place_for_what_is_said(front, vue):
    """The saved value stays 0; a text makes nothing grow, and one for another workflow is not shown."""
    front.open(**{"Comfy.VueNodes.Enabled": vue})
    page = front.page
    distil = page.evaluate(WIRED)
    page.wait_for_function(f"(id) => ({READS})(id) === '\"auto · 2\"'", arg=distil)
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")[str(distil)]["inputs"]
    assert (sent["cfg"], sent["rank"], sent["learning_rate"], sent["updates"]) == (0, 0, 0, 0)
    before, height = page.evaluate(SAY, [distil, "of another workflow", "not for here"])
    assert "rank 16" in before and "Memory:" in before and "not for here" not in before
    said, same = page.evaluate(SAY, [distil, None, "line of a run " * 20])
    assert "line of a run" in said and same == height
    assert page.evaluate(READS, distil) == '"auto · 7"'
    front.shot(f"looks_said_{'vue' if vue else 'canvas'}")
