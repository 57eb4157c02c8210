"""What the panel keeps and says, without a browser: runs and curves from snapshots and events, numbers in
words.
"""

import json
from pathlib import Path

import pytest
from fewstep.tests.js.plots import node

LOCALES = Path(__file__).parent.parent.parent / "locales"
STORE = """
import { makeStore } from "./js/panel/store.js";
import { ask } from "./js/panel/routes.js";
import { loadText } from "./js/text.js";

const listeners = {};
const answers = {};                 // path -> a value, or {error}; a promise holds the answer back
const api = {
  addEventListener: (name, listener) => { listeners[name] = listener; },
  fetchApi: async (path) => {
    if (path === "/i18n") return { json: async () => data.texts };
    const value = await answers[path];
    if (value === undefined) throw new TypeError("no server");
    return { ok: !value.error, json: async () => value };
  },
};
const event = (run, loss = [], fidelity = []) =>
  listeners["fewstep.run"]({ detail: { run, loss, fidelity } });
const run = (id, started_at, state = "finished") => ({ id, started_at, state });
const rest = () => new Promise((done) => setTimeout(done, 5));
const ids = () => store.runs.map((run) => run.id);
const store = makeStore(api);
await loadText(api, "en");
store.watch(() => {});
"""


def texts():
    return {
        lang: json.loads((LOCALES / lang / "main.json").read_text(encoding="utf-8")) for lang in ("en", "zh")
    }


def panel(tmp_path, script):
    return node(tmp_path, STORE + script, {"texts": texts()})


def test_a_run_that_another_page_deleted_goes(tmp_path):
    found = panel(
        tmp_path,
        """
      answers["/fewstep/runs"] = { runs: [run("b", 2), run("a", 1)] };
      await store.load();
      listeners["fewstep.gone"]({ detail: { id: "b" } });
      await rest();
      answer({ left: ids(), selected: store.selected });""",
    )
    assert found == {"left": ["a"], "selected": "a"}


def test_events_that_overtake_the_snapshot_are_put_on_top_of_it(tmp_path):
    found = panel(
        tmp_path,
        """
      let send;
      answers["/fewstep/runs"] = new Promise((done) => { send = done; });
      const loading = store.load();
      event(run("c", 3, "running"));
      event({ ...run("b", 2), state: "stopped" });
      send({ runs: [run("b", 2, "running"), run("a", 1)] });
      await loading;
      const states = store.runs.map((run) => run.state);
      answer({ ids: ids(), states, selected: store.selected, loaded: store.loaded });""",
    )
    assert found == {
        "ids": ["c", "b", "a"],
        "states": ["running", "stopped", "finished"],
        "selected": "c",
        "loaded": True,
    }


def test_points_that_overtake_the_curves_are_put_on_top_of_them(tmp_path):
    found = panel(
        tmp_path,
        """
      let send;
      answers["/fewstep/runs"] = { runs: [run("a", 1, "running")] };
      answers["/fewstep/runs/a/curves"] = new Promise((done) => { send = done; });
      await store.load();
      event(run("a", 1, "running"), [[3, 0.3], [4, 0.4]], [[4, 1]]);
      event(run("other", 0), [[9, 9]]);
      send({ loss: [[1, 0.1], [2, 0.2], [3, 0.3]], fidelity: [[0, 2]] });
      await rest();
      event(run("a", 1, "running"), [[5, 0.5]]);
      answer([store.loss, store.fidelity].map((curve) => [...curve.updates.slice(0, curve.length)]));""",
    )
    assert found == [[1, 2, 3, 4, 5], [0, 4]]


def test_a_chosen_run_stays_until_one_begins_that_was_asked_for(tmp_path):
    found = panel(
        tmp_path,
        """
      const seen = [];
      answers["/fewstep/runs"] = { runs: [run("b", 2), run("a", 1)] };
      await store.load();
      seen.push(store.selected);
      event(run("c", 3, "running"));          // nothing was chosen: what lives is shown
      seen.push(store.selected);
      store.choose("a");
      event(run("d", 4, "running"));
      seen.push(store.selected);
      store.expect(true);
      event(run("e", 5, "sampling"));
      seen.push(store.selected, store.expected);
      answer(seen);""",
    )
    assert found == ["b", "c", "a", "e", False]


def test_a_deleted_run_gives_way_to_its_neighbour(tmp_path):
    found = panel(
        tmp_path,
        """
      answers["/fewstep/runs"] = { runs: [run("c", 3), run("b", 2), run("a", 1)] };
      await store.load();
      const seen = [];
      store.choose("b");
      for (const id of ["b", "c", "a", "unknown"]) { store.drop(id); seen.push(store.selected); }
      answer(seen);""",
    )
    assert found == ["a", "a", None, None]


def test_errors_are_said_in_words(tmp_path):
    found = panel(
        tmp_path,
        """
      const said = async (value) => {
        answers["/fewstep/x"] = value;
        return ask(api, "x").catch((error) => error.message);
      };
      await store.load();
      answer([await said({ error: { code: "not-running", message: "?" } }),
        await said({ error: { code: "new", message: "Said so." } }), await said(undefined),
        store.problem]);""",
    )
    assert found == [
        "This run is not running.",
        "Said so.",
        "The server does not answer.",
        "The server does not answer.",
    ]


@pytest.mark.parametrize(
    "language, wanted",
    [
        (
            "en",
            [
                "",
                "less than a minute left",
                "1 min left",
                "12 min left",
                "1 h 0 min left",
                "3 h 20 min left",
                "1 d 2 h left",
            ],
        ),
        (
            "zh",
            [
                "",
                "剩余不到 1 分钟",
                "剩余 1 分钟",
                "剩余 12 分钟",
                "剩余 1 小时 0 分钟",
                "剩余 3 小时 20 分钟",
                "剩余 1 天 2 小时",
            ],
        ),
    ],
)
def test_time_left(tmp_path, language, wanted):
    found = panel(
        tmp_path,
        f"""
      const {{ timeLeft }} = await import("./js/panel/format.js");
      await loadText(api, "{language}");
      answer([null, 42, 61, 743, 3599, 12000, 93600].map(timeLeft));""",
    )
    assert found == wanted


def test_numbers_and_names(tmp_path):
    found = panel(
        tmp_path,
        """
      const { about, memory, short, whole } = await import("./js/panel/format.js");
      answer({
        memory: [null, 2 ** 28, 8.24 * 2 ** 30, 141 * 2 ** 30].map(memory),
        short: [null, 0, 0.031249, 7.1, 239.6, 0.0000251, -0.5, 3e7].map(short),
        whole: [null, 0, 120000].map(whole),
        about: [{ method: "phased", steps: 4, model: "a.b.safetensors" },
          { method: "new one", steps: 1, model: null }].map(about),
      });""",
    )
    assert found == {
        "memory": ["–", "0.25 GiB", "8.2 GiB", "141 GiB"],
        "short": ["–", "0", "0.0312", "7.1", "240", "2.5e-5", "-0.5", "3e7"],
        "whole": ["–", "0", "120,000"],
        "about": ["phased · 4 steps · a.b", "new one · 1 step"],
    }


SAMPLE = """
import { samplingGraph } from "./js/graph/ownprompt.js";
const link = (slot) => ["1", slot];
const inputs = { model: link(0), positive: link(1), negative: link(1), latent: link(2), vae: link(3) };
const promptOf = (more) => ({ 1: { inputs: {} }, 9: { inputs: { ...inputs, ...more } } });
const graphOf = (more) => samplingGraph({ node: "9", prompt: promptOf(more) }, "a.safetensors", "", 1);
answer(data.map((more) => graphOf(more) !== null));
"""


def test_a_lora_for_a_part_of_the_way_is_not_sampled_alone(tmp_path):
    parts = [{}, {"from_percent": 0.0, "to_percent": 1.0}, {"from_percent": 0.5}, {"to_percent": 0.5}]
    assert node(tmp_path, SAMPLE, [*parts, {"from_percent": ["4", 0]}]) == [True, True, False, False, False]


def test_a_run_that_is_judged_by_distribution_claims_nothing_before_something_is_kept(tmp_path):
    """Paused while another adapter learns it has one measurement, the untrained model's: neither gain nor
    loss. Overlapping intervals tell nothing apart.
    """
    found = panel(
        tmp_path,
        """
      const { gained, judged, wordsOf } = await import("./js/panel/format.js");
      const of = (kept, ...distance) => ({ method: "matching", judged_by: "distance", kept, distance });
      const first = [0, 0.3, 0.2, 0.4];
      const paused = of(null, first);
      const nearer = of(9, first, [9, 0.05, 0.01, 0.1]);
      const alike = of(9, first, [9, 0.2, 0.1, 0.3]);
      const values = { start: "the LoRA", best: "0.05", before: "0.3", update: "9", percent: null };
      answer({
        judged: [paused, nearer, alike].map(judged),
        gained: [paused, nearer, alike, of(9, first, [9, 0.5, 0.45, 0.6])].map(gained),
        words: ["gain", "none", "alike"].map((key) => wordsOf(nearer, key, values)),
      });""",
    )
    assert found["judged"] == [
        {"best": None, "before": 0.3, "apart": False},
        {"best": 0.05, "before": 0.3, "apart": True},
        {"best": 0.2, "before": 0.3, "apart": False},
    ]
    assert found["gained"] == [True, True, True, False]
    assert all("distribution" in text and "%" not in text for text in found["words"])
    assert all("with the LoRA" in text and "{" not in text for text in found["words"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_how_far_the_two_scores_are_apart_is_among_the_facts_of_a_matching_run_alone(tmp_path, language):
    found = panel(
        tmp_path,
        f"""
      const {{ FACTS }} = await import("./js/panel/details.js");
      const {{ t }} = await import("./js/text.js");
      await loadText(api, "{language}");
      const names = ["gap", "cosine"];
      const shown = (run) => names.map((name) => FACTS[name](run));
      answer({{
        matching: shown({{ gap: 0.314, cosine: 0.9551 }}),
        phased: shown({{ gap: null, cosine: null }}),
        untold: names.flatMap((name) => ["facts", "hints"].map((of) => `panel.${{of}}.${{name}}`))
          .filter((key) => t(key) === key),
      }});""",
    )
    assert found == {"matching": ["31 %", "0.96"], "phased": ["", ""], "untold": []}
