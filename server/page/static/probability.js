// @ts-check
/**
 * Arithmetic on tokens that have log-probabilities, `{text, logprob, top: [{text, logprob}, ...]}`:
 * how surprising each was, and where two answers part. Nothing of it touches the page.
 */

/** Probabilities below which the next of the levels 0 to 4 begins. */
const STEPS = [0.5, 0.2, 0.05, 0.01];

/** The levels of surprise there are, 0 the least. */
export const LEVELS = [0, 1, 2, 3, 4];

/**
 * The surprise of a token: -log2 of its probability.
 *
 * @param {number|null} logprob natural logarithm of the probability; null where it is not known.
 * @returns {number|null} bits, from 0 up.
 */
export function surprise(logprob) {
  return logprob === null ? null : Math.max(0, -logprob / Math.LN2);
}

/**
 * The level of a token's surprise.
 *
 * @param {number|null} logprob as above.
 * @returns {number|null} one of `LEVELS`.
 */
export function surpriseLevel(logprob) {
  return logprob === null ? null : STEPS.filter((step) => Math.exp(logprob) < step).length;
}

/**
 * The probabilities of a level.
 *
 * @param {number} level one of `LEVELS`.
 * @returns {{low: number, high: number}} `low` belongs to it, `high` to the one before.
 */
export function levelRange(level) {
  return { low: STEPS[level] ?? 0, high: STEPS[level - 1] ?? 1 };
}

/**
 * The mean surprise of tokens.
 *
 * @param {{logprob: number|null}[]} tokens at least one.
 * @returns {number|null} bits a token; null where none is known.
 */
export function meanSurprise(tokens) {
  const known = tokens.map((token) => surprise(token.logprob)).filter((bits) => bits !== null);
  return known.length ? known.reduce((sum, bits) => sum + bits, 0) / known.length : null;
}

/**
 * Where two lists of tokens part.
 *
 * @param {{text: string}[]} left tokens of one answer.
 * @param {{text: string}[]} right tokens of the other.
 * @param {number} [from] tokens that are known to agree.
 * @returns {number} how many tokens agree from the beginning; the lists are equal where that is the
 *   length of both, and one goes on where it is the length of the other.
 */
export function agreedTokens(left, right, from = 0) {
  const most = Math.min(left.length, right.length);
  let count = from;
  while (count < most && left[count].text === right[count].text) count += 1;
  return count;
}

/**
 * The probability that an answer's model gave to a token in the place of one of its own.
 *
 * @param {import("./record.js").Token} own the token that was drawn there.
 * @param {string} text of the token that is asked about.
 * @returns {{probability: number, exact: boolean}|null} where the token is not among the
 *   alternatives, the probability of the least likely one with `exact` false: it is not above that.
 *   null where nothing is known.
 */
export function probabilityOf(own, text) {
  const found = [own, ...own.top].find((token) => token.text === text)?.logprob;
  if (typeof found === "number") return { probability: Math.exp(found), exact: true };
  const least = Math.min(...own.top.map((token) => token.logprob ?? -Infinity));
  return own.top.length && least > -Infinity
    ? { probability: Math.exp(least), exact: false }
    : null;
}
