// @ts-check
/** Theme and language, which belong to the browser and not to a conversation. */

import { readText, writeText } from "./storage.js";

const NAME = "halfbyte.look";

/**
 * @typedef {{theme: "system" | "dark" | "light", language: string}} Look an empty language is the
 *   browser's.
 */

/** @returns {Look} */
export function readLook() {
  const look = { theme: "system", language: "", ...readItem(NAME) };
  return /** @type {Look} */ (look);
}

/** @param {Look} look kept, and shown as far as that needs no reload. */
export function keepLook(look) {
  writeItem(NAME, look);
  showLook(look);
}

/** @param {Look} look */
export function showLook({ theme }) {
  const root = document.documentElement;
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  else delete root.dataset.theme;
}

/**
 * @param {string} name
 * @returns {Record<string, any>} empty when there is nothing, or nothing readable.
 */
export function readItem(name) {
  try {
    return JSON.parse(readText("localStorage", name) || "{}") ?? {};
  } catch {
    return {};
  }
}

/**
 * @param {string} name
 * @param {object} value
 */
export function writeItem(name, value) {
  writeText("localStorage", name, JSON.stringify(value));
}
