// @ts-check
/** The page's texts: one JSON file a language, a section a module. */

/** Languages with a file, each named in itself. */
export const LANGUAGES = Object.freeze({
  en: "English",
  de: "Deutsch",
  es: "Español",
  fr: "Français",
  zh: "中文",
});

/** @typedef {{[key: string]: string | Texts}} Texts */

const state = {
  language: "en",
  texts: /** @type {Texts} */ ({}),
  rest: /** @type {Texts} */ ({}),
  plurals: new Intl.PluralRules("en"),
  /** By the digits behind the point. Making one costs more than using it a hundred times. */
  numbers: /** @type {Map<number, Intl.NumberFormat>} */ (new Map()),
};

/**
 * Load the texts; English ones stand in for what a language lacks.
 *
 * @param {string} [preferred] a key of `LANGUAGES`; another takes the browser's first known one.
 * @returns {Promise<void>} rejected when not even English is there.
 */
export async function loadTexts(preferred = "") {
  const wanted = [preferred, ...navigator.languages].map((tag) => tag.split("-")[0].toLowerCase());
  const language = wanted.find((tag) => tag in LANGUAGES) ?? "en";
  const english = await fetchTexts("en");
  if (english === null) throw new Error("The texts of the page did not arrive.");
  const own = language === "en" ? english : await fetchTexts(language);
  state.rest = english;
  state.texts = own ?? english;
  state.language = own === null ? "en" : language;
  state.plurals = new Intl.PluralRules(state.language);
  state.numbers.clear();
  document.documentElement.lang = state.language;
}

/** The language that is shown, such as `en`. */
export function language() {
  return state.language;
}

/**
 * A text of the page.
 *
 * @param {string} key such as `chat.send`; an unknown one is shown as it is.
 * @param {Record<string, string | number>} [values] for each `{name}`; numbers are written as the
 *   language does. A text with plural forms takes that of `values.count`.
 * @returns {string}
 */
export function t(key, values = {}) {
  let found = find(state.texts, key) ?? find(state.rest, key) ?? key;
  if (typeof found === "object") {
    const form = state.plurals.select(Number(values.count));
    found = String(found[form] ?? found.other);
  }
  return found.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (typeof value !== "number") return value ?? whole;
    return number(value, Number.isInteger(value) ? 0 : 2);
  });
}

/**
 * A number as the language writes it.
 *
 * @param {number} x
 * @param {number} [digits] behind the point.
 * @returns {string}
 */
export function number(x, digits = 0) {
  let format = state.numbers.get(digits);
  if (!format) {
    const form = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    format = new Intl.NumberFormat(state.language, form);
    state.numbers.set(digits, format);
  }
  return format.format(x);
}

/**
 * @param {Texts} texts
 * @param {string} key
 * @returns {string | Texts | undefined}
 */
function find(texts, key) {
  /** @type {any} */
  let here = texts;
  for (const part of key.split(".")) here = here?.[part];
  return here;
}

/**
 * @param {string} name
 * @returns {Promise<Texts | null>} null when there is no such file.
 */
async function fetchTexts(name) {
  const response = await fetch(new URL(`lang/${name}.json`, import.meta.url));
  return response.ok ? response.json() : null;
}
