// @ts-check
/** What the page adds to rendered answers: copy buttons, and boxes for what is too wide. */

import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./text.js";

/**
 * Add a copy button to each block of code, and let wide parts be scrolled by keyboard.
 *
 * @param {Element} block HTML of the server.
 */
export function decorate(block) {
  for (const pre of block.querySelectorAll("pre.code")) {
    const code = pre.querySelector("code");
    if (!code) continue;
    code.tabIndex = 0;
    const copy = button(t("code.copy"), () => copyFrom(copy, code.textContent ?? ""), {
      icon: icon("copy"),
      class: "quiet",
    });
    const language = pre.getAttribute("data-language") ?? "";
    pre.prepend(el("span", { class: "code-head", "data-name": language }, copy));
  }
  for (const table of block.querySelectorAll("table")) {
    const box = el("div", { class: "table-box", tabindex: "0" });
    table.replaceWith(box);
    box.append(table);
  }
}

/**
 * Copy a text, and say on the button whether that worked.
 *
 * @param {HTMLButtonElement} from
 * @param {string} text
 */
export async function copyFrom(from, text) {
  const done = await copyText(text);
  from.dataset.said = t(done ? "code.copied" : "code.not_copied");
  setTimeout(() => delete from.dataset.said, 1500);
}

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether the browser took it.
 */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that came over plain HTTP from another machine have no clipboard of that kind.
    const area = /** @type {HTMLTextAreaElement} */ (el("textarea", { class: "unseen" }));
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
