// Reads the user's graph: what feeds what, past reroutes and bypassed nodes, and what the nodes are for.
//
// An end is { node, slot }, an output of a node. A wire is { from, to, into, type }: the end `from` feeds input number `into` of
// `to`. A chain is [end, ...]: a model's output, then those of the nodes that patch it, one after another.

export const DEMO = "FewstepLoadDemoTeacher";
const MUTED = 2;
const BYPASSED = 4;
const LORA = "FewstepLoadLora";
// patches of a model that guide it or skip work: a few-step model learns from the model without them, and runs without them
const GUIDES = /cfg|guidance|cache|thresholding|perpneg|^apg$|mahiro|fresca|rescaling/i;
const LOADS = /load|lora|merge/i;

export function graphOf(app) {
  return app.canvas?.graph ?? app.graph;
}

/** The selected nodes, and what else is selected. */
export function selectedIn(app) {
  return [...(app.canvas?.selectedItems ?? [])];
}

/** The nodes that take part when the graph runs. */
export function nodesOf(graph) {
  return (graph.nodes ?? graph._nodes).filter((node) => node.mode !== MUTED && !node.isVirtualNode);
}

export const slotOf = (slots, type) => (slots ?? []).findIndex((slot) => slot.type === type);
export const inputOf = (node, name) => (node.inputs ?? []).findIndex((slot) => slot.name === name);
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** The end of an output by its name. */
export const endOf = (node, name) => ({ node, slot: node.outputs.findIndex((slot) => slot.name === name) });

/** The link of that number in a graph, or null. */
export function linkOf(graph, id) {
  const links = graph?.links ?? graph?._links;
  return (id == null || !links ? null : links instanceof Map ? links.get(id) : links[id]) ?? null;
}

/** The link into an input. The host's own getInputLink answers for the node of a subgraph what comes out of it. */
export const linkInto = (node, into) => linkOf(node.graph, node.inputs?.[into]?.link);

/** The end that feeds an input, or null; what lies outside a subgraph is not seen. */
export function origin(node, into) {
  const met = new Set();
  let link = linkInto(node, into);
  while (link) {
    const from = node.graph.getNodeById(link.origin_id);
    if (!from || met.has(from)) {
      return null;
    }
    met.add(from);
    const slot = link.origin_slot;
    if (!from.isVirtualNode && from.mode !== BYPASSED) {
      return from.mode === MUTED ? null : { node: from, slot };
    }
    const through = from.isVirtualNode ? slot : slotOf(from.inputs, from.outputs[slot].type);
    link = linkInto(from, through);
  }
  return null;
}

export function wiresOf(graph) {
  const wires = [];
  for (const to of nodesOf(graph).filter((node) => node.mode !== BYPASSED)) {
    (to.inputs ?? []).forEach((input, into) => {
      const from = origin(to, into);
      if (from) {
        wires.push({ from, to, into, type: input.type });
      }
    });
  }
  return wires;
}

/** Whether a node samples a model: it takes a model and a prompt, and gives latents, a picture or a guider to sample with. */
export function isSampling(node) {
  if (node.type.startsWith("Fewstep") && node.type !== "FewstepCompare") {
    return false;
  }
  const gives = (type) => slotOf(node.outputs, type) >= 0;
  const passesOn = gives("MODEL") && slotOf(node.inputs, "LATENT") < 0;
  return slotOf(node.inputs, "MODEL") >= 0 && promptsOf(node).positive >= 0 && !passesOn && !gives("LORA_MODEL")
    && (gives("LATENT") || gives("GUIDER") || gives("IMAGE"));
}

/** Numbers of the inputs that take the prompt and the negative prompt; a guider without the latter has the same for both. */
function promptsOf(node) {
  const find = (...names) => (node.inputs ?? []).findIndex((slot) => slot.type === "CONDITIONING" && names.includes(slot.name));
  const positive = find("positive", "conditioning", "cond1");
  const negative = find("negative");
  return { positive, negative: negative < 0 ? positive : negative };
}

/** [{ sampling, chain }]: the sampling nodes that an end feeds, through whatever patches models; the nearest first. */
export function fedBy(wires, end) {
  const found = [];
  const met = new Set([end.node]);
  const open = [[end]];
  while (open.length) {
    const chain = open.shift();
    const last = chain.at(-1);
    for (const { from, to, type } of wires) {
      if (from.node !== last.node || from.slot !== last.slot || type !== "MODEL" || met.has(to)) {
        continue;
      }
      met.add(to);
      const slot = slotOf(to.outputs, "MODEL");
      if (isSampling(to)) {
        found.push({ sampling: to, chain });
      } else if (slot >= 0) {
        open.push([...chain, { node: to, slot }]);
      }
    }
  }
  return found;
}

/** Of what `fedBy` found the one that starts from an empty latent, else the first; undefined where there is none. */
export function mainOf(wires, found) {
  return found.find(({ sampling }) => isEmptyLatent(latentOf(wires, sampling)?.node)) ?? found[0];
}

/** The chain from a loader to that output of a node: a merge's first model counts. */
export function chainTo(wires, end) {
  const chain = [end];
  for (;;) {
    const wire = wires.find(({ to, type }) => to === chain[0].node && type === "MODEL");
    if (!wire || chain.some(({ node }) => node === wire.from.node)) {
      return chain;
    }
    chain.unshift(wire.from);
  }
}

/** { end, leftOut }: where a chain is still a model to learn from, and the nodes after that. */
export function teacherOf(wires, chain) {
  const at = chain.findIndex(({ node }, i) => i && (isFewStep(wires, node) || guides(node)));
  return at < 0 ? { end: chain.at(-1), leftOut: [] } : { end: chain[at - 1], leftOut: chain.slice(at).map(({ node }) => node) };
}

const guides = (node) => GUIDES.test(node.type) && !LOADS.test(node.type);

function isFewStep(wires, node) {
  return node.type === LORA || wires.some(({ from, to, type }) =>
    to === node && type === "LORA_MODEL" && from.node.type.startsWith("Fewstep"));
}

/** { positive, negative, latent }: the ends that a sampling node is fed by. */
export function inputsOf(wires, sampling) {
  const { positive, negative } = promptsOf(sampling);
  return { positive: origin(sampling, positive), negative: origin(sampling, negative), latent: latentOf(wires, sampling) };
}

/** The nodes that sample with a guider. */
export function guidedBy(wires, guider) {
  return wires.filter(({ from, type }) => from.node === guider && type === "GUIDER").map(({ to }) => to);
}

function latentOf(wires, sampling) {
  const node = guidedBy(wires, sampling)[0] ?? sampling;
  return origin(node, slotOf(node.inputs, "LATENT"));
}

function isEmptyLatent(node) {
  return Boolean(node?.type.startsWith("Empty")) && slotOf(node.outputs, "LATENT") >= 0;
}

/** The graph's empty latent: the one that a sampling node starts from, even if over other passes, else any; null for none. */
export function emptyLatent(graph, wires, sampling) {
  const met = new Set();
  const open = sampling ? [...guidedBy(wires, sampling), sampling] : [];
  while (open.length) {
    const node = open.shift();
    if (isEmptyLatent(node)) {
      return { node, slot: slotOf(node.outputs, "LATENT") };
    }
    if (!met.has(node)) {
      met.add(node);
      open.push(...wires.filter(({ to, type }) => to === node && type === "LATENT").map(({ from }) => from.node));
    }
  }
  const node = nodesOf(graph).find(isEmptyLatent);
  return node ? { node, slot: slotOf(node.outputs, "LATENT") } : null;
}

/** An output of that type: of the node itself, else of any node; null for none. */
export function outputOf(graph, type, first) {
  const node = [first, ...nodesOf(graph)].find((one) => one && one.mode !== BYPASSED && slotOf(one.outputs, type) >= 0);
  return node ? { node, slot: slotOf(node.outputs, type) } : null;
}

/** The VAE that decodes what a sampling node gives, else the loader's, else any. */
export function vaeOf(graph, wires, sampling, loader) {
  const met = new Set();
  const open = sampling ? [sampling] : [];
  while (open.length) {
    const node = open.shift();
    const vae = node === sampling ? null : origin(node, slotOf(node.inputs, "VAE"));
    if (vae) {
      return vae;
    }
    if (!met.has(node)) {
      met.add(node);
      open.push(...wires.filter(({ from, type }) => from.node === node && ["LATENT", "GUIDER"].includes(type)).map(({ to }) => to));
    }
  }
  return outputOf(graph, "VAE", loader);
}

/** The nodes that a prompt's end comes from: those that encode text. */
export function encodersOf(wires, end) {
  const met = new Set();
  const open = end ? [end.node] : [];
  const found = [];
  while (open.length) {
    const node = open.shift();
    if (met.has(node)) {
      continue;
    }
    met.add(node);
    if (slotOf(node.inputs, "CLIP") >= 0) {
      found.push(node);
    } else {
      open.push(...wires.filter(({ to, type }) => to === node && type === "CONDITIONING").map(({ from }) => from.node));
    }
  }
  return found;
}

/** The node whose model the panel's button takes: a selected one, else the loader of the shown graph, else of a subgraph. */
export function sourceOfModel(app) {
  const shown = graphOf(app);
  const chosen = selectedIn(app).find((node) => slotOf(node.outputs, "MODEL") >= 0);
  if (chosen || !shown) {
    return chosen ?? null;
  }
  const graphs = [shown, app.graph, ...(app.graph?.subgraphs?.values() ?? [])];
  for (const graph of graphs) {
    const wires = wiresOf(graph);
    const loaders = nodesOf(graph).filter((node) => slotOf(node.outputs, "MODEL") >= 0 && node.mode !== BYPASSED
      && !wires.some(({ to, type }) => to === node && type === "MODEL"));
    const found = loaders.find((node) => fedBy(wires, { node, slot: slotOf(node.outputs, "MODEL") }).length) ?? loaders[0];
    if (found) {
      return found;
    }
  }
  return null;
}
