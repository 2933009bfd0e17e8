// @ts-check
/** An answer as it is kept: what the events of a stream add up to, without any HTML. */

/**
 * @typedef {{text: string, logprob: number | null}} Rated
 * @typedef {Rated & {top: Rated[]}} Token
 * @typedef {{id: string, name: string, arguments: string}} Call
 * @typedef {{tokens: number, prompt_tokens: number, first_ms: number | null,
 *   total_ms: number}} Stats
 * @typedef {{message: string, code: string}} Fault
 * @typedef {{role: "assistant", content: string, reasoning: string, calls: Call[],
 *   tokens: Token[], stats: Stats, finish: string | null, error: Fault | null, model: string,
 *   created: number}} Answer
 */

/**
 * An answer to a request that is sent now.
 *
 * @param {string} model
 * @param {{content: string, reasoning?: string, tokens?: Token[]}} [begun] what it goes on from.
 * @returns {Answer} times in it are milliseconds from now on.
 */
export function newAnswer(model, begun = { content: "" }) {
  return {
    role: "assistant",
    content: begun.content,
    reasoning: begun.reasoning ?? "",
    calls: [],
    tokens: [...(begun.tokens ?? [])],
    stats: { tokens: 0, prompt_tokens: 0, first_ms: null, total_ms: 0 },
    finish: null,
    error: null,
    model,
    created: Date.now(),
  };
}

/**
 * Add an event of the stream to an answer, which is changed in place.
 *
 * @param {Answer} record
 * @param {any} event as `chat` of api.js yields it; those with HTML change nothing.
 */
export function apply(record, event) {
  const choice = event.choices?.[0];
  if (choice) applyChoice(record, choice);
  if (event.usage) {
    record.stats.tokens = event.usage.completion_tokens;
    record.stats.prompt_tokens = event.usage.prompt_tokens;
  }
}

/**
 * @param {Answer} record
 * @param {any} choice
 */
function applyChoice(record, choice) {
  const { content, reasoning, tool_calls: calls } = choice.delta ?? {};
  const { stats } = record;
  if (content || reasoning || calls?.length) {
    stats.total_ms = Date.now() - record.created;
    stats.first_ms ??= stats.total_ms;
    // Chunks stand for tokens until the usage says how many there were.
    stats.tokens += 1;
  }
  if (content) record.content += content;
  if (reasoning) record.reasoning += reasoning;
  for (const call of calls ?? []) addCall(record.calls, call);
  for (const item of choice.logprobs?.content ?? []) record.tokens.push(token(item));
  if (choice.finish_reason) record.finish = choice.finish_reason;
}

/**
 * @param {Call[]} calls
 * @param {any} piece
 */
function addCall(calls, piece) {
  const call = (calls[piece.index] ??= { id: "", name: "", arguments: "" });
  if (piece.id) call.id = piece.id;
  if (piece.function?.name) call.name = piece.function.name;
  call.arguments += piece.function?.arguments ?? "";
}

/**
 * @param {any} item
 * @returns {Token}
 */
function token(item) {
  const top = (item.top_logprobs ?? []).map((/** @type {any} */ other) => rated(other));
  return { ...rated(item), top };
}

/**
 * @param {any} item
 * @returns {Rated}
 */
function rated(item) {
  return { text: item.token, logprob: item.logprob };
}

/**
 * Tokens a second after the first one.
 *
 * @param {Stats} stats
 * @returns {number | null} null where there is no telling.
 */
export function rate(stats) {
  const seconds = (stats.total_ms - (stats.first_ms ?? 0)) / 1000;
  return stats.tokens > 1 && seconds > 0 ? (stats.tokens - 1) / seconds : null;
}
