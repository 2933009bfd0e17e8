// @ts-check
/** The box that messages are written in. */

import { button, el, isComposing } from "./dom.js";
import { icon } from "./icons.js";
import { readText, writeText } from "./storage.js";
import { t } from "./text.js";

/** What is written and not sent lasts as long as the tab. */
const DRAFT = "halfbyte.draft";

/**
 * @param {{onSend: (text: string) => boolean, onStop: () => void, onModel: () => void}} actions
 *   `onSend` says whether the message was taken; if not, the text stays.
 */
export function composer({ onSend, onStop, onModel }) {
  const box = /** @type {HTMLTextAreaElement} */ (
    el("textarea", { id: "message", class: "grows", rows: 1, dir: "auto", "aria-label":
      t("chat.message"), placeholder: t("chat.placeholder"), "aria-describedby": "message-wrong" })
  );
  const wrong = el("p", { id: "message-wrong", class: "field-error", role: "alert" });
  const send = el("button", { type: "submit", class: "primary round", "aria-label": t("chat.send"),
    title: t("chat.send") }, icon("send"));
  const stop = button(t("chat.stop"), onStop, {
    icon: icon("stop"),
    class: "primary round stop",
  });
  const model = button("", onModel, { class: "quiet model", title: t("chat.choose_model") });
  const element = el("form", { class: "composer", on: { submit: sendIt } },
    box, el("div", { class: "composer-row" }, model, stop, send), wrong);
  let busy = false;
  box.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    sendIt(event);
  });
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy && !isComposing(event)) onStop();
  });
  if (!CSS.supports("field-sizing", "content")) box.addEventListener("input", grow);
  setBusy(false);
  box.value = readText("sessionStorage", DRAFT);
  box.addEventListener("input", () => writeText("sessionStorage", DRAFT, box.value));

  /** @param {Event} event */
  function sendIt(event) {
    event.preventDefault();
    if (busy || !box.value.trim()) return;
    wrong.textContent = "";
    if (onSend(box.value)) setText("");
  }

  function grow() {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight}px`;
  }

  /** @param {string} text */
  function setText(text) {
    box.value = text;
    box.dispatchEvent(new Event("input"));
  }

  /** @param {boolean} answering */
  function setBusy(answering) {
    const { activeElement: active } = document;
    // The button that asked for another answer has gone with the one before.
    const lost = answering && active === document.body;
    const hadFocus = active === send || active === stop || lost;
    busy = answering;
    send.hidden = answering;
    stop.hidden = !answering;
    if (hadFocus) (answering ? stop : box).focus();
  }

  return {
    element,
    setText,
    setBusy,
    focus: () => box.focus(),

    /** @param {string} name */
    setModel(name) {
      model.textContent = name;
    },

    /** @param {string} message why the text was not sent. */
    refuse(message) {
      wrong.textContent = message;
    },
  };
}
