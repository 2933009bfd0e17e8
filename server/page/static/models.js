// @ts-check
/** The models of a server. */

/** @typedef {{id: string, root?: string}} ModelCard */

/**
 * The names of models, each once: behind the name that it is served by, the server also lists the
 * one that a model calls itself.
 *
 * @param {ModelCard[]} models
 * @returns {string[]}
 */
export function modelNames(models) {
  const isOther = (/** @type {ModelCard} */ { id, root }, /** @type {number} */ index) =>
    id === root && models[index - 1]?.root === root;
  return models.filter((model, index) => !isOther(model, index)).map(({ id }) => id);
}
