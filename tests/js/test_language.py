"""js/language.js and js/text.js: what is shown and told in the user's language."""

import json
from pathlib import Path

from fewstep.tests.js.plots import node

LOCALES = Path(__file__).parent.parent.parent / "locales"
SCRIPT = """
import { tellServer, translateChoices } from "./js/language.js";
import { loadText, t } from "./js/text.js";
const asked = [];
async function fetchApi(path, options) {
  asked.push([path, options?.method ?? "GET"]);
  return { json: async () => data.all };
}
const api = { fetchApi };
const words = await loadText(api, data.locale);
await tellServer(api, data.locale);
translateChoices(data.definition, words);
answer({ asked, definition: data.definition, known: t("panel.buttons.stop"),
         filled: t("panel.steps.many", { count: 3 }),
         missing: t("panel.nothing.there") });
"""


def schedule(tooltip):
    """The definition of FewstepSchedule, as far as the frontend's own has it."""
    options = [
        {"key": "uniform", "inputs": {"required": {}}},
        {"key": "karras", "inputs": {"required": {"rho": ["FLOAT", {"default": 7, "tooltip": tooltip}]}}},
    ]
    return {
        "name": "FewstepSchedule",
        "input": {
            "required": {
                "model": ["MODEL", {"tooltip": "m"}],
                "steps": ["INT"],
                "schedule": ["COMFY_DYNAMICCOMBO_V3", {"options": options}],
                "kind": ["COMBO", {"options": ["a", "b"]}],
            }
        },
    }


def read(language, file):
    return json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))


def shown(tmp_path, locale):
    every = {name: {**read(name, "main"), "nodeDefs": read(name, "nodeDefs")} for name in ("en", "zh")}
    return node(tmp_path, SCRIPT, {"all": every, "locale": locale, "definition": schedule("English")})


def test_tooltips_of_choices_and_texts_are_in_the_users_language(tmp_path):
    for locale in ("zh", "zh-TW"):
        found = shown(tmp_path, locale)
        wanted = schedule(read("zh", "nodeDefs")["FewstepSchedule"]["inputs"]["schedule_rho"]["tooltip"])
        assert found["definition"] == wanted
        assert (
            found["known"] == read("zh", "main")["fewstep"]["panel"]["buttons"]["stop"]
            and found["filled"] == "3 步"
        )
        assert found["asked"] == [["/i18n", "GET"], [f"/fewstep/language/{locale}", "POST"]]


def test_a_language_without_words_shows_english(tmp_path):
    found = shown(tmp_path, "fr")
    assert found["known"] == "Stop and keep" and found["missing"] == "panel.nothing.there"
    wanted = read("en", "nodeDefs")["FewstepSchedule"]["inputs"]["schedule_rho"]["tooltip"]
    assert found["definition"] == schedule(wanted)
