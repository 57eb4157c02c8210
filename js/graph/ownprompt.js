// A graph that draws a picture with a run's LoRA, made from the graph that the run was queued with: in API
// format, as the server runs it. Nothing on the user's canvas takes part.

import { LOAD_LORA, PROMPTS } from "../names.js";

const MADE = "fewstep-sample";
const ENCODE = "CLIPTextEncode";
const TEXT = /^(user_)?(text|string|prompt|value|t5xxl|mt5xl|bert|llama|clip_[lgh])(_?[a-z0-9])?$/;

const isLink = (value) => Array.isArray(value) && value.length === 2;

/**
 * { prompt, node }: what to queue, and the node that shows the picture; null where the kept graph lacks what
 * is needed. text: "" for the run's own prompts, which is all that there is where no text encoder is found.
 */
export function samplingGraph(stored, lora, text, seed) {
  const given = stored.prompt[stored.node]?.inputs ?? {};
  const { model, positive, negative, latent, vae } = given;
  if (![model, positive, negative, latent, vae].every(isLink) || !isWhole(given)) {
    return null;
  }
  const prompt = { ...stored.prompt };
  delete prompt[stored.node];
  const add = (type, inputs) => {
    const id = `${MADE}-${Object.keys(prompt).length}`;
    prompt[id] = { class_type: type, inputs };
    return id;
  };
  const own = text ? saying(prompt, positive, text, add) : null;
  const loader = add(LOAD_LORA, { model, lora_name: lora, strength: 1 });
  const samples = add("SamplerCustom", {
    model: [loader, 0], add_noise: true, noise_seed: seed, cfg: [loader, 3],
    positive: own ?? positive, negative, sampler: [loader, 1], sigmas: [loader, 2], latent_image: latent,
  });
  const images = add("VAEDecode", { samples: [samples, 0], vae });
  return { prompt, node: add("PreviewImage", { images: [images, 0] }) };
}

/** Whether a LoRA is for the whole way from noise to picture: with one for a part another model draws too. */
const isWhole = ({ from_percent: from = 0, to_percent: to = 1 }) => from === 0 && to === 1;

/** Whether a prompt of the user's own can take the place of the run's. */
export function takesText(stored) {
  const positive = stored.prompt[stored.node]?.inputs.positive;
  return isLink(positive) && saying(stored.prompt, positive, "", () => "") !== null;
}

/**
 * The link of a conditioning that says `text`: the nodes from its encoder on, copied; where several
 * conditionings are joined, the first alone. Null where no encoder is found.
 */
function saying(prompt, [id, slot], text, add) {
  const node = prompt[id];
  if (!node) {
    return null;
  }
  if (isLink(node.inputs.clip)) {
    return encoding(node, slot, text, add);
  }
  const feeds = Object.entries(node.inputs).filter(([, value]) => isLink(value));
  const found = feeds
    .map(([name, value]) => [name, saying(prompt, value, text, add)])
    .filter(([, link]) => link);
  if (found.length !== 1) {
    return found[0]?.[1] ?? null;
  }
  return [add(node.class_type, { ...node.inputs, [found[0][0]]: found[0][1] }), slot];
}

function encoding(node, slot, text, add) {
  if (node.class_type === PROMPTS) {
    return [add(ENCODE, { clip: node.inputs.clip, text }), 0];
  }
  const texts = Object.keys(node.inputs).filter((name) => TEXT.test(name)).map((name) => [name, text]);
  if (!texts.length) {
    return null;
  }
  return [add(node.class_type, { ...node.inputs, ...Object.fromEntries(texts) }), slot];
}
