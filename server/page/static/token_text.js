// @ts-check
/** How single tokens and their probabilities are written. */

import { el } from "./dom.js";
import { number, t } from "./text.js";

/** Whitespace: the sign that stands for it, and the text that names it. */
const BLANKS = new Map([
  [" ", { sign: "␣", name: "tokens.space" }],
  ["\n", { sign: "↵", name: "tokens.line_break" }],
  ["\t", { sign: "⇥", name: "tokens.tab" }],
]);

/**
 * A token with signs in place of its whitespace; they are seen, and not read out.
 *
 * @param {string} text
 * @returns {HTMLElement}
 */
export function tokenText(text) {
  const parts = withoutMark(text).split(/([ \n\t])/).map((part) => {
    const sign = BLANKS.get(part)?.sign;
    return sign ? el("span", { class: "tokens-blank", "aria-hidden": "true", text: sign }) : part;
  });
  const bare = text.trim() ? null : el("span", { class: "unseen", text: tokenName(text) });
  return el("bdi", { class: "tokens-text" }, bare, ...parts);
}

/**
 * What a token is called where only letters are heard: the names of its whitespace when it has
 * nothing else.
 *
 * @param {string} text
 * @returns {string}
 */
export function tokenName(text) {
  if (text.trim()) return text.trim();
  const names = [...text].map((char) => BLANKS.get(char)?.name ?? "tokens.blank");
  return [...new Set(names)].map((name) => t(name)).join(", ") || t("tokens.empty");
}

/**
 * A token's text; bytes that are only part of a character, which the server writes as
 * `bytes:\\xd8`, as `\\xd8`.
 *
 * @param {string} text
 * @returns {string}
 */
export function withoutMark(text) {
  return text.replace(/^bytes:(?=\\x)/, "");
}

/**
 * A probability as a percentage, with as many digits as are worth reading.
 *
 * @param {number} probability 0 to 1.
 * @returns {string}
 */
export function percent(probability) {
  const hundredths = probability * 100;
  if (hundredths < 0.01) return t("tokens.below", { value: number(0.01, 2) });
  const digits = hundredths < 1 || hundredths > 99 ? 2 : 1;
  return t("tokens.percent", { value: number(hundredths, digits) });
}
