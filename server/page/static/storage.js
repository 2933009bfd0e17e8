// @ts-check
/** Small things in the browser's storage, which may refuse to be read or written. */

/**
 * @param {"localStorage" | "sessionStorage"} storage
 * @param {string} name
 * @returns {string} empty when there is nothing, or the browser keeps nothing.
 */
export function readText(storage, name) {
  try {
    return globalThis[storage].getItem(name) ?? "";
  } catch {
    return "";
  }
}

/**
 * Keep a text; where the browser refuses, it lasts as long as the page.
 *
 * @param {"localStorage" | "sessionStorage"} storage
 * @param {string} name
 * @param {string} text empty to keep nothing.
 */
export function writeText(storage, name, text) {
  try {
    if (text) globalThis[storage].setItem(name, text);
    else globalThis[storage].removeItem(name);
  } catch {
    // Whoever has the text goes on with it.
  }
}
