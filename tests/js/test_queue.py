"""Queueing parts of a graph, without a browser: what the host's widgets are worth afterwards."""

from fewstep.tests.js.plots import node

HOST = """
import { queueNodes } from "./js/graph/queue.js";

// a seed that the host draws anew at the widget's hook, one of a subgraph's node that it sets by itself
// right after, and a text
const control = { value: "randomize", afterQueued() { seed.value += 1; } };
const seed = { value: 1 };
const promoted = { value: 5 };
const text = { value: "a cat" };
const inner = { id: 2, widgets: [seed, control] };
const outer = { id: 1, widgets: [promoted], subgraph: { nodes: [inner] } };
const graph = { nodes: [outer, { id: 3, widgets: [text] }] };
graph.nodes[0].subgraph.nodes.forEach((one) => { one.graph = graph.nodes[0].subgraph; });
graph.nodes.forEach((one) => { one.graph = graph; });
const rest = () => new Promise((done) => setTimeout(done, 5));
const sent = [];
const app = {
  graph, processingQueue: false, meanwhile() {},
  async queuePrompt(number, count, ids) {
    if (app.processingQueue) return false;
    app.processingQueue = true;
    sent.push(ids);
    await rest();
    app.meanwhile();
    control.afterQueued();
    promoted.value += 1;
    await rest();
    app.later?.();
    app.processingQueue = false;
    return true;
  },
};
const values = () => [seed.value, promoted.value, text.value];
"""


def queue(tmp_path, script):
    return node(tmp_path, HOST + script, None)


def test_seeds_that_the_host_draws_are_put_back(tmp_path):
    found = queue(
        tmp_path,
        """
      const hook = control.afterQueued;
      await queueNodes(app, [inner]);
      answer([sent, values(), control.afterQueued === hook]);""",
    )
    assert found == [[["1:2"]], [1, 5, "a cat"], True]


def test_what_the_user_types_meanwhile_stays(tmp_path):
    found = queue(
        tmp_path,
        """
      app.meanwhile = () => { text.value = "a dog"; };
      app.later = () => { seed.value = 77; };
      await queueNodes(app, [inner]);
      answer(values());""",
    )
    assert found == [77, 5, "a dog"]


def test_what_the_user_types_before_the_host_draws_stays(tmp_path):
    found = queue(
        tmp_path,
        """
      app.meanwhile = () => { seed.value = 40; };
      await queueNodes(app, [inner]);
      answer(values());""",
    )
    assert found == [40, 5, "a cat"]


def test_it_waits_for_what_the_host_is_queueing_just_now(tmp_path):
    found = queue(
        tmp_path,
        """
      const first = app.queuePrompt(0, 1);
      await queueNodes(app, [graph.nodes[1]]);
      await first;
      answer([sent, values()]);""",
    )
    assert found == [[None, ["3"]], [2, 6, "a cat"]]


def test_a_refusal_is_told_and_seeds_are_put_back(tmp_path):
    found = queue(
        tmp_path,
        """
      const plain = app.queuePrompt;
      app.queuePrompt = async (...all) => { await plain(...all); return false; };
      const error = await queueNodes(app, [inner]).catch((one) => one.message);
      answer([error, values()]);""",
    )
    assert found == ["graph.notQueued", [1, 5, "a cat"]]
