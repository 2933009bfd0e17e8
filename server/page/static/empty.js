// @ts-check
/** What a conversation without messages shows. */

import { button, el } from "./dom.js";
import { t } from "./text.js";

const TRIES = ["explain", "code", "table", "maths"];
const KEYS = ["send", "break", "stop", "new", "search"];

/**
 * @param {import("./settings.js").Model | undefined} model
 * @param {(text: string) => void} onTry told the text of a suggestion.
 * @returns {HTMLElement}
 */
export function emptyState(model, onTry) {
  const context = model?.max_model_len;
  return el("div", { class: "empty" },
    el("h2", { text: model?.id ?? t("empty.no_model") }),
    el("p", { class: "lead" }, t("empty.what"),
      context ? ` ${t("empty.context", { count: context })}` : null),
    el("ul", { class: "tries" }, ...TRIES.map((name) => {
      const text = t(`empty.try_${name}`);
      return el("li", {}, button(text, () => onTry(text), { class: "try" }));
    })),
    el("dl", { class: "keys" }, ...KEYS.map((name) => el("div", {},
      el("dt", {}, ...t(`empty.key_${name}`).split("+").map((key) => el("kbd", { text: key }))),
      el("dd", { text: t(`empty.does_${name}`) })))));
}
