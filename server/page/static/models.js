// @ts-check
/** The models of a server. */

/** @typedef {import("./settings.js").Model & {aliases: string[]}} ModelCard */

/**
 * Models, each once, by its first name: the server lists all of them.
 *
 * @param {ModelCard[]} cards as GET /v1/models has them.
 * @returns {ModelCard[]}
 */
export function eachOnce(cards) {
  return cards.filter((card, index) => {
    return !cards.slice(0, index).some(({ aliases }) => aliases.includes(card.id));
  });
}
