"""What is read from a queued graph: which sampler is meant, what it gets, and whether that suits."""

import json

import pytest
from fewstep.training.formats import prompts

from .graphs import BUILD
from .plots import node

READ = (
    BUILD
    + """
import { bareModel, isBareModel } from "./js/graph/bare.js";
import { calculate } from "./js/graph/calculate.js";
import { promptsOf } from "./js/graph/prompts.js";
import { readQueued, sourceOf, worthOf } from "./js/graph/queued.js";
import { readGraph } from "./js/graph/reading.js";
import { fewStepReason, isLeftOut, refusalOf } from "./js/graph/suits.js";
const graph = data.nodes ? build(data.nodes) : null;
const at = (id) => graph.nodes.find((one) => String(one.id) === id);
const select = (...ids) => ({ graph, selectedItems: new Set(ids.map(at)) });
const app = { graph, canvas: graph && select(), graphToPrompt: async () => ({ output: data.prompt }) };
const api = { fetchApi: async () => ({ ok: false }) };
"""
)
LOADER = {"load": ("UNETLoader", {"unet_name": "plain.safetensors"}, ["MODEL", "CLIP", "VAE"])}
TEXT = {
    "yes": ("CLIPTextEncode", {"clip": ("CLIP", "load", 1), "text": "a cat"}, ["CONDITIONING"]),
    "no": ("CLIPTextEncode", {"clip": ("CLIP", "load", 1), "text": "blurry"}, ["CONDITIONING"]),
    "empty": ("EmptyLatentImage", {"width": 512}, ["LATENT"]),
}


def sampler(model="load", latent="empty", positive=("yes", 0), negative=("no", 0), **values):
    inputs = {
        "model": ("MODEL", model, 0),
        "positive": ("CONDITIONING", *positive),
        "negative": ("CONDITIONING", *negative),
        "latent_image": ("LATENT", latent, 0),
        "steps": 20,
        "cfg": 4.5,
        **values,
    }
    return ("KSampler", inputs, ["LATENT"])


def decode(samples, kind="IMAGE"):
    return ("VAEDecode", {"samples": ("LATENT", samples, 0), "vae": ("VAE", "load", 2)}, [kind])


def read(tmp_path, script, parts):
    """Runs the script on a graph {id: (type, {input: (slot type, id, slot) or a value}, [output types])}."""
    nodes, prompt = {}, {}
    for i, (kind, inputs, outputs) in parts.items():
        wires = {n: list(v) for n, v in inputs.items() if isinstance(v, tuple)}
        values = {n: v for n, v in inputs.items() if not isinstance(v, tuple)}
        nodes[i] = [kind, wires, outputs, {"widgets": values, "title": i}]
        prompt[i] = {"class_type": kind, "inputs": {**values, **{n: v[1:] for n, v in wires.items()}}}
    return node(tmp_path, READ + script, {"nodes": nodes, "prompt": prompt})


def test_all_that_a_sampler_gets(tmp_path):
    parts = {**LOADER, **TEXT, "k": sampler(), "d": decode("k")}
    script = """
const reading = await readGraph(app);
const { sampler, chain, positive, negative, latent, vae, cfg, steps, becomes, plain, stages } = reading;
answer({ sampler, chain, positive, negative, latent, vae, cfg, steps, becomes, plain, stages });
"""
    assert read(tmp_path, script, parts) == {
        "sampler": "k",
        "chain": [{"id": "load", "slot": 0}],
        "positive": {"id": "yes", "slot": 0},
        "negative": {"id": "no", "slot": 0},
        "latent": {"id": "empty", "slot": 0},
        "vae": {"id": "load", "slot": 2},
        "cfg": 4.5,
        "steps": 20,
        "becomes": ["IMAGE"],
        "plain": True,
        "stages": [],
    }


UPSCALED = ("LatentUpscale", {"samples": ("LATENT", "k", 0)}, ["LATENT"])
AGAIN = ("VAEEncode", {"pixels": ("IMAGE", "d", 0)}, ["LATENT"])
DETAILS = {
    "image": ("IMAGE", "d", 0),
    "model": ("MODEL", "load", 0),
    "positive": ("CONDITIONING", "yes", 0),
    "negative": ("CONDITIONING", "no", 0),
    "steps": 20,
    "cfg": 7,
}


@pytest.mark.parametrize(
    ("more", "selected", "wanted"),
    [
        (
            {
                "k2": sampler(latent="up"),
                "up": ("LatentUpscale", {"samples": ("LATENT", "k", 0)}, ["LATENT"]),
            },
            [],
            "k",
        ),
        ({"k2": sampler(latent="k")}, ["k2"], "k2"),
        ({"face": ("FaceDetailer", DETAILS, ["IMAGE"])}, [], "k"),
        ({"k2": sampler(latent="e"), "e": AGAIN}, [], "k"),
        ({"a": sampler(), "sound": decode("a", "AUDIO")}, [], "k"),
    ],
    ids=["a second pass", "the selected one", "details", "a pass over the picture", "sound"],
)
def test_the_sampler_that_is_meant(tmp_path, more, selected, wanted):
    parts = {**LOADER, **TEXT, **more, "k": sampler(), "d": decode("k")}
    script = f"app.canvas = select(...{selected}); answer((await readGraph(app)).sampler);"
    assert read(tmp_path, script, parts) == wanted


@pytest.mark.parametrize(
    ("switch", "wanted"),
    [
        ({"switch": True, "on_true": ("STRING", "a", 0), "on_false": ("STRING", "b", 0)}, "one"),
        ({"switch": False, "on_true": ("STRING", "a", 0), "on_false": ("STRING", "b", 0)}, "two"),
        ({"select": 2, "input1": ("STRING", "a", 0), "input2": ("STRING", "b", 0)}, "two"),
        ({"any_01": ("STRING", "b", 0), "any_02": ("STRING", "a", 0)}, "two"),
        ({"switch": ("BOOLEAN", "flag", 0), "on_true": "own", "on_false": ("STRING", "b", 0)}, "own"),
    ],
)
def test_switches_hand_on_what_they_are_set_to(tmp_path, switch, wanted):
    parts = {
        "a": ("PrimitiveString", {"value": "one"}, ["STRING"]),
        "b": ("PrimitiveString", {"value": "two"}, ["STRING"]),
        "flag": ("PrimitiveBoolean", {"value": True}, ["BOOLEAN"]),
        "s": ("Switch", switch, ["*"]),
        "end": ("Show", {"text": ("STRING", "s", 0)}, []),
    }
    assert read(tmp_path, 'answer(worthOf(await readQueued(app), "end", "text"));', parts) == wanted


def test_the_negative_is_not_among_the_prompts_where_a_node_passes_both_on(tmp_path):
    both = {"positive": ("CONDITIONING", "yes", 0), "negative": ("CONDITIONING", "no", 0), "frame_rate": 24}
    parts = {
        **LOADER,
        **TEXT,
        "both": ("LTXVConditioning", both, ["CONDITIONING", "CONDITIONING"]),
        "k": sampler(positive=("both", 0), negative=("both", 1)),
        "d": decode("k"),
    }
    script = """
const reading = await readGraph(app);
const { text, whole, way, pictures } = promptsOf(reading);
answer({ text, whole, way, pictures, negative: reading.negative });
"""
    assert read(tmp_path, script, parts) == {
        "text": "a cat",
        "whole": True,
        "way": ["both"],
        "pictures": False,
        "negative": {"id": "both", "slot": 1},
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"text": "a cat"}, ["a cat", True]),
        ({"clip_l": "a cat", "t5xxl": "a cat ", "guidance": 3.5}, ["a cat", True]),
        ({"clip_l": "cat", "t5xxl": "a cat in the sun", "guidance": 3.5}, ["", False]),
        ({"text_g": "a cat", "text_l": "a cat", "width": 4096}, ["", False]),
        ({"text": ("STRING", "llm", 0)}, ["", False]),
        ({"text": ("STRING", "typed", 0)}, ["a dog", True]),
        ({"text": ("STRING", "constant", 0)}, ["a cow", True]),
        ({"text": ("STRING", "file", 0)}, ["", False]),
        ({"text": "two\nlines"}, ["two\nlines\n---", True]),
    ],
)
def test_a_list_of_prompts_stands_for_no_more_than_one_text(tmp_path, given, wanted):
    parts = {
        **LOADER,
        **TEXT,
        "llm": ("TextGenerate", {"prompt": "write", "clip": ("CLIP", "load", 1)}, ["STRING"]),
        "typed": ("PrimitiveString", {"value": "a dog"}, ["STRING"]),
        "constant": ("String Literal", {"text": "a cow"}, ["STRING"]),
        "file": ("LoadTextFile", {"file": "prompts.txt"}, ["STRING"]),
        "yes": ("CLIPTextEncodeAny", {"clip": ("CLIP", "load", 1), **given}, ["CONDITIONING"]),
        "k": sampler(),
        "d": decode("k"),
    }
    script = "const { text, whole } = promptsOf(await readGraph(app)); answer([text, whole]);"
    assert read(tmp_path, script, parts) == wanted


LORA = {"model": ("MODEL", "load", 0), "strength_model": 1.0}


@pytest.mark.parametrize(
    ("more", "settings", "wanted"),
    [
        ({}, {}, None),
        ({}, {"steps": 4, "cfg": 1}, "graph.fewSteps"),
        ({}, {"steps": 4, "cfg": 5}, None),
        ({}, {"steps": 20, "cfg": 1}, None),
        ({"l": {**LORA, "lora_name": "Qwen-Lightning-8steps.safetensors"}}, {}, "graph.fewLora"),
        ({"l": {**LORA, "lora_name": "lcm_sd15.safetensors", "strength_model": 0}}, {}, None),
        ({"l": {**LORA, "lora_name": "lightning_bolt_style/ink.safetensors"}}, {}, None),
        ({"load": {"unet_name": "flux1-schnell.safetensors"}}, {}, "graph.fewName"),
        ({"load": {"unet_name": "flux-2-klein-base-4b.safetensors"}}, {"cfg": 5}, None),
    ],
)
def test_few_step_already(tmp_path, more, settings, wanted):
    parts = {
        **LOADER,
        **TEXT,
        "k": sampler(model="l" if "l" in more else "load", **settings),
        "d": decode("k"),
    }
    if "l" in more:
        parts["l"] = ("LoraLoaderModelOnly", more["l"], ["MODEL"])
    if "load" in more:
        parts["load"] = ("UNETLoader", more["load"], ["MODEL", "CLIP", "VAE"])
    found = read(tmp_path, "answer(await fewStepReason(app, api, await readGraph(app)));", parts)
    assert found == wanted


CONTROLLED = ("Apply", {"control_net": ("CONTROL_NET", "load", 1)}, ["CONDITIONING"])
FIXED = ("Fixed", {}, ["CONDITIONING"])


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"d": decode("k")}, None),
        ({"d": decode("k", "AUDIO")}, "graph.made"),
        ({"d": decode("k"), "s": decode("k", "AUDIO")}, "graph.madeBeside"),
        ({"d": decode("k", "VOXEL")}, "graph.made"),
        ({"d": decode("k"), "yes": CONTROLLED}, "graph.steered"),
        ({"d": decode("k"), "yes": FIXED, "no": FIXED}, "graph.noPrompt"),
    ],
)
def test_what_can_not_be_made_few_step_is_told_by_what_it_becomes(tmp_path, more, wanted):
    parts = {**LOADER, **TEXT, "k": sampler(), **more}
    assert read(tmp_path, "answer(refusalOf(await readGraph(app)));", parts) == wanted


def test_sums_of_plain_numbers(tmp_path):
    script = "answer(data.map(([text, values]) => calculate(text, values) ?? null));"
    sums = [
        ("a", {"a": 20}, 20),
        ("(a // 32) * 32", {"a": 100}, 96),
        ("max(5, round(a * 24)) - -1", {"a": 2}, 49),
        ("1 + 2 * 3 % 4", {}, 3),
        ("a.constructor", {"a": 1}, None),
        ("a +", {"a": 1}, None),
        ("b", {"a": 1}, None),
        ("constructor(1)", {}, None),
        ("1 / 0", {}, None),
    ]
    found = node(
        tmp_path, "import { calculate } from './js/graph/calculate.js';" + script, [s[:2] for s in sums]
    )
    assert found == [s[2] for s in sums]


def test_halves_are_rounded_as_the_host_rounds_them(tmp_path):
    sums = ["round(5/2)", "round(7/2)", "round(0-5/2)", "round(12.4)", "round(2.675, 1)"]
    found = read(tmp_path, f"answer({json.dumps(sums)}.map((text) => calculate(text, {{}})));", {})
    assert found == [2, 4, -2, 12, 2.7]


@pytest.mark.parametrize(
    "text", ["#cozy cabin, snow", "a cat\n# black\n---\nat night", "\\# said", "plain", "----"]
)
def test_no_prompt_is_lost_as_a_comment(tmp_path, text):
    parts = {**LOADER, **TEXT, "k": sampler(), "d": decode("k")}
    parts["yes"] = ("CLIPTextEncode", {**TEXT["yes"][1], "text": text}, ["CONDITIONING"])
    found = read(tmp_path, "answer(promptsOf(await readGraph(app)).text);", parts)
    assert prompts.typed(found) == [text]


PATCHED = {
    **LOADER,
    **TEXT,
    "scale": ("RescaleCFG", {"model": ("MODEL", "load", 0), "multiplier": 0.7}, ["MODEL"]),
    "style": ("LoraLoaderModelOnly", {"model": ("MODEL", "scale", 0), "strength": 0.8}, ["MODEL"]),
    "k": sampler(model="style"),
    "d": decode("k"),
    "copy": ("LoraLoaderModelOnly", {"model": ("MODEL", "load", 0), "strength": 0.8}, ["MODEL"]),
    "distil": ("FewstepDistil", {"model": ("MODEL", "copy", 0)}, []),
}


@pytest.mark.parametrize(
    "strength, of, wanted", [(0.8, "style", True), (0.5, "style", False), (0.8, "", False)]
)
def test_a_copy_of_a_patch_stands_for_it_as_long_as_it_is_alike(tmp_path, strength, of, wanted):
    parts = {**PATCHED, "copy": (PATCHED["copy"][0], {**PATCHED["copy"][1], "strength": strength}, ["MODEL"])}
    script = f"""
    at("copy").properties = {{ fewstep_copy_of: {json.dumps(of)} }};
    const reading = await readGraph(app, at("style"));
    answer(isBareModel(reading.queued, reading, bareModel(reading), {{ id: "copy", slot: 0 }}));"""
    assert read(tmp_path, script, parts) is wanted
