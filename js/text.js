// The texts of the pack's own interface, from locales/<language>/main.json
// under "fewstep"; English where a language lacks one.
//
//   await loadText(api, locale)      once, before anything is drawn; answers that language's words for nodes
//   t("panel.step", { done: 3 })     "step {done}" -> "step 3"; an unknown key answers itself

let english = {};
let words = {};
let tongue = "en";

/** The language shown, as Intl knows it. */
export const language = () => tongue;

export async function loadText(api, locale = "en") {
  const all = await (await api.fetchApi("/i18n")).json();
  const known = [locale, locale.split("-")[0]].find((name) => all[name]?.fewstep) ?? "en";
  tongue = known;
  english = all.en?.fewstep ?? {};
  words = all[known]?.fewstep ?? {};
  return all[known]?.nodeDefs ?? {};
}

export function t(key, values = {}) {
  const find = (tree) => key.split(".").reduce((node, part) => node?.[part], tree);
  const text = find(words) ?? find(english) ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** What a choice of a node's list is called, null where the language has no word of its own. */
export function wordOf(choice) {
  return Object.hasOwn(words.choices ?? {}, choice) ? words.choices[choice] : null;
}
