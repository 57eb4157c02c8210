"""Graphs of bare nodes, as the frontend's own look to the scripts.

    {id: [type, {input: [slot type, id, slot] or [slot type]}, [output types], {more} or nothing]}

`more` are properties of the node (mode, isVirtualNode), `widgets` {name: value}, and `subgraph`, the name of
one in

    {name: {"inputs": [input names], "outputs": [[id, slot], ...], "nodes": the same}}

in whose wires the id "in" is the wall of the subgraph, and the slot the number of the input.
"""

BUILD = """
function build(nodes, subgraphs = {}) {
  const root = makeGraph("root");
  root.subgraphs = new Map(Object.keys(subgraphs).map((name) => [name, makeGraph(name, root)]));
  for (const [name, { inputs, outputs, nodes: inner }] of Object.entries(subgraphs)) {
    const graph = root.subgraphs.get(name);
    graph.inputs = inputs.map((one) => ({ name: one, linkIds: [] }));
    fill(graph, inner, root);
    graph.outputs = outputs.map(([from, slot], i) => ({ linkIds: [wired(graph, from, slot, -20, i)] }));
  }
  fill(root, nodes, root);
  return root;
}

function makeGraph(id, root) {
  const graph = { id, nodes: [], links: new Map() };
  graph.rootGraph = root ?? graph;
  graph.getNodeById = (one) => graph.nodes.find((node) => node.id === one) ?? null;
  return graph;
}

function fill(graph, nodes, root) {
  for (const [id, [type, inputs, outputs, { widgets, subgraph, ...more } = {}]] of Object.entries(nodes)) {
    graph.nodes.push({
      id, type, graph, mode: 0, ...more,
      inputs: Object.entries(inputs).map(([name, [kind]]) => ({ name, type: kind, link: null })),
      outputs: outputs.map((one) => ({ type: one, name: one, links: [] })),
      widgets: widgets && Object.entries(widgets).map(([name, value]) => ({ name, value })),
      ...(subgraph ? { subgraph: root.subgraphs.get(subgraph), isVirtualNode: true } : {}),
    });
  }
  for (const node of graph.nodes) {
    Object.values(nodes[node.id][1]).forEach(([, from, slot], into) => {
      node.inputs[into].link = from === undefined ? null : wired(graph, from, slot, node.id, into);
    });
  }
}

function wired(graph, from, slot, to, into) {
  const id = graph.links.size + 1;
  const [inwards, outwards] = [from === "in", to === -20];
  graph.links.set(id, { origin_id: inwards ? -10 : from, origin_slot: slot, target_id: to, target_slot: into,
    originIsIoNode: inwards, targetIsIoNode: outwards });
  (inwards ? graph.inputs[slot].linkIds : graph.getNodeById(from).outputs[slot].links).push(id);
  return id;
}
"""
