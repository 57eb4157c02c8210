"""In the real ComfyUI: locales/en is what the nodes say of themselves, and messages reach users in their
language.
"""

import http.client
import importlib.util
import inspect
import json
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


MESSAGES = {
    "blend_with must be finite, got nan at position 2. Check the node that made it.": "“混合对象”必须是有限值，当前位置 2 处为 nan。请检查生成它的节点。",
    "fewstep.json: recipe sigmas must descend, got 1 then 2 at position 1. Flip it or remove repeated entries.": "fewstep.json：配方的 sigmas 必须递减，当前位置 1 处先是 1，再是 2。请将其翻转，或删除重复的值。",
    "guider must be the only source of model and prompts, got model and positive too. Unwire one or the other.": "“引导器”必须是模型和提示词的唯一来源，但还连接了“模型”、“正面条件”。请断开其中一方。",
    "training: loss 0.1234, 3.4 min left": "训练：损失 0.1234，剩余 3.4 分钟",
    "sampler can't be inspected: it fails on this schedule of 4 steps with ValueError: order must be one of 1, 2, 3 or heun, "
    "got 7.. Use more steps, or another sampler.": "无法检查此“采样器”：它在这个 4 步的调度上出错，ValueError：“阶数”必须是 1, 2, 3 或 heun，当前为 7。"
    "请增加步数，或换一个采样器。",
    "what no one wrote: at all": "what no one wrote: at all",
    "": "",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_values_and_messages_inside_a_message_are_translated(host, message):
    assert pack(host, "nodes.server.messages").translated(message, "zh") == MESSAGES[message]


def test_every_message_finds_its_own_template(host):
    """With values of one letter each: no template takes what another was written for."""
    translated, wrong = pack(host, "nodes.server.messages").translated, {}
    for text, words in locales.read("zh", "errors").items():
        wanted = words
        for place in range(text.count("{}")):
            wanted = wanted.replace(f"{{{place}}}", "§")
        if text.count("{}") and translated(text.replace("{}", "§"), "zh").replace(" ", "") != wanted.replace(
            " ", ""
        ):
            wrong[text] = translated(text.replace("{}", "§"), "zh")
    assert wrong == {}


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
    assert caught.value is stop


def test_a_job_fails_in_chinese_and_the_frontends_language_is_taken_down(server, workflow):
    def post(path):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", path)
        reply = connection.getresponse()
        return reply.status, reply.read()

    assert post("/fewstep/language/zh") == (200, b'{"language": "zh"}')
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
