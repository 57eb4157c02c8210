// The server's routes, with errors in the user's language.

import { ROUTE } from "../names.js";
import { t } from "../text.js";

/** JSON from a path below the pack's own. Throws an Error whose message can be shown. */
export async function ask(api, path, options = {}) {
  let answer;
  try {
    answer = await api.fetchApi(`${ROUTE}/${path}`, options);
  } catch {
    throw new Error(t("panel.errors.unreachable"));
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) {
    throw new Error(explain(body?.error));
  }
  if (body === null) {
    throw new Error(t("panel.errors.unreachable"));
  }
  return body;
}

function explain(error) {
  if (!error?.code) {
    return t("panel.errors.unreachable");
  }
  const key = `panel.errors.${error.code}`;
  const text = t(key, { message: error.message });
  return text === key ? error.message ?? error.code : text;
}

export const tell = (api, id, order) => ask(api, `runs/${id}/${order}`, { method: "POST" });

export const picture = (api, id, column) => api.apiURL(`${ROUTE}/runs/${id}/preview/${column}`);
