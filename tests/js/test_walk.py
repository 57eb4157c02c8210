"""The walker of the graph: past reroutes, bypassed and muted nodes and walls of nested subgraphs, up and
down.
"""

import pytest

from .graphs import BUILD
from .plots import node

MUTED, BYPASSED = {"mode": 2}, {"mode": 4}
VIRTUAL = {"isVirtualNode": True}
WALK = (
    BUILD
    + """
import * as walk from "./js/graph/walk.js";
const root = build(data.nodes, data.subgraphs);
const places = [root, ...root.subgraphs.values()];
const at = (id) => places.flatMap((graph) => graph.nodes).find((one) => one.id === id);
const into = (one, name) => one.inputs.findIndex((slot) => slot.name === name);
const way = (within = []) => within.map((one) => one.id).join("/");
const end = (one) => one && `${way(one.within)}:${one.node.id}.${one.slot}`;
const goal = (one) => `${way(one.within)}:${one.node.id}.${one.node.inputs[one.into].name}`;
const up = (id, name, options) => end(walk.origin(at(id), into(at(id), name), options));
const down = (id, slot, options) => walk.goalsOf(at(id), slot, options).map(goal);
const CROSS = { cross: true };
"""
)
LOAD = ["Load", {}, ["MODEL", "CLIP"]]


def model(source, slot=0):
    return {"model": ["MODEL", source, slot]}


def walk(tmp_path, script, nodes, subgraphs=None):
    return node(tmp_path, WALK + script, {"nodes": nodes, "subgraphs": subgraphs or {}})


# ---- one graph -------------------------------------------------------------------------------------


def reroute(source, **more):
    return ["Reroute", {"": ["*", source, 0]}, ["MODEL"], {**VIRTUAL, **more}]


def patch(source, **more):
    return ["Patch", model(source), ["MODEL"], more]


@pytest.mark.parametrize(
    "between, wanted",
    [
        ({"b": patch("a")}, "b"),
        ({"b": reroute("a")}, "a"),
        ({"b": patch("a", **BYPASSED)}, "a"),
        ({"b": patch("a", **MUTED)}, None),
        ({"b": reroute("a", **MUTED)}, None),
        ({"b": reroute("a", **BYPASSED)}, "a"),
        ({"b": reroute("c"), "c": patch("d", **BYPASSED), "d": reroute("a")}, "a"),
        ({"b": reroute("c"), "c": reroute("b")}, None),
        ({"b": ["Other", {"clip": ["CLIP", "a", 1]}, ["MODEL"], BYPASSED]}, None),
        ({"b": ["Get", {}, ["MODEL"], VIRTUAL]}, None),
    ],
    ids=[
        "patch",
        "reroute",
        "bypassed",
        "muted",
        "muted reroute",
        "bypassed reroute",
        "several",
        "a circle",
        "of another type",
        "without inputs",
    ],
)
@pytest.mark.parametrize("cross", ["false", "true"])
def test_both_ways_past_what_does_not_take_part(tmp_path, between, wanted, cross):
    nodes = {"a": LOAD, **between, "end": ["Sampler", model("b"), ["LATENT"]]}
    found = walk(
        tmp_path,
        f"""
      const options = {{ cross: {cross} }};
      answer([up("end", "model", options), {"down('a', 0, options)" if wanted == "a" else "[]"}]);""",
        nodes,
    )
    assert found == [wanted and f":{wanted}.0", [":end.model"] if wanted == "a" else []]


def test_a_bypassed_node_hands_on_what_lies_beside_the_output_else_the_first_of_its_type(tmp_path):
    two = {"one": ["MODEL", "a", 0], "two": ["MODEL", "b", 0], "clip": ["CLIP", "a", 1]}
    nodes = {
        "a": LOAD,
        "b": LOAD,
        "merge": ["Merge", two, ["MODEL", "MODEL", "MODEL", "CLIP"], BYPASSED],
        **{f"end{i}": ["Sampler", model("merge", i), []] for i in range(3)},
        "text": ["Text", {"clip": ["CLIP", "merge", 3]}, []],
    }
    found = walk(
        tmp_path,
        """answer({
      up: [up("end0", "model"), up("end1", "model"), up("end2", "model"), up("text", "clip")],
      down: [down("a", 0), down("b", 0), down("a", 1)],
      bypassed: down("a", 0, { bypassed: true }) });""",
        nodes,
    )
    assert found == {
        "up": [":a.0", ":b.0", ":a.0", ":a.1"],
        "bypassed": [":merge.one"],
        "down": [[":end0.model", ":end2.model"], [":end1.model"], [":text.clip"]],
    }


def test_a_primitive_is_an_end_only_where_it_is_asked_for(tmp_path):
    nodes = {
        "five": ["PrimitiveNode", {}, ["INT"], {**VIRTUAL, "widgets": {"value": 5}}],
        "word": ["PrimitiveNode", {}, ["STRING"], {**VIRTUAL, "widgets": {"value": "x"}}],
        "end": [
            "Steps",
            {"steps": ["INT", "five", 0], "most": ["INT", "word", 0]},
            [],
            {"widgets": {"steps": 20, "most": 30, "free": 40}},
        ],
    }
    found = walk(
        tmp_path,
        """answer([up("end", "steps"), up("end", "steps", { virtual: true }),
      ["steps", "most", "free", "none"].map((name) => walk.valueOf(at("end"), name) ?? null)]);""",
        nodes,
    )
    assert found == [None, ":five.0", [5, 30, 40, None]]


# ---- walls -----------------------------------------------------------------------------------------

# a loader feeds a node inside a subgraph inside a subgraph, and that one a sampler outside of both
NESTED = {
    "load": LOAD,
    "outer": ["A", {"model": ["MODEL", "load", 0]}, ["MODEL"], {"subgraph": "a"}],
    "end": ["Sampler", model("outer"), ["LATENT"]],
}
INNER = ["B", {"model": ["MODEL", "in", 0]}, ["MODEL"], {"subgraph": "b"}]
INSIDE = {
    "a": {"inputs": ["model"], "outputs": [["inner", 0]], "nodes": {"inner": INNER}},
    "b": {"inputs": ["model"], "outputs": [["patch", 0]], "nodes": {"patch": patch("in")}},
}


def test_without_crossing_a_wall_is_the_end_and_a_subgraph_hands_on_what_it_gets(tmp_path):
    found = walk(
        tmp_path,
        """answer([up("patch", "model"), up("inner", "model"), up("end", "model"),
      down("load", 0), down("patch", 0), down("outer", 0)]);""",
        NESTED,
        INSIDE,
    )
    assert found == [None, None, ":load.0", [":end.model"], [], [":end.model"]]


def test_out_of_nested_subgraphs_and_into_them(tmp_path):
    found = walk(
        tmp_path,
        """
      const [from] = [walk.origin(at("end"), 0, CROSS)];
      answer({ out: up("patch", "model", CROSS), into: end(from),
        round: end(walk.origin(from.node, 0, { cross: true, within: from.within })),
        forth: down("load", 0, CROSS), back: down("patch", 0, CROSS),
        on: down("patch", 0, { cross: true, within: [at("outer"), at("inner")] }) });""",
        NESTED,
        INSIDE,
    )
    assert found == {
        "out": ":load.0",
        "into": "outer/inner:patch.0",
        "round": ":load.0",
        "forth": ["outer/inner:patch.model"],
        "back": [":end.model"],
        "on": [":end.model"],
    }


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"b": {"nodes": {"patch": patch("in", **BYPASSED)}}}, ":load.0"),
        ({"b": {"nodes": {"patch": patch("in", **MUTED)}}}, None),
        ({"b": {"nodes": {"patch": reroute("in")}}}, ":load.0"),
        ({"b": {"outputs": [["in", 0]], "nodes": {}}}, ":load.0"),
        ({"a": {"nodes": {"inner": [*INNER[:3], {"subgraph": "b", **BYPASSED}]}}}, ":load.0"),
        ({"a": {"nodes": {"inner": [*INNER[:3], {"subgraph": "b", **MUTED}]}}}, None),
    ],
    ids=["bypassed", "muted", "reroute", "straight through", "bypassed subgraph", "muted subgraph"],
)
def test_what_does_not_take_part_in_a_subgraph(tmp_path, changes, wanted):
    subgraphs = {name: {**INSIDE[name], **changes.get(name, {})} for name in INSIDE}
    found = walk(tmp_path, 'answer([up("end", "model", CROSS), down("load", 0, CROSS)]);', NESTED, subgraphs)
    assert found == [wanted, [":end.model"] if wanted else []]


TWICE = {
    "load": LOAD,
    "other": LOAD,
    "first": ["A", {"model": ["MODEL", "load", 0]}, ["MODEL"], {"subgraph": "b"}],
    "second": ["A", {"model": ["MODEL", "other", 0]}, ["MODEL"], {"subgraph": "b"}],
    "end": ["Merge", {"one": ["MODEL", "first", 0], "two": ["MODEL", "second", 0]}, ["MODEL"]],
}


def test_a_subgraph_that_stands_twice_is_left_where_it_was_entered(tmp_path):
    found = walk(
        tmp_path,
        """
      const [one, two] = [0, 1].map((number) => walk.origin(at("end"), number, CROSS));
      const [goal2] = walk.goalsOf(at("other"), 0, CROSS);
      const on = ({ node, within }) => end(walk.origin(node, 0, { cross: true, within }));
      answer({ ends: [end(one), end(two)], origins: [on(one), on(two)], goal: goal(goal2),
        goals: walk.goalsOf(goal2.node, 0, { cross: true, within: goal2.within }).map(goal),
        unknown: up("patch", "model", CROSS) });""",
        TWICE,
        {"b": INSIDE["b"]},
    )
    assert found == {
        "ends": ["first:patch.0", "second:patch.0"],
        "origins": [":load.0", ":other.0"],
        "goal": "second:patch.model",
        "goals": [":end.two"],
        "unknown": ":load.0",
    }


def test_a_subgraph_behind_itself_is_walked_once_for_each_place(tmp_path):
    nodes = {
        "load": LOAD,
        "first": ["A", model("load"), ["MODEL"], {"subgraph": "b"}],
        "second": ["A", model("first"), ["MODEL"], {"subgraph": "b"}],
        "end": ["Merge", {"one": ["MODEL", "second", 0], "two": ["MODEL", "second", 0]}, ["MODEL"]],
    }
    found = walk(
        tmp_path,
        """
      const wires = walk.wiresOf(root, CROSS);
      const up2 = walk.origin(at("end"), 0, CROSS);
      const up1 = walk.origin(up2.node, 0, { cross: true, within: up2.within });
      answer({ up: [end(up2), end(up1), end(walk.origin(up1.node, 0, { cross: true, within: up1.within }))],
        down: walk.goalsOf(at("patch"), 0, CROSS).map(goal), wires: wires.length,
        chain: walk.chainTo(wires, up2).map(end) });""",
        nodes,
        {"b": INSIDE["b"]},
    )
    assert found == {
        "up": ["second:patch.0", "first:patch.0", ":load.0"],
        "down": ["second:patch.model"],
        "wires": 4,
        "chain": [":load.0", "first:patch.0", "second:patch.0"],
    }


def test_values_come_through_walls(tmp_path):
    nodes = {
        "five": ["PrimitiveInt", {}, ["INT"], {"widgets": {"value": 5}}],
        "outer": ["A", {"steps": ["INT", "five", 0]}, [], {"subgraph": "a"}],
    }
    steps = ["Steps", {"steps": ["INT", "in", 0]}, [], {"widgets": {"steps": 20}}]
    inner = {"a": {"inputs": ["steps"], "outputs": [], "nodes": {"steps": steps}}}
    assert walk(tmp_path, 'answer(walk.valueOf(at("steps"), "steps"));', nodes, inner) == 5


# ---- wires and what is made of them ----------------------------------------------------------------


def test_wires_of_one_graph_and_of_all(tmp_path):
    script = """
      const told = (wires) => wires.map(({ from, to, into, type, within }) =>
        `${end(from)} > ${way(within)}:${to.id}.${into} ${type}`);
      const wires = walk.wiresOf(root, CROSS);
      const goals = wires.every(({ from, to, into, within }) =>
        walk.goalsOf(from.node, from.slot, { cross: true, within: from.within })
          .some((one) => one.node === to && one.into === into && way(one.within) === way(within)));
      answer([told(walk.wiresOf(root)), told(wires), goals]);"""
    alone, crossing, agree = walk(tmp_path, script, TWICE, {"b": INSIDE["b"]})
    assert alone == [":load.0 > :end.0 MODEL", ":other.0 > :end.1 MODEL"]
    assert crossing == [
        ":load.0 > first:patch.0 MODEL",
        ":other.0 > second:patch.0 MODEL",
        "first:patch.0 > :end.0 MODEL",
        "second:patch.0 > :end.1 MODEL",
    ]
    assert agree


def test_readings_of_wires(tmp_path):
    nodes = {
        "load": LOAD,
        "lora": patch("load"),
        "text": ["Text", {"clip": ["CLIP", "load", 1]}, ["CONDITIONING"]],
        "muted": patch("lora", **MUTED),
        "merge": ["Merge", {"one": ["MODEL", "lora", 0], "two": ["MODEL", "load", 0]}, ["MODEL"]],
        "end": ["Sampler", {**model("merge"), "positive": ["CONDITIONING", "text", 0]}, ["LATENT"]],
        "next": ["Sampler", {**model("merge"), "latent": ["LATENT", "end", 0]}, ["LATENT"]],
    }
    script = """
      const wires = walk.wiresOf(root);
      const ids = (some) => some.map((one) => one.id);
      answer({ up: ids(walk.upstream(wires, [at("end")], ["MODEL"])),
        stopped: ids(walk.upstream(wires, [at("end")], ["MODEL"], ({ id }) => id === "merge")),
        all: ids(walk.upstream(wires, [at("next")], ["MODEL", "LATENT", "CONDITIONING", "CLIP"])),
        down: ids(walk.downstream(wires, [at("lora")], ["MODEL"])),
        chain: walk.chainTo(wires, { node: at("merge"), slot: 0 }).map(end),
        needs: ids(walk.dependants(at("lora"))) });"""
    assert walk(tmp_path, script, nodes) == {
        "up": ["end", "merge", "lora", "load"],
        "stopped": ["end", "merge"],
        "all": ["next", "merge", "end", "lora", "load", "text"],
        "down": ["lora", "merge", "end", "next"],
        "chain": [":load.0", ":lora.0", ":merge.0"],
        "needs": ["muted", "merge", "end", "next"],
    }


def test_where_a_node_lies(tmp_path):
    found = walk(
        tmp_path,
        """
      const path = (id) => walk.pathTo(root, at(id))?.map((one) => one.id);
      const lost = { id: "lost", graph: makeGraph("elsewhere") };
      answer({ paths: [path("load"), path("patch"), walk.pathTo(root, lost)],
        nodes: walk.nodesWithin(root).map((one) => one.id),
        graphs: walk.graphsOf(root).map((graph) => graph.id),
        loaded: [at("patch"), lost, { graph: null }].map(walk.isLoaded) });""",
        NESTED,
        INSIDE,
    )
    assert found == {
        "paths": [["load"], ["outer", "inner", "patch"], None],
        "graphs": ["root", "a", "b"],
        "nodes": ["load", "outer", "inner", "patch", "end"],
        "loaded": [True, True, False],
    }
