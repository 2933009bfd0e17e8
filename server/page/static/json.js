// @ts-check
/** JSON that the user typed, or chose as a file. */

/**
 * @param {string} text
 * @param {(reason: string) => Error} refusal made of the browser's words on what is wrong.
 * @returns {any}
 * @throws {Error} the refusal, where the text is no JSON.
 */
export function parseJson(text, refusal) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw refusal(error instanceof Error ? error.message : "");
  }
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, any>} whether it is what JSON calls an object.
 */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
