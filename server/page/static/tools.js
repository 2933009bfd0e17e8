// @ts-check
/** Tools: the list that a request offers, and calls that the user answers by hand. */

import { ApiFailure } from "./api.js";
import { button, el } from "./dom.js";
import { isObject, parseJson } from "./json.js";
import { t } from "./text.js";

/** @typedef {import("./record.js").Call} Call */

/** What the server takes as the name of a function, and how many tools. */
const NAME = /^[A-Za-z0-9_.:/-]{1,128}$/;
const MOST = 128;

let views = 0;

/**
 * Read the tools of a request: a JSON list of `{"type": "function", "function": {"name", ...}}`.
 *
 * @param {string} text empty for no tools.
 * @returns {object[]} throws an ApiFailure (`param` "tools") that says what is wrong, and where.
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  const tools = parseJson(text, (reason) => wrong("tools.not_json", { reason }));
  if (!Array.isArray(tools)) throw wrong("tools.not_a_list", { found: kindOf(tools) });
  if (tools.length > MOST) throw wrong("tools.too_many", { count: tools.length, most: MOST });
  const names = tools.map((tool, index) => checkedName(tool, index + 1));
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw wrong("tools.twice", { name: twice });
  return tools;
}

/**
 * The name of a tool that the server would take.
 *
 * @param {any} tool
 * @param {number} place from 1.
 * @returns {string}
 */
function checkedName(tool, place) {
  const called = tool?.function;
  if (tool?.type !== "function" || !isObject(called)) {
    throw wrong("tools.no_function", { place });
  }
  const { name, description, parameters } = called;
  if (typeof name !== "string" || !NAME.test(name)) {
    throw wrong("tools.bad_name", { place, found: JSON.stringify(name) ?? t("tools.nothing") });
  }
  if (description !== undefined && typeof description !== "string") {
    throw wrong("tools.bad_description", { name, found: kindOf(description) });
  }
  if (parameters !== undefined && !isObject(parameters)) {
    throw wrong("tools.bad_parameters", { name, found: kindOf(parameters) });
  }
  return name;
}

/**
 * The kind of a JSON value, in JSON's words.
 *
 * @param {unknown} value
 */
function kindOf(value) {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

/**
 * @param {string} key
 * @param {Record<string, string | number>} values
 */
function wrong(key, values) {
  return new ApiFailure(t(key, values), { param: "tools" });
}

/**
 * The calls of an answer, with a box for the result of each.
 *
 * @param {Call[]} calls
 * @param {{onResults?: (results: {id: string, content: string}[]) => void}} [options] gets the
 *   results of all calls, by their ids and in their order, once; without it there are no boxes.
 * @returns {HTMLElement}
 */
export function callsView(calls, { onResults } = {}) {
  views += 1;
  const boxes = calls.map((call, index) => onResults && resultBox(`call-${views}-${index}`));
  const items = calls.map((call, index) => callItem(call, boxes[index]));
  const list = el("ol", { class: "calls-list" }, ...items);
  if (!onResults) return el("div", { class: "calls" }, list);
  const send = button(t("tools.send"), () => {
    for (const box of [...boxes, send]) box?.setAttribute("disabled", "");
    onResults(calls.map(({ id }, index) => ({ id, content: boxes[index]?.value ?? "" })));
  });
  return el("div", { class: "calls" }, list, send);
}

/** @param {string} id */
function resultBox(id) {
  const props = { id, class: "calls-result", rows: "3", spellcheck: "false", dir: "auto" };
  return /** @type {HTMLTextAreaElement} */ (el("textarea", props));
}

/**
 * @param {Call} call
 * @param {HTMLTextAreaElement | undefined} box
 */
function callItem(call, box) {
  const { text, valid } = pretty(call.arguments);
  const note = valid ? null : el("p", { class: "calls-note", text: t("tools.arguments_not_json") });
  const label = box && el("label", { for: box.id, text: t("tools.result", { name: call.name }) });
  return el(
    "li",
    { class: "call" },
    el("p", { class: "calls-name" }, t("tools.calls"), " ", el("code", { text: call.name })),
    el("pre", { class: "calls-arguments", dir: "ltr" }, text),
    note,
    label,
    box,
  );
}

/**
 * Arguments with a line for each of them, as they came where they are no JSON (yet).
 *
 * @param {string} text
 * @returns {{text: string, valid: boolean}}
 */
function pretty(text) {
  try {
    return { text: JSON.stringify(JSON.parse(text || "{}"), null, 2), valid: true };
  } catch {
    return { text, valid: false };
  }
}
