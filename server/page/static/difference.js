// @ts-check
/** What two answers to one prompt have in common, and the probabilities where they part. */

import { el } from "./dom.js";
import { meanSurprise, probabilityOf } from "./probability.js";
import { percent, tokenText } from "./token_text.js";
import { number, t } from "./text.js";

/** @typedef {import("./record.js").Answer} Answer */

/**
 * How far two answers agree, in a sentence.
 *
 * @param {Answer} left
 * @param {Answer} right
 * @param {number} count tokens that agree from the beginning.
 * @returns {string}
 */
export function verdict(left, right, count) {
  const [one, other] = [left, right].map(({ tokens }) => tokens.length);
  if (!one || !other) return t("compare.nothing");
  if (cutShort(left, right, count)) return t("compare.so_far", { count });
  if (count === one && count === other) return t("compare.identical", { count });
  if (count === other) return t("compare.left_went_on", { count });
  if (count === one) return t("compare.right_went_on", { count });
  if (left.content && left.content === right.content) return t("compare.other_tokens");
  return count ? t("compare.part", { count }) : t("compare.part_at_once");
}

/**
 * The probabilities of both tokens where two answers part, and how sure both were before that.
 *
 * @param {Answer} left
 * @param {Answer} right
 * @param {number} count tokens that agree from the beginning.
 * @returns {HTMLElement[]} empty where there is nothing to tell.
 */
export function differenceView(left, right, count) {
  const tokens = [left.tokens, right.tokens];
  const lengths = tokens.map(({ length }) => length);
  const differ = Math.min(...lengths) > 0 && Math.max(...lengths) > count;
  const parts = differ && !cutShort(left, right, count) ? [table(left, right, count)] : [];
  const [one, other] = tokens.map((all) => meanSurprise(all.slice(0, count)));
  if (one !== null && other !== null) {
    const values = { count, left: number(one, 3), right: number(other, 3) };
    parts.push(el("p", { class: "compare-note", text: t("compare.means", values) }));
  }
  return parts;
}

/**
 * Whether the answers agree only because one of them was not written to its end.
 *
 * @param {Answer} left
 * @param {Answer} right
 * @param {number} count
 */
function cutShort(left, right, count) {
  const unfinished = [left, right].some(({ finish, error }) => finish === "stopped" || error);
  return unfinished && count === Math.min(left.tokens.length, right.tokens.length);
}

/**
 * A row for each token that was written there, a column for each model.
 *
 * @param {Answer} left
 * @param {Answer} right
 * @param {number} count
 */
function table(left, right, count) {
  const written = [left.tokens[count], right.tokens[count]];
  const texts = written.filter((token) => token !== undefined).map(({ text }) => text);
  const rows = texts.map((text) => {
    const head = el("th", { scope: "row" }, tokenText(text));
    return el("tr", {}, head, ...written.map((own) => cell(own, text)));
  });
  const heads = [
    t("compare.token"),
    t("compare.left_named", { model: left.model }),
    t("compare.right_named", { model: right.model }),
  ];
  return el(
    "table",
    { class: "compare-table" },
    el("caption", { text: t("compare.place", { place: count + 1 }) }),
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, ...rows),
  );
}

/**
 * How probable a token was to one of the models.
 *
 * @param {import("./record.js").Token | undefined} own what that model wrote there; undefined
 *   where it had ended.
 * @param {string} text of the token.
 */
function cell(own, text) {
  if (!own) return el("td", { text: t("compare.ended") });
  const found = probabilityOf(own, text);
  if (!found) return el("td", { text: t("tokens.unknown") });
  const { probability, exact } = found;
  const share = percent(probability);
  const value = exact ? share : t("compare.at_most", { percent: share });
  if (own.text !== text) return el("td", { text: value });
  const note = el("span", { text: t("compare.written") });
  return el("td", { class: "compare-written" }, value, " ", note);
}
