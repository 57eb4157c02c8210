"""In the real ComfyUI: locales/en is what the nodes say of themselves, and messages reach users in their
language.
"""

import http.client
import importlib.util
import inspect
import json
import string
from pathlib import Path

import pytest
import torch
from graph import load, pack, run

pytestmark = pytest.mark.comfy
FILE = Path(__file__).parents[3] / ".ci" / "locales.py"
spec = importlib.util.spec_from_file_location("fewstep_locales", FILE)
locales = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locales)


@pytest.fixture
def chosen(host):
    """Chooses a language in ComfyUI's settings: chosen("zh"); None leaves it to the frontend."""
    import folder_paths

    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    yield lambda name: file.write_text(json.dumps({"Comfy.Locale": name} if name else {}), encoding="utf-8")
    file.unlink(missing_ok=True)
    pack(host, "nodes.server.messages").HEARD.clear()


def test_english_is_what_the_nodes_say_of_themselves(host):
    nodes = locales.nodes_of(host)
    assert nodes.keys() == locales.read("en", "nodeDefs").keys()
    for name, node in nodes.items():
        assert locales.texts(node) == locales.read("en", "nodeDefs")[name], f"{name}: run .ci/locales.py"


def test_every_choice_of_a_list_has_a_word_in_every_language(host):
    words = locales.choices_of(locales.nodes_of(host).values())
    assert {"auto", "trailing anchors", "typed only", "cat"} <= words.keys()
    for language in ("en", *locales.languages()):
        assert locales.read(language, "main")["fewstep"]["choices"].keys() == words.keys(), language


def test_every_seed_stays_until_it_is_changed(host):
    """The frontend would else draw another one after each queue, and a queued job would begin anew."""
    seeds = [
        (name, i)
        for name, node in locales.nodes_of(host).items()
        for _, i in locales.inputs(node.GET_SCHEMA().inputs)
        if "seed" in i.id
    ]
    assert len(seeds) > 5
    assert {(name, str(i.control_after_generate.value)) for name, i in seeds} == {
        (n, "fixed") for n, _ in seeds
    }


def test_every_category_has_a_name(host):
    folders = {
        part for node in locales.nodes_of(host).values() for part in node.GET_SCHEMA().category.split("/")
    } - {"Fewstep"}
    for language in ("en", *locales.languages()):
        assert folders == locales.read(language, "main").get("nodeCategories", {}).keys()


def test_inputs_of_choices_are_among_them(host):
    found = locales.texts(host.NODE_CLASS_MAPPINGS["FewstepSchedule"])["inputs"]
    assert {"schedule", "schedule_rho", "schedule_alpha", "schedule_phases", "steps"} <= found.keys()
    every = [
        i
        for node in locales.nodes_of(host).values()
        for part in node.GET_SCHEMA().inputs
        for i in part.get_all()
    ]
    told = sum(len(node["inputs"]) for node in locales.read("en", "nodeDefs").values())
    assert 100 < told <= len(every)  # an option that two choices have, "rho", is told of once


@pytest.mark.parametrize(
    "language, word",
    [
        ("zh", "“偏移”必须大于 0"),
        ("zh-TW", "“偏移”必须大于 0"),
        ("en", "shift must"),
        ("fr", "shift must"),
        ("../../zh", "shift must"),
        (None, "shift must"),
    ],
)
def test_an_error_is_told_in_the_users_language(host, chosen, language, word):
    chosen(language)
    model = load(host, "flow")[0]
    with pytest.raises(ValueError, match=word) as caught:
        run(
            host,
            "FewstepSchedule",
            model=model,
            schedule={"schedule": "uniform"},
            steps=4,
            shift=-1.0,
            denoise=1.0,
        )
    assert caught.traceback[-1].path.name == "grids.py"  # the traceback is the error's own


def test_the_frontend_is_heard_where_the_settings_say_nothing(host, chosen):
    errors = pack(host, "nodes.server.messages")
    chosen(None)
    assert errors.language() == "en"
    assert [errors.hear(name) for name in ("fr", "zh-CN", "../zh", "", "zh")] == [
        "en",
        "zh",
        "en",
        "en",
        "zh",
    ]
    assert errors.language() == "zh"
    chosen("en")
    assert errors.language() == "en"


@pytest.mark.parametrize("text", ["{", "[]", '"zh"', '{"Comfy.Locale": 5}', "\xff"])
def test_settings_that_cant_be_read_leave_english(host, chosen, text):
    import folder_paths

    chosen("zh")
    (Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json").write_text(
        text, encoding="latin-1"
    )
    assert pack(host, "nodes.server.messages").language() == "en"


def test_errors_inside_the_hosts_own_nodes_are_translated(host, chosen, flow):
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    chosen("zh")
    model, _, positive, negative, _ = flow
    sampler = run(host, "FewstepSampler", churn=0.0, order="1")[0]
    latent = host.EmptyLatentImage().generate(32, 32)[0]
    with pytest.raises(ValueError, match="“Sigmas”必须递减"):
        SamplerCustom.execute(
            model, True, 0, 1.0, positive, negative, sampler, torch.tensor([0.5, 0.7, 0.0]), latent
        )
    with pytest.raises(ValueError, match="演示教师模型处理 32x32"):
        SamplerCustom.execute(
            model,
            True,
            0,
            1.0,
            positive,
            negative,
            sampler,
            torch.tensor([1.0, 0.5, 0.0]),
            host.EmptyLatentImage().generate(64, 64)[0],
        )


def test_refused_inputs_are_translated_and_the_host_sees_which_it_takes(host, chosen):
    node = host.NODE_CLASS_MAPPINGS["FewstepDrawSchedule"]
    chosen("zh")
    assert "“曲线点”必须是 JSON" in node.validate_inputs(points="no JSON")
    assert node.validate_inputs(points="[[0.5, 0.5]]") is True
    assert inspect.getfullargspec(node.validate_inputs).args[1:] == ["points"]


def fault(function, *args, **options):
    """The fault that a function of the pack raises."""
    with pytest.raises(Exception) as caught:
        function(*args, **options)
    assert type(caught.value).__module__.endswith("diffusion.faults")
    return caught.value


def not_finite(host, folder):
    check = pack(host, "diffusion.paths").check_sigmas
    return fault(check, [1.0, 0.5, float("nan"), 0.0], name="blend_with")


def rising(host, folder):
    """A message in a message: that of a recipe's sigmas in that of its file."""
    recipe = pack(host, "training.formats.recipe").Recipe(
        method="fitted", path="flow", sigmas=(2 / 3, 1 / 3, 0)
    )
    file = folder / "fewstep.json"
    file.write_text(json.dumps({**json.loads(recipe.to_json()), "sigmas": [1, 2, 0]}), encoding="utf-8")
    return fault(pack(host, "training.formats.files").load_recipe, file)


def two_sources(host, folder):
    wired = object()
    return fault(pack(host, "nodes.fit").guider_of, wired, wired, wired, None, 4.0)


def line_of_training(host, folder):
    message = pack(host, "diffusion.faults").Message
    left = message("{minutes:.1f} min", minutes=3.4)
    return message("{stage}: loss {loss:.4f}, {left} left", stage="training", loss=0.1234, left=left)


def failed_sampler(host, folder):
    """An exception of ours as a field."""
    return pack(host, "diffusion.faults").Message(
        "sampler can't be inspected: it fails on this schedule of {count} steps with {kind}: {error}. "
        "Use more steps, or another sampler.",
        count=4,
        kind="ValueError",
        error=fault(pack(host, "diffusion.samplers").check_order, 7),
    )


def line_of_prompts(host, folder):
    chosen = [("a", "typed"), ("b", "bundled"), ("c", "bundled")]
    return pack(host, "nodes.prompts").heading(chosen, left=2)


def literal_error(host, folder):
    faults = pack(host, "diffusion.faults")
    return faults.Message("{name}: {error}", name="a.json", error=OSError(2, "No such file"))


def not_translated(host, folder):
    return pack(host, "diffusion.faults").Message("what no one wrote: {at}", at="all")


MESSAGES = {
    not_finite: (
        "blend_with must be finite, got nan at position 2. Check the node that made it.",
        "“混合对象”必须是有限值，当前位置 2 处为 nan。请检查生成它的节点。",
    ),
    rising: (
        "fewstep.json: recipe sigmas must descend, got 1 then 2 at position 1. Flip it or remove repeated "
        "entries.",
        "fewstep.json：配方的 sigmas 必须递减，当前位置 1 处先是 1，再是 2。请将其翻转，或删除重复的值。",
    ),
    two_sources: (
        "guider must be the only source of model and prompts, got model and positive too. Unwire one or the "
        "other.",
        "“引导器”必须是模型和提示词的唯一来源，但还连接了“模型”、“正面条件”。请断开其中一方。",
    ),
    line_of_training: ("training: loss 0.1234, 3.4 min left", "训练：损失 0.1234，剩余 3.4 分钟"),
    failed_sampler: (
        "sampler can't be inspected: it fails on this schedule of 4 steps with ValueError: order must be a "
        "number from 1 to 3, or heun, got 7.. Use more steps, or another sampler.",
        "无法检查此“采样器”：它在这个 4 步的调度上出错，ValueError：“阶数”必须是 1 到 3 之间的数，或 heun，"
        "当前为 7。请增加步数，或换一个采样器。",
    ),
    line_of_prompts: (
        "3 prompts: 1 typed, 2 bundled; 2 typed left out, count is 3",
        "3 条提示词：手动输入 1 条、内置列表 2 条；因“数量”为 3，手动输入的有 2 条未采用",
    ),
    literal_error: ("a.json: [Errno 2] No such file", "a.json：[Errno 2] No such file"),
    not_translated: ("what no one wrote: all", "what no one wrote: all"),
}


@pytest.mark.parametrize("made", MESSAGES, ids=lambda made: made.__name__)
def test_values_and_messages_inside_a_message_are_translated(host, chosen, tmp_path, made):
    message, (english, chinese) = made(host, tmp_path), MESSAGES[made]
    messages, faults = pack(host, "nodes.server.messages"), pack(host, "diffusion.faults")
    assert str(message) == english
    chosen("zh")
    assert messages.told(message) == chinese
    value = getattr(message, "message", message)
    again = faults.Message.from_dict(json.loads(json.dumps(value.to_dict())))
    assert str(again) == english and messages.told(again) == chinese


@pytest.mark.parametrize("text", ["what no one wrote: at all", "steps", "{steps} {", ""])
def test_a_plain_text_is_told_as_it_is(host, chosen, text):
    chosen("zh")
    assert pack(host, "nodes.server.messages").told(text) == text


class Anything:
    """A value that every format shows as §."""

    def __format__(self, spec):
        return "§"

    def __repr__(self):
        return "§"


def test_every_message_is_worded_as_its_text_says(host):
    message, chinese = (
        pack(host, "diffusion.faults").Message,
        pack(host, "nodes.server.messages").in_language("zh"),
    )
    wrong = {}
    for key, text in locales.read("zh", "errors").items():
        names = {name for name, *_ in locales.fields(key)}
        wanted = "".join(part + "§" * (name is not None) for part, name, *_ in string.Formatter().parse(text))
        found = message(key, **dict.fromkeys(names, Anything())).worded(chinese)
        if found.replace(" ", "") != wanted.replace(" ", ""):
            wrong[key] = found
    assert wrong == {}


def test_an_input_is_called_what_its_own_node_calls_it(host):
    messages, message = (
        pack(host, "nodes.server.messages"),
        pack(host, "diffusion.faults").Message("{x}", x="steps"),
    )
    nodes = locales.read("zh", "nodeDefs")
    called = {
        node: message.worded(messages.in_language("zh", node))
        for node in nodes
        if "steps" in nodes[node]["inputs"]
    }
    assert (
        called == {node: f"“{nodes[node]['inputs']['steps']['name']}”" for node in called} and len(called) > 3
    )


@pytest.mark.parametrize(
    "error", [KeyError("steps"), OSError(2, "No such file"), ValueError(), ValueError(5)], ids=repr
)
def test_other_exceptions_leave_as_they_are(host, chosen, error):
    def fail():
        raise error

    chosen("zh")
    before = error.args
    with pytest.raises(type(error)) as caught:
        pack(host, "nodes.server.messages").in_words(fail)()
    assert caught.value is error and error.args == before


def test_an_exception_of_ours_stays_the_object_that_it_is(host, chosen):
    """And in English again where it becomes part of another message."""
    messages, faults = pack(host, "nodes.server.messages"), pack(host, "diffusion.faults")
    error = faults.BadValue("steps must be a whole number of 1 or more, got {got}.", got=0)

    def fail():
        raise error

    chosen("zh")
    with pytest.raises(ValueError) as caught:
        messages.in_words(messages.in_words(fail), "FewstepSchedule")()
    assert caught.value is error and caught.traceback[-1].name == "fail"
    assert str(error) == "“步数”必须是不小于 1 的整数，当前为 0。"
    assert str(faults.message_of(error)) == "steps must be a whole number of 1 or more, got 0."


def test_an_exception_of_the_host_that_quotes_ours_is_put_into_words_there(host, chosen):
    messages, faults = pack(host, "nodes.server.messages"), pack(host, "diffusion.faults")

    def fail():
        try:
            raise faults.BadValue("steps must be a whole number of 1 or more, got {got}.", got=0)
        except ValueError as error:
            raise RuntimeError(f"Node 4: {error}", 5) from error

    chosen("zh")
    with pytest.raises(RuntimeError) as caught:
        messages.in_words(fail)()
    assert caught.value.args == ("Node 4: “步数”必须是不小于 1 的整数，当前为 0。", 5)


def test_lines_on_a_node_are_in_the_users_language(host, chosen):
    from comfy_api.latest import io

    messages, message = pack(host, "nodes.server.messages"), pack(host, "diffusion.faults").Message
    lines = (message("Saved {file}", file="a_00001.json"), "as it is")
    result = messages.in_words(lambda: io.NodeOutput(1, ui={"text": lines}))
    assert result().ui == {"text": ("Saved a_00001.json", "as it is")}
    chosen("zh")
    assert result().ui == {"text": ("已保存 a_00001.json", "as it is")}


def test_a_runs_error_is_told_whether_it_is_a_message_or_a_text(host, chosen):
    messages, message = pack(host, "nodes.server.messages"), pack(host, "diffusion.faults").Message
    stored = message("shift must be above 0, got {got}. 1 moves nothing.", got=float("nan")).to_dict()
    chosen("zh")
    assert messages.of_run({"id": "a", "error": stored}) == {
        "id": "a",
        "error": "“偏移”必须大于 0，当前为 nan。1 表示不偏移。",
    }
    assert messages.of_run({"error": "shift must be {"}) == {"error": "shift must be {"}
    assert messages.of_run({"error": {"key": "{lost}", "fields": {}}})["error"].startswith("{'key'")
    assert messages.of_run({"error": None}) == {"error": None} and messages.of_run(None) is None


def test_an_interrupt_passes(host, chosen):
    import comfy.model_management

    def fail():
        raise stop

    chosen("zh")
    stop = comfy.model_management.InterruptProcessingException(
        "steps must be a whole number of 1 or more, got 0."
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException) as caught:
        pack(host, "nodes.server.messages").in_words(fail)()
    assert caught.value is stop and str(stop) == "steps must be a whole number of 1 or more, got 0."


def test_a_job_fails_in_chinese_and_the_frontends_language_is_taken_down(server, workflow):
    def post(path):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", path)
        reply = connection.getresponse()
        return reply.status, reply.read()

    assert post("/fewstep/language/zh") == (200, b'{"language": "zh"}')
    status, refused = post("/fewstep/runs/0123456789abcdef01234567/pause")
    assert status == 404 and json.loads(refused)["error"] == {
        "code": "unknown-run",
        "message": "没有任务 '0123456789abcdef01234567'，它可能已被删除。",
    }
    prompt = workflow("distil_in_one_click", n3__name="!")
    try:
        status = server.result(server.queue(prompt))["status"]
        (message,) = [
            value["exception_message"] for kind, value in status["messages"] if kind == "execution_error"
        ]
        assert message.startswith("“名称”必须包含文字、字母或数字")
        assert (
            "zh" in server.get("/i18n")
            and server.get("/i18n")["zh"]["nodeDefs"]["FewstepDistil"]["display_name"]
        )
    finally:
        assert post("/fewstep/language/..%2F..%2Fzh") == (200, b'{"language": "en"}')
