// @ts-check
/** The tooltip of a token: its probability, and what the model might have written instead. */

import { el } from "./dom.js";
import { surprise } from "./probability.js";
import { percent, tokenText } from "./token_text.js";
import { number, t } from "./text.js";

const GAP = 4;
/** Alternatives that are shown. */
const MOST = 5;
let made = 0;

/** One tooltip, shown beside one token at a time, above everything else on the page. */
export class Tip {
  /** @type {HTMLElement | null} */
  #anchor = null;
  #shown = new AbortController();

  constructor() {
    made += 1;
    this.element = el("div", {
      class: "tokens-tip", role: "tooltip", popover: "manual", id: `tokens-tip-${made}`,
    });
  }

  /** Whether it is to be seen. */
  get open() {
    return this.#anchor !== null;
  }

  /**
   * Show it at a token in place of any other.
   *
   * @param {HTMLElement} anchor
   * @param {import("./record.js").Token} token
   */
  show(anchor, token) {
    if (anchor === this.#anchor) return;
    this.hide();
    this.element.replaceChildren(...facts(token));
    anchor.setAttribute("aria-describedby", this.element.id);
    anchor.classList.add("token-shown");
    this.#anchor = anchor;
    this.#shown = new AbortController();
    this.element.showPopover();
    this.#place();
    const options = { capture: true, passive: true, signal: this.#shown.signal };
    document.addEventListener("scroll", () => this.#place(), options);
    window.addEventListener("resize", () => this.#place(), options);
  }

  /** Hide it. */
  hide() {
    if (!this.#anchor) return;
    this.#shown.abort();
    this.#anchor.removeAttribute("aria-describedby");
    this.#anchor.classList.remove("token-shown");
    this.#anchor = null;
    if (this.element.isConnected) this.element.hidePopover();
  }

  /** Above the token, where it hides nothing of what is read next; below when there is no room. */
  #place() {
    if (!this.#anchor?.isConnected) return this.hide();
    const at = this.#anchor.getClientRects()[0] ?? this.#anchor.getBoundingClientRect();
    const { width, height } = this.element.getBoundingClientRect();
    const above = at.top - height - GAP;
    const most = document.documentElement.clientWidth - width - GAP;
    this.element.style.left = `${Math.max(GAP, Math.min(at.left, most))}px`;
    this.element.style.top = `${above >= GAP ? above : at.bottom + GAP}px`;
  }
}

/**
 * What is told of a token.
 *
 * @param {import("./record.js").Token} token
 * @returns {HTMLElement[]}
 */
function facts({ text, logprob, top }) {
  const bits = surprise(logprob);
  const known = logprob === null || bits === null
    ? t("tokens.unknown")
    : t("tokens.probability", { percent: percent(Math.exp(logprob)), bits: number(bits, 2) });
  const head = el("p", { class: "tokens-tip-head" }, tokenText(text), " ", known);
  if (!top.length) return [head];
  const rows = top.slice(0, MOST).map((one) => alternative(one, one.text === text));
  const caption = el("caption", { text: t("tokens.alternatives") });
  return [head, el("table", {}, caption, el("tbody", {}, ...rows))];
}

/**
 * @param {import("./record.js").Rated} one
 * @param {boolean} chosen
 */
function alternative({ text, logprob }, chosen) {
  const share = logprob === null ? 0 : Math.exp(logprob);
  const bar = el("span", { class: "tokens-bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", String(share));
  const sign = chosen ? el("span", { class: "tokens-chosen", text: t("tokens.chosen") }) : null;
  return el("tr", {},
    el("th", { scope: "row" }, tokenText(text), " ", sign), " ",
    el("td", { text: logprob === null ? t("tokens.unknown") : percent(share) }),
    el("td", { "aria-hidden": "true" }, bar));
}
