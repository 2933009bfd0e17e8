// @ts-check
/** Inputs for sampling fields, made from the server's own table of them. */

import { ApiFailure } from "./api.js";
import { el } from "./dom.js";
import { isObject, parseJson } from "./json.js";
import { number, t } from "./text.js";

/**
 * @typedef {{name: string, kind: string, low: number, high: number, default: unknown,
 *   names: string[], meaning: string, usual: boolean}} Field
 */

const PARSERS = {
  number: parseNumber,
  whole: parseNumber,
  switch: (/** @type {Field} */ _, /** @type {string} */ text) => text === "true",
  name: (/** @type {Field} */ _, /** @type {string} */ text) => text,
  texts: parseTexts,
  ids: parseIds,
  biases: parseNamed,
  object: parseNamed,
};

/**
 * What the user typed as the value of a field.
 *
 * @param {Field} field
 * @param {string} text not empty.
 * @returns {unknown}
 * @throws {Error} its message is for the user and names the value and what is expected.
 */
function parseField(field, text) {
  return PARSERS[/** @type {keyof typeof PARSERS} */ (field.kind)](field, text.trim());
}

/**
 * A labelled input. What is refused is said beside it and does not become a value.
 *
 * @param {Field} field
 * @param {unknown} value undefined where the server's default is taken.
 * @param {(value: unknown) => void} onValue told of each good value; undefined when emptied.
 * @returns {HTMLElement}
 */
export function fieldInput(field, value, onValue) {
  const id = `field-${field.name}`;
  const wrong = el("p", { class: "field-error", id: `${id}-wrong`, role: "alert" });
  const input = control(field, id, shown(field, value));
  input.addEventListener("change", () => {
    const text = input.value.trim();
    wrong.textContent = "";
    input.removeAttribute("aria-invalid");
    try {
      onValue(text === "" ? undefined : parseField(field, text));
    } catch (error) {
      wrong.textContent = error instanceof Error ? error.message : String(error);
      input.setAttribute("aria-invalid", "true");
    }
  });
  const wide = ["texts", "object", "biases"].includes(field.kind) ? " wide" : "";
  return el("div", { class: `field${wide}` },
    el("label", { for: id, class: "mono", text: field.name }),
    input,
    wrong,
    // The table marks the names of other fields as its own document does.
    el("p", { class: "hint", id: `${id}-hint`, text: field.meaning.replaceAll("``", "") }));
}

/**
 * @param {Field} field
 * @param {string} id
 * @param {string} text
 * @returns {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement}
 */
function control(field, id, text) {
  const props = { id, "aria-describedby": `${id}-hint ${id}-wrong` };
  const choices = field.kind === "switch" ? ["true", "false"] : field.names;
  if (choices.length) {
    const usual = t("settings.default", { value: defaultText(field) });
    const options = choices.map((name) => el("option", { value: name, text: name }));
    const select = el("select", props, el("option", { value: "", text: usual }), ...options);
    return Object.assign(/** @type {HTMLSelectElement} */ (select), { value: text });
  }
  const placeholder = defaultText(field);
  const many = ["texts", "object", "biases"].includes(field.kind);
  const box = many
    ? el("textarea", { ...props, rows: 2, placeholder, spellcheck: "false" })
    : el("input", { ...props, type: "text", inputmode: "decimal", placeholder,
      autocomplete: "off" });
  return Object.assign(/** @type {HTMLInputElement} */ (box), { value: text });
}

/** @param {Field} field */
function defaultText({ kind, default: usual }) {
  const list = typeof usual === "object" && usual !== null;
  if (kind === "texts" && (!list || !Object.keys(usual).length)) return t("settings.texts_hint");
  if (usual === null || usual === "" || (list && !Object.keys(usual).length)) {
    return t("settings.none");
  }
  return list ? JSON.stringify(usual) : String(usual);
}

/**
 * @param {Field} field
 * @param {any} value
 * @returns {string}
 */
function shown(field, value) {
  if (value === undefined || value === null) return "";
  // An imported conversation may have values of any kind; they are shown, to be mended.
  if (typeof value !== "object") return String(value);
  if (!Array.isArray(value)) return JSON.stringify(value);
  if (field.kind === "texts") {
    const lines = value.some((/** @type {string} */ text) => /^\s|\s$|\n|^\[|^$/.test(text));
    return lines ? JSON.stringify(value) : value.join("\n");
  }
  return field.kind === "ids" ? value.join(", ") : JSON.stringify(value);
}

/**
 * @param {Field} field
 * @param {string} text
 */
function parseNumber(field, text) {
  const whole = field.kind === "whole";
  // Many write 0,7; but 1,000 is no whole number to everybody.
  const value = Number(whole ? text : text.replace(",", "."));
  const { low, high } = ends(field);
  const good = whole ? Number.isInteger(value) : Number.isFinite(value);
  if (good && value >= low && value <= high) return value;
  const kind = t(whole ? "settings.a_whole" : "settings.a_number");
  const values = { name: field.name, text, kind, range: range(field) };
  throw new Error(t("settings.wrong_number", values));
}

/**
 * The least and the largest value that this page can send: JSON numbers of a browser are exact up
 * to 2 ** 53.
 *
 * @param {Field} field
 */
function ends({ kind, low, high }) {
  const most = kind === "whole" ? Number.MAX_SAFE_INTEGER : Number.MAX_VALUE;
  return { low: Math.max(low, -most), high: Math.min(high, most) };
}

/** @param {Field} field */
function range(field) {
  const { low, high } = ends(field);
  return t("settings.between", { low: plain(low), high: plain(high) });
}

/** @param {number} x as many digits as it has. */
function plain(x) {
  return Number.isInteger(x) && Math.abs(x) < 1e6 ? number(x) : String(x);
}

/**
 * @param {Field} field
 * @param {string} text one text a line, or a JSON list of texts.
 */
function parseTexts(field, text) {
  if (!text.startsWith("[")) return text.split("\n").filter((line) => line !== "");
  const list = json(field.name, text);
  if (Array.isArray(list) && list.every((item) => typeof item === "string")) return list;
  throw new Error(t("settings.wrong_texts", { name: field.name }));
}

/**
 * @param {Field} field
 * @param {string} text numbers with commas or blanks between them.
 */
function parseIds(field, text) {
  return text.replace(/^\[|\]$/g, "").split(/[\s,]+/).filter(Boolean).map((part) => {
    if (/^-?\d+$/.test(part)) return Number(part);
    throw new Error(t("settings.wrong_id", { name: field.name, text: part }));
  });
}

/**
 * @param {Field} field
 * @param {string} text
 */
function parseNamed(field, text) {
  return parseObject(field.name, text);
}

/**
 * A JSON object that the user typed.
 *
 * @param {string} name of what it was typed into.
 * @param {string} text
 * @returns {Record<string, any>}
 * @throws {ApiFailure} it is none.
 */
export function parseObject(name, text) {
  const value = json(name, text);
  if (isObject(value)) return value;
  throw new ApiFailure(t("settings.wrong_object", { name }));
}

/**
 * @param {string} name
 * @param {string} text
 */
function json(name, text) {
  return parseJson(text, (what) => new ApiFailure(t("settings.wrong_json", { name, what })));
}
