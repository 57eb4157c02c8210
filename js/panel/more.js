// What is looked at now and then, folded below a run: a picture of one's own prompt, another run to compare
// with, the settings that it really has, what happened on the way, its name and its files.

import { button, make, say } from "../dom.js";
import { t } from "../text.js";
import { fold } from "./fold.js";
import { short, when, whole } from "./format.js";
import { ask } from "./routes.js";
import { makeSampleNow } from "./samplenow.js";

const NAME = 200;      // characters, as the server takes

/** {element, show(run)} */
export function makeMore(app, api, store) {
  const parts = [
    makeSampleNow(app, api),
    makeCompare(store),
    makeSettings(api),
    makeLog(),
    makeFiles(api, store),
  ];
  const element = make("div", "more", {}, ...parts.map((part) => part.element));
  return { element, show: (run) => parts.forEach((part) => part.show(run)) };
}

function makeCompare(store) {
  const select = make("select", "select", { "aria-label": t("panel.more.compare") });
  const { element } = fold("compare", () => {}, select);
  select.addEventListener("input", () => store.compare(select.value || null));
  return {
    element,
    show(run) {
      const others = store.runs.filter((one) => one.id !== run.id && one.previews?.length);
      element.hidden = !others.length;
      const wanted = ["", ...others.map((one) => one.id)];
      if (String(wanted) !== String([...select.options].map((option) => option.value))) {
        const named = others.map((one) =>
          make("option", "", { value: one.id }, `${one.name} · ${when(one.started_at)}`));
        select.replaceChildren(make("option", "", { value: "" }, t("panel.more.none")), ...named);
      }
      select.value = store.other.id ?? "";
    },
  };
}

/** Setting -> its value in words. Those of the trainer's own, such as chunk, are left out. */
const SETTINGS = {
  steps: whole,
  cfg: short,
  updates: whole,
  batch: whole,
  images: whole,
  rank: whole,
  layers: String,
  lr: short,
  shift: short,
  phases: whole,
  seed: String,
};

function makeSettings(api) {
  const list = make("dl", "facts");
  const plan = make("p", "muted");
  const { element } = fold("settings", load, list, plan);
  let [run, loaded] = [null, null];

  async function load() {
    if (!run || loaded === run.id) {
      return;
    }
    loaded = run.id;
    const found = await ask(api, `runs/${run.id}/settings`).catch(() => ({ settings: {} }));
    if (loaded === run.id) {
      list.replaceChildren(...cells(found.settings));
    }
  }

  return {
    element,
    show(newRun) {
      if (newRun.id !== run?.id) {
        loaded = null;
        list.replaceChildren();
      }
      run = newRun;
      say(plan, run.plan ?? "");
      if (element.open) {
        load();
      }
    },
  };
}

function cells(settings) {
  const layers = [...(settings.include ?? []), ...(settings.exclude ?? []).map((one) => `-${one}`)];
  const all = { ...settings, layers: layers.join(", ") || "*" };
  return Object.keys(SETTINGS).filter((name) => all[name] !== null && all[name] !== undefined).map((name) =>
    make("div", "fact", {},
      make("dt", "", {}, t(`panel.settings.${name}`)), make("dd", "number", {}, SETTINGS[name](all[name]))));
}

function makeLog() {
  const list = make("ol", "log");
  const { element, title } = fold("log", () => {}, list);
  return {
    element,
    show({ log = [] }) {
      element.hidden = !log.length;
      say(title, `${t("panel.more.log")} (${log.length})`);
      list.replaceChildren(...log.map(({ at, update, message }) =>
        make("li", "", {}, make("span", "muted", {}, `${when(at)} · ${whole(update)}`), ` ${message}`)));
    },
  };
}

function makeFiles(api, store) {
  const name = make("input", "field", { type: "text", maxLength: NAME, "aria-label": t("panel.more.name") });
  const keys = choice(t("panel.more.keys"), {
    comfyui: t("panel.keys.comfyui"),
    diffusers: t("panel.keys.diffusers"),
  });
  const precision = choice(t("panel.more.precision"), {
    fp16: t("panel.precision.fp16"),
    bf16: t("panel.precision.bf16"),
    fp32: t("panel.precision.fp32"),
  });
  const message = make("p", "message", { role: "status", "aria-live": "polite" });
  const path = make("code", "path");
  const rename = button(t("panel.more.rename"), () => perform(async () => {
    await post(`rename?name=${encodeURIComponent(name.value)}`);
    await store.load();
    return "";
  }));
  const write = button(t("panel.more.export"), () => perform(async () => {
    const { file } = await post(`export?to=${keys.value}&precision=${precision.value}`);
    return t("panel.more.exported", { file });
  }));
  const exporting = make("div", "line", {}, keys, precision, write);
  const named = make("div", "line", {}, name, rename);
  const where = make("p", "muted", {}, t("panel.more.folder"));
  const { element } = fold("files", load, named, exporting, message, where, path);
  let run = null;

  const post = (order) => ask(api, `runs/${run.id}/${order}`, { method: "POST" });

  async function perform(act) {
    message.classList.remove("fewstep-bad");
    try {
      say(message, await act());
    } catch (error) {
      say(message, error.message);
      message.classList.add("fewstep-bad");
    }
  }

  async function load() {
    const asked = run.id;
    const found = await ask(api, `runs/${asked}/settings`).catch(() => ({ folder: "" }));
    if (asked === run.id) {
      say(path, found.folder);
    }
  }

  name.addEventListener("keydown", (event) => event.stopPropagation());
  return {
    element,
    show(newRun) {
      if (newRun.id !== run?.id) {
        name.value = newRun.name;
        say(message, "");
        say(path, "");
        element.open = false;
      }
      run = newRun;
      exporting.hidden = !run.lora;
    },
  };
}

/** A select with that label: { value: text }. */
function choice(label, texts) {
  const options = Object.entries(texts).map(([value, text]) => make("option", "", { value }, text));
  return make("select", "select", { "aria-label": label }, ...options);
}
