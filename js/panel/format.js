// Numbers of a run as people read them.

import { RESTORATION } from "../names.js";
import { language, t } from "../text.js";

const GIB = 2 ** 30;
const NOTHING = "–";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const MOMENT = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
let clock = null;       // slow to make

export function timeLeft(seconds) {
  if (!Number.isFinite(seconds)) {
    return "";
  }
  if (seconds < 60) {
    return t("panel.left.soon");
  }
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) {
    return t("panel.left.minutes", { minutes });
  }
  const hours = Math.floor(minutes / 60);
  if (hours < 24) {
    return t("panel.left.hours", { hours, minutes: minutes % 60 });
  }
  const all = Math.round(minutes / 60);
  return t("panel.left.days", { days: Math.floor(all / 24), hours: all % 24 });
}

export function memory(bytes) {
  if (!Number.isFinite(bytes)) {
    return NOTHING;
  }
  const gib = bytes / GIB;
  return `${gib.toFixed(gib < 1 ? 2 : gib < 100 ? 1 : 0)} GiB`;
}

/** Three digits that mean something: 0.0312, 7.1, 240, 2.5e-5. */
export function short(value) {
  if (!Number.isFinite(value)) {
    return NOTHING;
  }
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) {
    return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  }
  return String(size >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}

export const percent = (part) => (Number.isFinite(part) ? `${Math.round(100 * part)} %` : NOTHING);

/** A share with as many digits as an interval of it has use for: 0.031. */
export const inShares = (value) => value.toFixed(3);

/** "0.031 (0.022–0.040)" of a point [update, value, low, high]; words: a number in words. */
export function range(point, words = inShares) {
  const [, value, low, high] = point ?? [];
  return Number.isFinite(value) ? `${words(value)} (${words(low)}–${words(high)})` : NOTHING;
}

/** The point of a face of quality at the update that is kept, else the last; undefined without one. */
export const pointOf = (run, face) =>
  run[face]?.find(([update]) => update === run.kept) ?? run[face]?.at(-1);

export function whole(value) {
  return Number.isFinite(value) ? WHOLE.format(value) : NOTHING;
}

export function when(seconds) {
  clock ??= new Intl.DateTimeFormat(language(), MOMENT);
  return Number.isFinite(seconds) ? clock.format(1000 * seconds) : "";
}

export function steps(count) {
  return t(count === 1 ? "panel.steps.one" : "panel.steps.many", { count });
}

/** The text of a word that the server sent ("training", "phased"), or the word itself where there is none. */
export function word(room, name) {
  const key = `panel.${room}.${name}`;
  const text = t(key);
  return text === key ? String(name ?? "") : text;
}

export function modelName(run) {
  return (run.model ?? "").replace(/\.(safetensors|sft|gguf|ckpt|pt)$/, "");
}

/** Whether the distance of distributions decides which adapter is kept, and not the same noise's. */
export const byDistribution = (run) => run.judged_by === "distance" && Boolean(run.distance?.length);

/**
 * { best, before, apart } of what decides which adapter is kept:
 * of the distance of distributions, or fidelity. best is null as
 * long as nothing is kept; apart: whether their intervals are.
 */
export function judged(run) {
  if (!byDistribution(run)) {
    return { best: run.best, before: run.before, apart: true };
  }
  const kept = run.distance.find(([update]) => update === run.kept);
  const first = run.distance[0][0] === 0 ? run.distance[0] : null;
  const apart = Boolean(kept && first) && (kept[3] < first[2] || kept[2] > first[3]);
  return { best: kept?.[1] ?? null, before: first?.[1] ?? null, apart };
}

/** Whether a run has come nearer than what it began with; true as long as that is not known to be false. */
export function gained(run) {
  const { best, before, apart } = judged(run);
  return !Number.isFinite(best) || !Number.isFinite(before) || !apart || best < before;
}

/** What a picture of that update is called. */
export const nameOf = (run, update) =>
  t(update === run.kept ? "panel.picture_kept" : "panel.picture_at", { update: whole(update) });

export const restores = (run) => run.method === RESTORATION;

/**
 * The words of that key: others for a run that learns to
 * restore, and so from whole pictures and not from a teacher,
 * and for one that is judged by the distribution of its pictures.
 */
export function wordsOf(run, key, values) {
  if (restores(run)) {
    return t(`panel.restoring.${key}`, values);
  }
  return t(byDistribution(run) ? `panel.matching.${key}` : `panel.learning.${key}`, values);
}

/** "phased · 4 steps" */
export function recipe(run) {
  const many = Number.isFinite(run.steps) ? steps(run.steps) : "";
  return [word("methods", run.method), many].filter(Boolean).join(" · ");
}

export function about(run) {
  return [recipe(run), modelName(run)].filter(Boolean).join(" · ");
}
