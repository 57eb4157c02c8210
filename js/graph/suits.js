// Whether what a graph does can be made few-step, and whether that helps: refusals and questions, before
// anything is changed.

import { isOurs, LOAD_LORA } from "../names.js";
import { t } from "../text.js";
import { widgetOf } from "./nodes.js";
import { TEXT_ONLY } from "./prompts.js";
import { aboveOf, inputType, sourceOf, wiredOf, worthOf } from "./queued.js";

const PICTURES = ["IMAGE", "VIDEO"];
const FEW = 8;                                     // steps, at most, of a model that is few-step at CFG 1
const RECIPE = "fewstep.recipe";                   // in the metadata of our LoRA files
const MODEL_FILE = /\.(safetensors|sft|ckpt|gguf|pth?|bin)$/i;
// the last hint: what the makers of few-step models and of their LoRAs call them
const ACCELERATOR = new RegExp([
  "lightning", "lightx2v", "hyper[-_ ]?(sd|flux)", "(^|[-_. \\\\/])lcm", "turbo", "dmd", "distill", "causvid",
  "fastwan", "schnell", "pusa", "(self|causal)[-_ ]?forcing", "\\d[-_ ]?steps?(?![a-z])",
  "flash[-_ ]?(sd|lora)",
].join("|"), "i");
const FEW_STEP_MODEL = new RegExp([
  "lightning", "lightx2v", "(^|[-_. \\\\/])lcm", "turbo", "dmd", "distill", "schnell", "causvid",
  "fastwan", "(self|causal)[-_ ]?forcing", "klein(?!.*base)",
].join("|"), "i");
// conditioning that stands for a part of the picture or of the way: training would leave it out
const PARTIAL = /^Conditioning(Set(Area|Mask|Timestep)|TimestepsRange)|^(Pair|Set|Cond)Cond|GLIGEN|Hook/i;
const STEERS = ["CONTROL_NET", "GLIGEN", "HOOKS", "HOOK_KEYFRAMES"];
// patches of a model that change its guidance: the teacher keeps them, what is trained runs without guidance
const GUIDES = /cfg|guidance|thresholding|perpneg|^apg$|stg$|mahiro|fresca|rescal|perturbed|epsilon/i;
const SKIPS = /cache/i;                            // patches that skip work: neither trains with them
const LOADS = /load|lora|merge/i;

/** Whether a node of the chain changes guidance. */
export const guides = (queued, id) => GUIDES.test(queued.get(id).type) && !LOADS.test(queued.get(id).type);

/** Whether a node of the chain is left out of what is trained. */
export function isLeftOut(queued, id) {
  const { type } = queued.get(id);
  const skips = SKIPS.test(type) && !LOADS.test(type);
  return type === LOAD_LORA || skips || guides(queued, id) || isTrainedHere(queued, id);
}

/** Whether a node applies a LoRA that one of ours trains in this graph. */
function isTrainedHere(queued, id) {
  return wiredOf(queued, id, "LORA_MODEL").some((name) =>
    isOurs(queued.get(sourceOf(queued, id, name)?.id)?.type ?? ""));
}

// ---- refusals --------------------------------------------------------------------------------------

/** Why it can't be made few-step, in words; null where it can. */
export function refusalOf(reading) {
  const { queued, becomes } = reading;
  const other = becomes.filter((type) => !PICTURES.includes(type));
  if (other.length) {
    const made = becomes.length > other.length ? "graph.madeBeside" : "graph.made";
    return t(made, { made: other.join(", ").toLowerCase() });
  }
  const steering = conditioningOf(reading).find((id) => isSteering(queued, id));
  if (steering) {
    return t("graph.steered", { name: queued.get(steering).node.title });
  }
  if (!conditioningOf(reading).some((id) => bringsSomething(queued, id))) {
    return t("graph.noPrompt");
  }
  return null;
}

/** The nodes that make the conditioning of both kinds. */
function conditioningOf({ queued, positive, negative }) {
  return aboveOf(queued, [positive, negative].filter(Boolean).map(({ id }) => id), ["CONDITIONING"]);
}

function isSteering(queued, id) {
  const { type, inputs } = queued.get(id);
  const partial = PARTIAL.test(type) || ("start_percent" in inputs && "end_percent" in inputs);
  return wiredOf(queued, id, ...STEERS).length > 0 || partial;
}

/** Whether a node brings a prompt or a picture into the conditioning, and not always the same. */
const bringsSomething = (queued, id) => isOurs(queued.get(id).type)
  || wiredOf(queued, id).some((name) => inputType(queued, id, name) !== "CONDITIONING");

/** The nodes that bring more than text into the conditioning: pictures, latents, sound, ... */
export function carriersOf(reading) {
  const { queued } = reading;
  return conditioningOf(reading).filter((id) =>
    wiredOf(queued, id).some((name) => !TEXT_ONLY.includes(inputType(queued, id, name))));
}

// ---- questions -------------------------------------------------------------------------------------

/** Why the model needs few steps already, in words; null where it does not. */
export async function fewStepReason(app, api, reading) {
  const { queued, chain, steps, cfg } = reading;
  const patches = chain.slice(1).map(({ id }) => id);
  const accelerator = acceleratorOf(reading);
  if (accelerator) {
    return t("graph.fewLora", { name: nameOf(accelerator) });
  }
  if (steps <= FEW && cfg <= 1) {
    return t("graph.fewSteps", { steps, cfg });
  }
  const ours = await withRecipe(api, queued, patches);
  if (ours) {
    return t("graph.fewLora", { name: nameOf(ours) });
  }
  const loader = queued.get(chain[0].id);
  const files = Object.values(loader.inputs).filter((one) => typeof one === "string" && MODEL_FILE.test(one));
  const telling = files.find((file) => FEW_STEP_MODEL.test(nameOf(file)));
  return telling ? t("graph.fewName", { name: nameOf(telling) }) : null;
}

/** The file of the first LoRA of the chain that makes its model few-step already, by its name. */
export const acceleratorOf = ({ queued, chain }) =>
  chain.slice(1).flatMap(({ id }) => lorasOf(queued, id)).find((file) => ACCELERATOR.test(nameOf(file)));

export const nameOf = (file) => file.split(/[\\/]/).at(-1).replace(MODEL_FILE, "");

/** The files of a node that loads LoRAs onto the model, those that have an effect. */
function lorasOf(queued, id) {
  const { inputs } = queued.get(id);
  const strength = worthOf(queued, id, "strength_model" in inputs ? "strength_model" : "strength");
  const names = Object.keys(inputs).filter((name) => /lora/i.test(name));
  const values = names.map((name) => worthOf(queued, id, name));
  const files = values.map((value) => (value?.lora && value.on !== false ? value.lora : value));
  return strength === 0 ? [] : files.filter((file) => typeof file === "string" && MODEL_FILE.test(file));
}

/** The first LoRA of the chain in whose file our recipe lies. */
async function withRecipe(api, queued, patches) {
  const isListed = (id, name) =>
    widgetOf(queued.get(id).node, "lora_name")?.options?.values?.includes?.(name);
  const listed = patches.flatMap((id) => lorasOf(queued, id).filter((name) => isListed(id, name)));
  const has = await Promise.all(listed.map(async (name) => {
    const reply = await api.fetchApi(`/view_metadata/loras?filename=${encodeURIComponent(name)}`);
    return reply.ok && RECIPE in (await reply.json().catch(() => ({})));
  }));
  return listed.find((_, i) => has[i]) ?? null;
}
