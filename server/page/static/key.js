// @ts-check
/** The server's API key, where it wants one: asked for once, kept by the browser. */

import { button, el } from "./dom.js";
import { readText, writeText } from "./storage.js";
import { t } from "./text.js";

const NAME = "halfbyte.key";
/** What a header can carry; with another key no request could be sent at all. */
const SENDABLE = /^[\x21-\x7e]+$/;
const state = {
  key: "",
  read: false,
  declined: false,
  asking: /** @type {Promise<boolean> | null} */ (null),
};

/** The key, empty when there is none. */
export function apiKey() {
  if (!state.read) {
    state.read = true;
    state.key = readText("localStorage", NAME);
  }
  return state.key;
}

/** Forget the key, here and in the browser's storage; the next message asks for one. */
export function forgetKey() {
  state.declined = true;
  keep("");
}

/** Let the next refusal ask again, though the user has declined before. */
export function mayAskAgain() {
  state.declined = false;
}

/**
 * Ask for the key. Refusals that come while the dialog is open wait for the same answer.
 *
 * @param {string} refused the key that the server did not take.
 * @returns {Promise<boolean>} whether there is another key to try.
 */
export function askKey(refused) {
  if (refused !== apiKey()) return Promise.resolve(true);
  if (state.declined) return Promise.resolve(false);
  state.asking ??= ask(refused !== "").finally(() => {
    state.asking = null;
  });
  return state.asking;
}

/** @param {boolean} again */
function ask(again) {
  const input = /** @type {HTMLInputElement} */ (
    el("input", { id: "key-input", type: "password", autocomplete: "off", spellcheck: "false" })
  );
  return new Promise((resolve) => {
    const dialog = /** @type {HTMLDialogElement} */ (
      el("dialog", { class: "small-dialog", "aria-labelledby": "key-title" })
    );
    const why = el("p", {});
    const explain = (/** @type {boolean} */ refused) => why.replaceChildren(
      el("span", { class: refused ? "field-error" : "hint", role: refused ? "alert" : null },
        t(refused ? "key.refused" : "key.why")));
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (SENDABLE.test(key)) dialog.close("use");
      else if (key) explain(true);
    };
    explain(again);
    dialog.append(
      el("form", { on: { submit } },
        el("h2", { id: "key-title", text: t("key.title") }),
        why,
        el("label", { for: "key-input", text: t("key.label") }),
        input,
        el("div", { class: "row end" },
          button(t("key.cancel"), () => dialog.close("")),
          el("button", { type: "submit", class: "primary", text: t("key.use") }))),
    );
    dialog.addEventListener("close", () => {
      const use = dialog.returnValue === "use";
      if (use) keep(input.value.trim());
      state.declined = !use;
      dialog.remove();
      resolve(use);
    });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}

/** @param {string} key */
function keep(key) {
  state.key = key;
  writeText("localStorage", NAME, key);
}
