"""Where prompts come from: text, files, the metadata of pictures (written as ComfyUI and A1111 write it), and
the bundled list.
"""

import json
import os
import random
import re
import struct
import time
import tracemalloc
import zlib

import pytest
from fewstep.training.formats import graph_texts, prompts
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def encoder(text):
    return node("CLIPTextEncode", text=text, clip=["4", 1])


def classic(positive="a red fox", negative="blurry", **others):
    """The graph of ComfyUI's default workflow."""
    return {
        "3": node(
            "KSampler",
            seed=1,
            steps=20,
            cfg=8.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="text.safetensors"),
        "6": encoder(positive),
        "7": encoder(negative),
        "9": node("SaveImage", images=["8", 0], text=["3", 0]),
        **others,
    }


def picture(path, graph=None, size=(64, 48), age=0, compressed=False, **texts):
    """A PNG as ComfyUI's SaveImage writes it, `age` seconds old; Pillow makes texts beyond Latin-1 iTXt
    chunks.
    """
    info = PngInfo()
    for key, text in (
        {"prompt": json.dumps(graph), "workflow": "[" + "0, " * 9000} if graph else {}
    ).items() | texts.items():
        info.add_text(key, text, zip=compressed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, pnginfo=info, compress_level=4)
    os.utime(path, (1_700_000_000 - age,) * 2)


def webp(path, graph):
    """A WebP as ComfyUI's helper for animations writes it, with a chunk that nobody knows."""
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(graph)}", "workflow:{}"
    Image.new("RGB", (40, 24)).save(path, exif=exif)
    data = path.read_bytes().replace(b"EXIF", b"ODD \3\0\0\0odd\0EXIF", 1)
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])


def chunk(kind, data, length=None):
    return (
        struct.pack(">I4s", len(data) if length is None else length, kind)
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def raw_png(*chunks, **texts):
    texts = [chunk(b"tEXt", key.encode() + b"\0" + text.encode()) for key, text in texts.items()]
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II5B", 8, 8, 8, 2, 0, 0, 0))
    return head + b"".join([*texts, *chunks, chunk(b"IDAT", b"pixels")])


def sides(graph):
    return prompts.of_graph(json.loads(json.dumps(graph)))


def test_typed_prompts_are_lines_or_between_lines_of_dashes():
    assert prompts.typed("  a cat \r\n\n# no\n  # nor this\na dog\na cat\n") == ["a cat", "a dog"]
    assert prompts.typed(" \n#x\n") == [] == prompts.typed("")
    assert prompts.typed("---\na cat,\n# its colour\nblack\n\n ----- \r\na dog\n---\n---\na dog") == [
        "a cat,\n\nblack",
        "a dog",
    ]
    assert prompts.typed("a--- b\n-- c\n") == ["a--- b", "-- c"]


@pytest.mark.parametrize(
    "texts",
    [
        ["a cat", "two\nlines"],
        [
            "#cozy cabin, snow",
            "  #a".strip(),
            "a\n# b\n --- \nc",
            "\\#a",
            "\\\\---",
            "---- and more",
            "-----",
        ],
        ["one"],
        [],
    ],
)
def test_prompts_go_into_a_text_and_come_back(texts):
    assert prompts.typed(prompts.as_text(texts)) == list(dict.fromkeys(texts))


def test_files_of_text_and_json(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffein Häuschen\n#\na dog".encode())
    (tmp_path / "b.json").write_text(json.dumps(["# one\ntwo", " ", "x", "x"]))
    assert prompts.from_file(tmp_path / "a.TXT") == ["ein Häuschen", "a dog"]
    assert prompts.from_file(str(tmp_path / "b.json")) == ["# one\ntwo", "x"]


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("a.pkl", b"", "must be a .txt with one prompt a line or a .json with a list of texts, got 'a.pkl'"),
        ("a.json", b'[1, "x"]', "must hold a list of texts, 'a.json' holds '1'"),
        ("a.json", b'{"a": "b"}', "must hold a list of texts, 'a.json' holds .*a prompt"),
        ("a.json", b"[" * 100_000, "must be readable UTF-8 text or JSON, 'a.json' gave"),
        ("a.txt", b"\xff\xfe\xfa", "must be readable UTF-8 text or JSON, 'a.txt' gave"),
    ],
)
def test_other_files_are_refused(name, data, why, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"file {why}"):
        prompts.from_file(tmp_path / name)


def test_the_bundled_list_is_long_and_varied_from_its_start():
    listed = prompts.bundled()
    assert (
        len(listed) >= 200 and len({p.lower() for p in listed}) == len(listed) and max(map(len, listed)) < 200
    )
    assert prompts.bundled(3) == listed[:3] and all(
        re.fullmatch(r"[\w ,'-]{20,}", p, re.ASCII) for p in listed
    )
    for style in (
        "photo",
        "painting|gouache|watercolor",
        "illustration",
        "anime",
        "3D",
        "line art|drawing|sketch",
    ):
        assert sum(bool(re.search(style, p)) for p in listed) >= 20, style
        assert sum(bool(re.search(style, p)) for p in listed[:32]) >= 3, style


def test_choose_fills_up_in_order_and_names_the_source():
    sources = {"bundled": ["d", "e", "f"], "harvested": {"b": 7, "c": 1}, "file": ["b", "x"], "typed": ["a"]}
    assert prompts.choose(5, **sources) == [
        ("a", "typed"),
        ("b", "file"),
        ("x", "file"),
        ("c", "my pictures"),
        ("d", "bundled"),
    ]
    assert (
        prompts.choose(1, **sources) == [("a", "typed")]
        and len(prompts.choose(99, **sources)) == 7
        and prompts.choose(4) == []
    )
    for count in (0, -1, True, 2.0, "3"):
        with pytest.raises(ValueError, match="count must be a whole number of 1 or more, got"):
            prompts.choose(count, **sources)


def test_default_workflow_and_an_empty_negative():
    assert sides(classic()) == (("a red fox",), ("blurry",))
    assert sides(classic(negative="  ")) == (("a red fox",), ("",))


def test_guiders_of_sampler_custom_advanced():
    sampler = {
        "1": node(
            "SamplerCustomAdvanced",
            noise=["2", 0],
            guider=["22:0", 0],
            sigmas=["9", 0],
            latent_image=["5", 0],
        )
    }
    flux = {
        **sampler,
        "22:0": node("BasicGuider", model=["4", 0], conditioning=["26", 0]),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "6": node(
            "CLIPTextEncodeFlux", clip=["4", 1], clip_l="a fox", t5xxl="a photograph of a fox", guidance=3.5
        ),
    }
    assert sides(flux) == (("a photograph of a fox",), ())
    cfg = {
        **sampler,
        "22:0": node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=4),
        "6": encoder("fox"),
        "7": encoder("ugly"),
    }
    assert sides(cfg) == (("fox",), ("ugly",))
    dual = {
        **sampler,
        "22:0": node("DualCFGGuider", model=["4", 0], cond1=["6", 0], cond2=["16", 0], negative=["7", 0]),
        "6": encoder("fox"),
        "16": encoder("snow"),
        "7": encoder("ugly"),
    }
    assert sides(dual) == (("fox", "snow"), ("ugly",))


def test_text_behind_primitives_controlnet_and_in_a_subgraph():
    graph = classic(
        **{
            "3": node(
                "KSampler", model=["4", 0], positive=["10", 0], negative=["10", 1], latent_image=["5", 0]
            ),
            "10": node(
                "ControlNetApplyAdvanced",
                strength=1,
                positive=["12:3", 0],
                negative=["12:4", 0],
                control_net=["11", 0],
                image=["13", 0],
            ),
            "11": node("ControlNetLoader", control_net_name="a prompt"),
            "13": node(
                "DrawText", text="SALE", latent=["14", 0]
            ),  # the first pass: its prompts are its own sampler's
            "14": node("KSampler", positive=["15", 0], negative=["16", 0]),
            "15": encoder("first"),
            "16": encoder("first negative"),
            "12:3": encoder(["12:5", 0]),
            "12:4": encoder(["12:6", 0]),
            "12:5": node("StringConcatenate", string_a=["12:7", 0], string_b="in snow", delimiter=" "),
            "12:7": node("PrimitiveStringMultiline", value=" a wolf\nand a fox "),
            "12:6": node("PrimitiveString", value=""),
        }
    )
    assert sides(graph) == (("a wolf\nand a fox in snow", "first"), ("", "first negative"))
    assert sides({k: v for k, v in graph.items() if k not in ("14", "15", "16")}) == (
        ("a wolf\nand a fox in snow",),
        ("",),
    )


def test_conditioning_that_is_combined_zeroed_or_given_as_text():
    zeroed = classic(
        **{
            "3": node("KSampler", positive=["6", 0], negative=["8", 0]),
            "8": node("ConditioningZeroOut", conditioning=["6", 0]),
        }
    )
    assert sides(zeroed) == (("a red fox",), ())
    combined = classic(
        **{
            "3": node("KSampler", positive=["8", 0], negative=["7", 0]),
            "10": encoder("a hill"),
            "8": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["10", 0]),
        }
    )
    assert sides(combined) == (("a red fox", "a hill"), ("blurry",))
    sdxl = classic(
        **{"6": node("CLIPTextEncodeSDXL", clip=["4", 1], width=1024, text_g="a red fox, snow", text_l="fox")}
    )
    assert sides(sdxl)[0] == ("a red fox, snow",)
    loader = {
        "1": node("Efficient Loader", ckpt_name="x", positive="a fox", negative="bad"),
        "2": node("KSampler (Efficient)", positive=["1", 1], negative=["1", 2]),
        "3": node("Piped", pipe=["1", 0]),
    }
    assert sides(loader) == (("a fox",), ("bad",))
    styler = classic(
        **{
            "6": encoder(["8", 0]),
            "7": encoder(["8", 1]),
            "8": node("SDXLPromptStyler", text_positive="a fox", text_negative="bad", style="base"),
        }
    )
    assert sides(styler) == (("a fox",), ("bad",))
    assert sides(classic("a fox <lora:detail:0.8>, sharp"))[0] == ("a fox , sharp",)


TEMPLATE = "You write prompts. Write one about: a fox"
PRODUCERS = {  # the inputs of nodes that make a text while the graph runs
    "TextGenerate": {"clip": ["1", 0], "prompt": TEMPLATE, "max_length": 512, "sampling_mode": "off"},
    "GeminiNode": {"prompt": TEMPLATE, "model": "gemini-2.5-pro", "seed": 42, "system_prompt": ""},
    "OpenAIChatNode": {"prompt": TEMPLATE, "persist_context": False, "model": "gpt-5"},
    "ClaudeNode": {"prompt": TEMPLATE, "model": "opus", "model.max_tokens": 4096, "seed": 1},
    "OllamaGenerate": {"prompt": TEMPLATE, "url": "http://127.0.0.1:11434", "model": "llama3", "debug": "no"},
    "Florence2Run": {
        "image": ["1", 0],
        "florence2_model": ["2", 0],
        "text_input": TEMPLATE,
        "task": "caption",
    },
    "Vision": {"image": ["1", 0], "text": TEMPLATE},
    "with a linked template": {"prompt": ["90", 0], "temperature": 0.7, "top_p": 0.9},
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_what_a_model_wrote_is_not_its_template(name, tmp_path):
    nodes = {"6": encoder(["30", 0]), "30": node(name, **PRODUCERS[name]), "90": node("Text", value=TEMPLATE)}
    ways = [
        nodes,
        {**nodes, "6": encoder(["31", 0]), "31": node("ShowText", text=["30", 0], text_0="of another run")},
        {**nodes, "6": encoder(["31", 0]), "31": node("Join", string_a=["30", 0], string_b="best quality")},
        {**nodes, "6": encoder(["31", 0]), "31": node("Switch", on_true=["90", 0], on_false=["30", 0])},
        {**nodes, "6": encoder(["31", 0]), "31": node("JsonExtractString", json_string=["30", 0], key="a")},
        {
            **nodes,
            "6": node("Odd encoder", clip=["4", 1], words=["31", 0]),
            "31": node("S", string=["30", 0]),
        },
        {
            **nodes,
            "3": node("KSampler", positive=["8", 0], negative=["7", 0]),
            "8": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], image=["13", 0]),
        },
        {
            **nodes,
            "3": node("KSampler", positive=["8", 0], negative=["7", 0]),
            "8": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["10", 0]),
            "10": encoder("a part of it"),
        },
    ]
    for number, more in enumerate(ways):
        assert sides(classic(**more)) == ((), ("blurry",)), number
    picture(tmp_path / "a.png", classic(**nodes))
    picture(tmp_path / "b.png", classic(**nodes), parameters="a fox at dawn\nSteps: 20")
    found = prompts.harvest(tmp_path)
    assert found.prompts == {"a fox at dawn": 1} and found.sizes == {(64, 48): 1} and not found.skipped


def test_a_negative_that_a_model_wrote_leaves_the_positive():
    graph = classic(**{"7": encoder(["30", 0]), "30": node("G", **PRODUCERS["GeminiNode"])})
    assert sides(graph) == (("a red fox",), ())


def test_encoders_and_what_hands_texts_on_are_no_producers():
    controlled = {
        "3": node("KSampler", positive=["8", 0], negative=["8", 1]),
        "8": node("ControlNetApplyAdvanced", positive=["9", 0], negative=["7", 0], image=["13", 0]),
        "9": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], image=["14", 0]),
    }
    for inputs in (
        {"clip": ["4", 1], "text": "a fox"},
        {
            "clip": ["4", 1],
            "prompt": "a fox",
            "image1": ["13", 0],
            "vae": ["4", 2],
        },  # TextEncodeQwenImageEdit
        {"clip": ["4", 1], "user_prompt": "a fox", "system_prompt": "superior"},  # CLIPTextEncodeLumina2
        {"t5": ["4", 0], "prompt": "a fox", "model_to_offload": ["4", 1]},
        {"clip": ["4", 1], "text": ["20", 2], "model": ["4", 0]},
    ):
        loras = node("LoraTagLoader", model=["4", 0], clip=["4", 1], text="a fox")
        assert sides(classic(**controlled, **{"6": node("Encoder", **inputs), "20": loras}))[0] == ("a fox",)
    wildcards = node("Wildcards", wildcard_text="{red|blue} fox", populated_text="blue fox", model=["1", 0])
    assert sides(classic(**{"6": encoder(["20", 0]), "20": wildcards}))[0] == ("blue fox",)


@pytest.mark.parametrize(
    "graph",
    [
        None,
        3,
        [],
        "x",
        {},
        {"1": None},
        {"1": {"inputs": [1]}},
        {"1": node("K", positive=None, negative=7)},
        {"1": node("K", positive=["9", 0], negative=["9"])},
        {"1": node("K", positive=[{}, 0], negative=[[], []], guider={"a": 1})},
        {"1": node("K", positive=["1", 0], negative=["1", 0], guider=["1", 0])},
        {
            "1": node("K", positive=["2", 0]),
            "2": node("C", conditioning=["3", 0]),
            "3": node("C", conditioning=["2", 0]),
        },
        {
            "1": node("K", positive=["2", 0]),
            "2": node("E", text=["3", 0]),
            "3": node("S", string_a=["4", 0], string_b=["3", 0]),
            "4": node("S", value=["3", 0]),
        },
        {"1": node("K", positive=["2", 0]), "2": node("E", text=4, prompt=["a", "b"], value={"text": "x"})},
        classic("x" * 9000, "y\0"),
        classic("\ud800 lone", "\udfff"),
    ],
    ids=lambda graph: str(graph)[:40],
)
def test_a_graph_without_a_usable_text_has_none(graph):
    assert sides(graph) == ((), ())


def test_a_long_chain_and_a_doubling_text_end_soon():
    chain = {str(i): node("C", conditioning=[str(i + 1), 0]) for i in range(1, 20_000)}
    chain |= {"0": node("K", positive=["1", 0]), "20000": encoder(["a0", 0])}
    chain |= {f"a{i}": node("S", string_a=[f"a{i + 1}", 0], string_b=[f"b{i}", 0]) for i in range(40)}
    chain |= {f"b{i}": node("S", string_a=[f"a{i + 1}", 0], string_b="b") for i in range(40)} | {
        "a40": node("P", value="word")
    }
    start = time.process_time()
    assert len("".join(sides(chain)[0])) < graph_texts.LONGEST  # not 2^40 words
    chain["20000"] = encoder("the end")
    assert sides(chain) == (("the end",), ())
    assert time.process_time() - start < 5


A1111 = (
    "a fox, (snow:1.2)\nsecond line\nNegative prompt: blurry,\nugly\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Size: 512x768"
)


@pytest.mark.parametrize(
    "text, found",
    [
        (A1111, ("a fox, (snow:1.2)\nsecond line", "blurry,\nugly")),
        ("a fox <lora:fur:1>\nSteps: 20, Seed: 1", ("a fox", "")),
        ("Steps: to heaven\nNegative prompt: x\nSteps: 20", ("Steps: to heaven", "x")),
        ("just a fox", ("just a fox", "")),
        ("{red|blue} fox\nNegative prompt: {x}\nSteps: 20", ("{red|blue} fox", "{x}")),
        ("{a fox}", ("{a fox}", "")),
        ('{"scene": "a fox"}\nSteps: 20', ('{"scene": "a fox"}', "")),
        (json.dumps(classic("graph fox", "bad")), ("graph fox", "bad")),
        ("fÜchse <hypernet:a:1>\nSteps: 2, Version: 1\nTemplate: x", ("fÜchse", "")),
        *(
            (text, ())
            for text in (
                "",
                "Steps: 20",
                "Negative prompt: x\nSteps: 20",
                '{"sui": {}}',
                "x" * 9000 + "\nSteps: 20",
            )
        ),
    ],
)
def test_a1111_text(text, found):
    assert prompts.of_parameters(text) == ((found[:1], found[1:]))


def test_the_most_used_come_first_then_the_newest(tmp_path):
    for i, (positive, negative, age) in enumerate(
        [
            ("old", "n", 90),
            ("often", "n", 80),
            ("often", "", 70),
            ("often", "n", 95),
            ("new", "m", 10),
            ("middle", "", 50),
        ]
    ):
        picture(
            tmp_path / ("", "2026-01", "2026-01/deep")[i % 3] / f"{i}.png",
            classic(positive, negative),
            (64, 32 + 32 * (i > 3)),
            age,
        )
    found = prompts.harvest(tmp_path)
    assert list(found.prompts.items()) == [("often", 3), ("new", 1), ("middle", 1), ("old", 1)]
    assert list(found.negatives.items()) == [("n", 3), ("", 2), ("m", 1)]
    assert list(found.sizes.items()) == [((64, 32), 4), ((64, 64), 2)] and (
        found.pictures,
        found.skipped,
    ) == (6, 0)
    cut = prompts.harvest(tmp_path, limit=2)
    assert list(cut.prompts) == ["often", "new"] and len(cut.negatives) == 2
    newest = prompts.harvest(tmp_path, files=3)
    assert list(newest.prompts) == ["new", "middle", "often"] and newest.pictures == 3
    picture(tmp_path / "0.png", classic("changed"), age=5)
    assert (
        "old" not in prompts.harvest(tmp_path).prompts
        and list(prompts.harvest(tmp_path).prompts)[1] == "changed"
    )


def test_texts_of_every_kind_of_file(tmp_path):
    webp(tmp_path / "a.webp", classic("webp fox", "bad"))
    Image.new("RGB", (40, 24)).save(tmp_path / "plain.webp")
    picture(tmp_path / "b.PNG", parameters="füchse ☃\nNegative prompt: schlecht\nSteps: 20")
    picture(tmp_path / "c.png", parameters="packed ☃\nSteps: 20", compressed=True, size=(8, 8))
    picture(tmp_path / "d.png", classic("zipped"), compressed=True, size=(8, 8))
    picture(tmp_path / "e.png", {"1": node("Other")}, parameters="both\nSteps: 20")
    picture(tmp_path / "g.png", prompt="{no JSON}", parameters="{a|b}\nSteps: 20", size=(8, 8))
    picture(tmp_path / "no.png")
    (tmp_path / "f.jpg").write_bytes(b"not looked at")
    found = prompts.harvest(tmp_path)
    assert set(found.prompts) == {"webp fox", "füchse ☃", "packed ☃", "zipped", "both", "{a|b}"}
    assert found.negatives == {"bad": 1, "schlecht": 1, "": 3, "blurry": 1}
    assert found.sizes == {(40, 24): 1, (64, 48): 2, (8, 8): 3} and (found.pictures, found.skipped) == (8, 0)


BOMB = b"parameters\0\0" + zlib.compress(b"x" * 50_000_000)
HOSTILE = {
    "empty": b"",
    "magic": b"\x89PNG\r\n\x1a\n",
    "other": b"GIF89a" + b"x" * 99,
    "no end": raw_png()[:33],
    "cut": raw_png(chunk(b"tEXt", b"prompt\0{", length=5000)),
    "cut header": raw_png()[:20],
    "riff": b"RIFF____WEBPVP8X\n\0\0\0",
    "huge": raw_png(prompt="{}" + " " * (5 << 20)),
    "claims": raw_png(chunk(b"tEXt", b"prompt\0{}", length=0xFFFFFFFF)),
    "bomb": raw_png(chunk(b"zTXt", BOMB)),
    "bad zip": raw_png(chunk(b"zTXt", b"prompt\0\0nozip")),
    "deep": raw_png(prompt="[" * 1_000_000),
    "no json": raw_png(prompt="{'a'"),
    "long number": raw_png(prompt="1" * 10_000),
    "many chunks": raw_png(*[chunk(b"odDd", b"")] * 5000, prompt=json.dumps(classic("many"))),
    "tiff": b"RIFF\x40\0\0\0WEBP" + b"EXIF\x0a\0\0\0II*\0\xff\xff\xff\xff..",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_file_is_skipped_and_counted(name, tmp_path):
    (tmp_path / "bad.png").write_bytes(HOSTILE[name])
    picture(tmp_path / "good.png", classic())
    found = prompts.harvest(tmp_path)
    assert list(found.prompts) == ["a red fox"] and (found.pictures, found.skipped) == (2, 1)


def test_a_text_that_is_not_utf8_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_png(chunk(b"iTXt", b"parameters\0\0\0\0\0\xff")))
    assert prompts.harvest(tmp_path).prompts == {}


def exif_webp(path, data):
    Image.new("RGB", (40, 24)).save(path, "WEBP", exif=data)
    return prompts.read(str(path))


def tiff(*fields, tail=b""):
    """An EXIF with fields (tag, length, place) of text, and what they lie in."""
    entries = b"".join(struct.pack("<HHII", tag, 2, length, place) for tag, length, place in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4) + tail


def test_the_fields_of_an_exif_are_utf8_and_lie_beside_each_other(tmp_path):
    text = b"parameters:f\xc3\xbcchse \xe2\x98\x83\0\0"
    assert exif_webp(tmp_path / "a", tiff((0x010E, len(text), 26), tail=text))[0] == ("füchse ☃",)
    assert exif_webp(tmp_path / "b", tiff((0x010E, 12, 26), tail=b"parameters:\xff")) is None
    assert exif_webp(tmp_path / "c", tiff((0x010E, 10, 26), tail=b"parameters")) == ((), (), ())
    fields = [(0xC000 + number, 1 << 20, 8) for number in range(50)]  # 50 MiB, if they were read
    tracemalloc.start()
    try:
        assert exif_webp(tmp_path / "d", tiff(*fields, tail=b"x" * (1 << 20))) in (None, ((), (), ()))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make, name", [(picture, "a.png"), (webp, "a.webp")])
def test_no_more_of_a_file_is_read_than_a_bound(make, name, tmp_path, monkeypatch):
    make(tmp_path / name, classic())
    assert prompts.read(str(tmp_path / name), 1)[0] == ("a red fox",)
    monkeypatch.setattr(prompts, "READ", 100)
    assert prompts.read(str(tmp_path / name), 2) is None


def test_no_damage_raises(tmp_path):
    webp(tmp_path / "a.webp", classic())
    picture(tmp_path / "b.png", parameters=A1111 + "☃", compressed=True)
    whole = [
        (tmp_path / "a.webp").read_bytes(),
        (tmp_path / "b.png").read_bytes(),
        raw_png(prompt=json.dumps(classic())),
    ]
    draw, outcomes = random.Random(0), set()
    for number in range(2000):
        data = bytearray(whole[number % 3])
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(8, len(data))] = draw.choice((0, 255, 34, 91, 123, draw.randrange(256)))
        if number % 4 == 0:
            del data[draw.randrange(len(data)) :]
        (tmp_path / "x").write_bytes(data)
        outcomes.add(type(prompts.read(str(tmp_path / "x"), number)))
    assert outcomes == {tuple, type(None)}


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_links_pipes_and_missing_folders_are_left_alone(tmp_path):
    picture(tmp_path / "outside" / "a.png", classic("outside"))
    picture(tmp_path / "out" / "b.png", classic("inside"))
    (tmp_path / "out" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "out" / "c.png").symlink_to(tmp_path / "outside" / "a.png")
    os.mkfifo(tmp_path / "out" / "d.png")
    (tmp_path / "out" / "e.png").mkdir()
    found = prompts.harvest(tmp_path / "out")
    assert list(found.prompts) == ["inside"] and (found.pictures, found.skipped) == (1, 0)
    assert prompts.harvest(tmp_path / "absent").pictures == 0
    deep = tmp_path / "deep" / "/".join("d" * prompts.DEEPEST)
    picture(deep / "a.png", classic("deep"))
    picture(deep / "d" / "a.png", classic("too deep"))
    assert list(prompts.harvest(tmp_path / "deep").prompts) == ["deep"]


def test_two_thousand_pictures_are_read_by_their_headers_alone(tmp_path):
    for i in range(2000):  # each 256 MiB long, nearly all of it a hole in the place of the pixels
        head = raw_png(
            struct.pack(">I4s", 1 << 28, b"IDAT"),
            prompt=json.dumps(classic(f"fox {i % 500}")),
            workflow="x" * 20_000,
        )
        with open(tmp_path / f"{i}.png", "wb") as file:
            file.write(head)
            file.truncate(1 << 28)
    start, known = time.process_time(), prompts.read.cache_info().misses
    found = prompts.harvest(tmp_path)
    assert time.process_time() - start < 10
    assert (
        found.pictures == 2000
        and found.skipped == 0
        and len(found.prompts) == 500
        and set(found.prompts.values()) == {4}
    )
    assert (
        prompts.harvest(tmp_path) == found and prompts.read.cache_info().misses == known + 2000
    )  # remembered
    with pytest.raises(StopIteration):
        prompts.harvest(tmp_path, check=iter((None,) * 3).__next__)
