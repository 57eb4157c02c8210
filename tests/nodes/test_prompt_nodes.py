"""In the real ComfyUI, in process: prompts chosen from text, pictures and the bundled list, and encoded by a
real, tiny CLIP.
"""

import json
import os
import types

import pytest
import torch
from graph import pack, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytestmark = pytest.mark.comfy

TYPED, MINE, BUNDLED = "typed only", "my pictures, then the bundled list", "bundled list"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def output(host, tmp_path):
    """The output folder, of this test alone."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture(scope="module")
def clip(host):
    """ComfyUI's CLIP for SD1, two layers narrow, with random weights."""
    import comfy.sd
    import comfy.sd1_clip

    target = types.SimpleNamespace(
        params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer
    )
    made = comfy.sd.CLIP(target, model_options={"clip_l_model_config": TINY})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.cond_stage_model.parameters():
            weight.copy_(
                torch.randn(weight.shape, generator=draw) / weight.shape[-1] ** 0.5
                if weight.ndim
                else torch.ones(())
            )
    return made


def save(path, positive, negative=None, size=(32, 16), age=0):
    """A PNG with the graph that ComfyUI writes into it."""
    graph = {
        "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0], "seed": age}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": positive, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": negative or "", "clip": ["4", 1]}},
    }
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, pnginfo=info)
    os.utime(path, (1_700_000_000 - age,) * 2)


def ask(host, clip, text="", source=TYPED, count=32, **others):
    return run(host, "FewstepPrompts", clip=clip, text=text, source=source, count=count, **others)


def core(host, clip, text):
    """What CLIP Text Encode makes of it."""
    with torch.inference_mode():
        return host.CLIPTextEncode().encode(clip, text)[0]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) and x.keys() == y.keys() and torch.equal(x["pooled_output"], y["pooled_output"])
        for (a, x), (b, y) in zip(ours, theirs)
    )


def test_each_prompt_is_the_entry_that_clip_text_encode_makes(host, clip):
    positive, negative, text = ask(host, clip, "a cat\n# no\n\na (dog:1.3), night\na cat", negative="blurry")
    cat, dog = core(host, clip, "a cat"), core(host, clip, "a (dog:1.3), night")
    (combined,) = host.ConditioningCombine().combine(cat, dog)
    assert same(positive, combined) and same(negative, core(host, clip, "blurry")) and not same(cat, dog)
    assert not same(dog, core(host, clip, "a dog, night")) and positive[0][0].shape == (1, 77, 16)
    assert text == "# 2 prompts: 2 typed\n# negative: blurry\n\n# typed\na cat\na (dog:1.3), night"
    assert same(ask(host, clip, "a cat")[1], core(host, clip, ""))


def test_the_guider_that_fits_takes_each_entry_as_a_prompt(host, clip, flow):
    guiding = pack(host, "nodes.comfy.guider_teacher")
    guider = guiding.Prompts(flow[0])
    positive, negative, _ = ask(host, clip, source=BUNDLED, count=5)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.0)
    assert guiding.Teacher(guider, (3, 32, 32)).conditions == 5


def test_typed_then_my_pictures_then_the_bundled_list(host, clip, output):
    for number, (positive, negative) in enumerate(
        [("a fox", "bad"), ("a wolf\nin snow", "bad"), ("a fox", "ugly"), ("a hen", "")]
    ):
        save(output / "2026" / f"{number}.png", positive, negative, (32, 16 + 16 * (number == 3)), age=number)
    (output / "broken.png").write_bytes(b"\x89PNG")
    positive, negative, text = ask(host, clip, "a cat\na hen", MINE, 6)
    listed = pack(host, "training.formats.prompts").bundled(2)
    assert text.splitlines() == [
        "# 6 prompts: 2 typed, 2 my pictures, 2 bundled",
        "# negative: bad",
        "# 5 pictures, 1 could not be read; sizes: 32x16 (3), 32x32 (1)",
        "",
        "# typed",
        "a cat",
        "a hen",
        "",
        "# my pictures",
        "a fox",
        "a wolf in snow",
        "",
        "# bundled",
        *listed,
    ]
    expected = [core(host, clip, p)[0] for p in ("a cat", "a hen", "a fox", "a wolf\nin snow", *listed)]
    assert same(positive, expected) and same(negative, core(host, clip, "bad"))
    assert same(ask(host, clip, "", MINE, 2, negative="mine")[1], core(host, clip, "mine"))
    again = ask(host, clip, text, TYPED)[2]
    assert again.startswith("# 6 prompts: 6 typed\n# negative: (empty)") and again.split("# typed\n")[
        1
    ].splitlines() == ["a cat", "a hen", "a fox", "a wolf in snow", *listed]


def test_a_folder_of_the_output_folder_alone(host, clip, output):
    save(output / "fox" / "1.png", "a fox")
    save(output / "hen" / "1.png", "a hen")
    assert "a fox" in ask(host, clip, "", MINE, 1, folder="fox")[2]
    assert "a hen" in ask(host, clip, "", MINE, 1, folder=str(output / "hen"))[2]
    assert {"a fox", "a hen"} <= set(ask(host, clip, "", MINE, 2)[2].splitlines())
    output.rename(output.parent / "gone")
    assert "# 2 prompts: 2 bundled" in ask(host, clip, "", MINE, 2)[2]


@pytest.mark.parametrize(
    "folder", ["..", "../output2", "fox/../../secret", "/", "/etc", "a\0b", "link", "link/..", "circle"]
)
def test_no_folder_outside_is_read(host, clip, output, folder):
    for name in ("secret", "output2"):
        save(output.parent / name / "1.png", "secret")
    (output / "fox").mkdir()
    (output / "link").symlink_to(output.parent / "secret", target_is_directory=True)
    (output / "circle").symlink_to(output / "circle")
    with pytest.raises(
        ValueError, match="folder must lie in ComfyUI's output folder, got .* as it is seen from there"
    ):
        ask(host, clip, "a cat", MINE, folder=folder)
    assert "secret" not in ask(host, clip, "", MINE, 3)[2]


def test_what_is_missing_is_named(host, clip):
    with pytest.raises(
        ValueError, match="folder must be in ComfyUI's output folder, got 'absent', which is not there"
    ):
        ask(host, clip, "a cat", MINE, folder="absent")
    with pytest.raises(
        ValueError, match='text must hold at least one prompt where source is "typed only", got none'
    ):
        ask(host, clip, " \n# nothing")
    with pytest.raises(RuntimeError, match="clip must be a text encoder, got None.*CLIP loader"):
        ask(host, None, "a cat")


def test_prompts_beyond_count_are_said_to_be_left_out(host, clip):
    positive, _, text = ask(host, clip, "a\nb\nc\n", BUNDLED, 2)
    assert len(positive) == 2 and text.startswith("# 2 prompts: 2 typed; 1 typed left out, count is 2\n")
    assert ask(host, clip, "a", TYPED, 9)[2].startswith("# 1 prompt: 1 typed\n")


def test_a_clip_with_scheduled_hooks_is_refused(host, clip):
    import comfy.hooks

    hook = comfy.hooks.create_hook_lora(lora={}, strength_model=1.0, strength_clip=1.0)
    group = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hook.set_keyframes_on_hooks(group)
    scheduled = clip.clone()
    scheduled.use_clip_schedule = True
    scheduled.patcher.forced_hooks = hook
    assert len(core(host, scheduled, "a cat")) == 2
    with pytest.raises(
        ValueError, match="clip must make one conditioning entry of a prompt, this one makes 2"
    ):
        ask(host, scheduled, "a cat")


def test_it_stops_between_prompts_and_shows_progress(host, clip, monkeypatch):
    import comfy.model_management
    import comfy.utils

    seen, asked = [], []
    listening = clip.clone()
    listening.tokenize = lambda text: asked.append(text) or clip.tokenize(text)

    def hook(value, total, preview, node_id=None):
        seen.append((value, total))
        if len(seen) == 1:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ask(host, listening, source=BUNDLED, count=50, negative="blurry")
    assert seen == [(1, 51)] and asked == ["blurry"]
    ask(host, clip, source=BUNDLED, count=3)
    assert seen[1][1] == 4 and seen[-1] == (4, 4)


def test_a_run_starts_again_when_the_choice_changes_and_only_then(host, output):
    fingerprint = host.NODE_CLASS_MAPPINGS["FewstepPrompts"].fingerprint_inputs
    widgets = {"text": "a cat", "source": MINE, "count": 3, "negative": "", "folder": ""}
    save(output / "1.png", "a fox", "bad", age=9)
    save(output / "2.png", "a hen", "bad", age=8)
    first, wired = fingerprint(clip=None, **widgets), fingerprint(**{**widgets, "text": None})
    save(output / "3.png", "a fox", "bad", age=7)  # the same choice, more often
    assert (
        fingerprint(**widgets) == first == fingerprint(**widgets)
        and fingerprint(**{**widgets, "text": None}) != wired
    )
    save(output / "4.png", "a wolf", "bad", age=1)
    second = fingerprint(**widgets)
    for number in range(5, 10):  # the same prompts, another negative
        save(output / f"{number}.png", "a wolf", "ugly", age=1)
    third = fingerprint(**widgets)
    assert len({first, second, third}) == 3 == len({first, wired, second})
    assert fingerprint(**{**widgets, "negative": "mine"}) not in (third, first)
    assert fingerprint(**{**widgets, "source": BUNDLED}) == fingerprint(**{**widgets, "source": TYPED}) == ""


def test_a_run_is_kept_with_the_prompts_that_it_has(host, clip, output):
    """Queued again once there are more pictures, the kept graph gives the same."""
    live = pack(host, "nodes.server.live")
    save(output / "1.png", "#cozy cabin\n---\nin snow", "bad")
    positive, negative, _ = ask(host, clip, "a cat", MINE, 4)
    graph = {
        "5": {
            "class_type": "FewstepPrompts",
            "inputs": {"clip": ["1", 0], "text": ["2", 0], "source": MINE, "count": 4, "negative": ""},
        }
    }
    other = {"6": {"class_type": "FewstepPrompts", "inputs": {"text": "a dog"}}}
    for entry in (*positive, *negative):
        known = pack(host, "nodes.comfy.spoken")._origins
        known[entry[0]] = known[entry[0]]._replace(node="5")
    live._keep_prompts(graph | other, [*positive, *negative])
    assert graph["5"]["inputs"].pop("clip") == ["1", 0] and other["6"]["inputs"] == {"text": "a dog"}
    save(output / "2.png", "a wolf", "ugly")
    again = ask(host, clip, **graph["5"]["inputs"])
    assert same(again[0], positive) and same(again[1], negative)
    assert not same(ask(host, clip, "a cat", MINE, 4)[0], positive)


def test_more_pictures_of_the_same_prompts_change_nothing(host, clip, output):
    for number, text in enumerate(("a fox", "a hen")):
        save(output / f"{number}.png", text, age=number)
    fingerprint = host.NODE_CLASS_MAPPINGS["FewstepPrompts"].fingerprint_inputs
    before, told = ask(host, clip, "", MINE, 2)[0], fingerprint("", MINE, 2)
    for number in range(2, 5):
        save(output / f"{number}.png", "a hen", age=number)
    assert same(ask(host, clip, "", MINE, 2)[0], before) and fingerprint("", MINE, 2) == told
