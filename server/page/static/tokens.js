// @ts-check
/**
 * An answer's tokens, each coloured and underlined by its surprise. What is pointed at, by a
 * mouse, a finger or the keyboard, tells its probability and what might have been written instead.
 *
 * The tokens are a listbox: one stop of the Tab key, arrow keys inside of it. All of them share the
 * listeners of the view and one tooltip, so that 10 000 tokens cost little more than their text.
 */

import { Cursor } from "./cursor.js";
import { el } from "./dom.js";
import { LEVELS, levelRange, surpriseLevel } from "./probability.js";
import { Tip } from "./tip.js";
import { tokenName, withoutMark } from "./token_text.js";
import { number, t } from "./text.js";

/** @typedef {import("./record.js").Token} Token */

/** Milliseconds of work in one go: less than a frame. */
const SLICE_MS = 8;
/** Tokens after which a line ends where none of them breaks it: laying it out takes too long. */
const LINE = 250;

/**
 * The view of an answer's tokens, with a legend. Many tokens come into it little by little.
 *
 * @param {Token[]} tokens
 * @param {{mark?: number, label?: string}} [options] `mark`: index of the token to point out, where
 *   two answers part; `label`: accessible name of the list.
 * @returns {HTMLElement}
 */
export function tokenView(tokens, { mark = -1, label = t("tokens.label") } = {}) {
  const props = { class: "tokens-list", role: "listbox", "aria-label": label, dir: "auto" };
  const list = el("div", props);
  const tip = new Tip();
  const cursor = new Cursor();
  const view = el("div", { class: "tokens" }, legend(), list, tip.element);
  fill(list, tokens, (token, index) => {
    const span = tokenSpan(token, index === mark);
    cursor.add(span);
    if (index === mark) cursor.reached(index);
    return span;
  });
  listen(view, cursor, tip, (index) => tip.show(cursor.item(index), tokens[index]));
  return view;
}

/**
 * Fill a list line by line. Each line is a block of its own, which the browser neither lays out
 * again when the next one comes, nor draws while it is out of sight.
 *
 * @param {HTMLElement} list
 * @param {Token[]} tokens
 * @param {(token: Token, index: number) => HTMLElement} make
 */
async function fill(list, tokens, make) {
  let line = null;
  let began = performance.now();
  for (const [index, token] of tokens.entries()) {
    line ??= list.appendChild(el("div", { class: "tokens-line" }));
    line.append(make(token, index));
    if (token.text.includes("\n") || line.childElementCount === LINE) line = null;
    if (performance.now() - began < SLICE_MS) continue;
    await new Promise((over) => setTimeout(over));
    began = performance.now();
  }
}

/**
 * @param {Token} token
 * @param {boolean} marked
 */
function tokenSpan({ text, logprob }, marked) {
  const level = surpriseLevel(logprob) ?? "unknown";
  const shown = withoutMark(text);
  const kinds = `${shown === text ? "" : " token-bytes"}${marked ? " token-mark" : ""}`;
  const name = tokenName(text);
  const label = marked ? t("tokens.marked", { token: name }) : text.trim() ? null : name;
  return el("span", {
    class: `token token-${level}${kinds}`,
    role: "option",
    tabindex: "-1",
    "aria-label": label,
    // A line break needs a sign, or there would be nothing to point at.
    text: shown.replaceAll("\n", "↵\n"),
  });
}

/** The colours, by the probabilities they stand for. */
function legend() {
  const samples = LEVELS.map((level) => {
    const { low, high } = levelRange(level);
    const form = level === 0 ? "from" : low ? "between" : "under";
    const text = t(`tokens.${form}`, { low: number(low * 100), high: number(high * 100) });
    return el("li", {}, el("span", { class: `token token-${level}`, text }));
  });
  return el(
    "div",
    { class: "tokens-legend" },
    el("span", { text: t("tokens.legend") }),
    el("ul", {}, ...samples),
  );
}

/**
 * Show the tooltip of the token under the pointer, else that of the one with the focus.
 *
 * @param {HTMLElement} view
 * @param {Cursor} cursor
 * @param {Tip} tip
 * @param {(index: number) => void} show
 */
function listen(view, cursor, tip, show) {
  const point = (/** @type {number | null} */ index) => {
    const shown = index ?? cursor.indexOf(document.activeElement);
    if (shown === null) tip.hide();
    else show(shown);
  };
  view.addEventListener("pointerover", ({ target }) => {
    // The tooltip itself may be pointed at, to read it with a magnifier.
    if (!tip.element.contains(/** @type {Node} */ (target))) point(cursor.indexOf(target));
  });
  view.addEventListener("pointerleave", () => point(null));
  view.addEventListener("focusin", ({ target }) => {
    const index = cursor.indexOf(target);
    if (index === null) return;
    cursor.reached(index);
    show(index);
  });
  view.addEventListener("focusout", () => tip.hide());
  view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const hides = event.key === "Escape" && tip.open;
    if (hides) tip.hide();
    if (!hides && !cursor.follow(event.key)) return;
    // Neither scrolls the page, nor stops an answer.
    event.preventDefault();
    event.stopPropagation();
  });
}
