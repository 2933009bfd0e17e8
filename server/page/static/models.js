// @ts-check
/** The models of a server. */

/** @typedef {import("./settings.js").Model & {root?: string}} ModelCard */

/**
 * Models, each once: behind the name that it is served by, the server also lists the one that a
 * model calls itself.
 *
 * @param {ModelCard[]} cards as GET /v1/models has them.
 * @returns {ModelCard[]}
 */
export function eachOnce(cards) {
  return cards.filter(({ id, root }, index) => id !== root || cards[index - 1]?.root !== root);
}
