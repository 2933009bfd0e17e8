// @ts-check
/**
 * Reads the Prometheus text of GET /metrics, as far as the live panel shows it.
 *
 * The prefix of the names is an option of the server (`--metrics-prefix`), so that a name is known
 * by what follows its first colon; metrics of the process have no prefix.
 */

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: -?\d+)?$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;

/** Names that hold for one model each, and the fields of a reading that they become. */
const OF_A_MODEL = new Map(/** @type {[string, keyof ModelReading][]} */ ([
  ["num_requests_running", "running"],
  ["num_requests_waiting", "waiting"],
  ["kv_cache_usage_perc", "kv"],
  ["generation_tokens_total", "tokens"],
]));
const MEMORY = "process_resident_memory_bytes";

/**
 * What a text of /metrics says now.
 *
 * @param {string} text the whole exposition.
 * @returns {{memory: number|null, models: Map<string, ModelReading>}} `memory` in bytes, null where
 *   the server's system does not tell; models by name, in the order of the text.
 *
 * @typedef {{running: number, waiting: number, kv: number, tokens: number}} ModelReading
 *   `kv` is the share of the KV cache in use, 0 to 1; `tokens` all that were generated so far.
 */
export function readMetrics(text) {
  /** @type {Map<string, ModelReading>} */
  const models = new Map();
  let memory = null;
  for (const line of text.split("\n")) {
    const sample = SAMPLE.exec(line);
    if (!sample) continue;
    const [, name, labels, value] = sample;
    const field = OF_A_MODEL.get(name.slice(name.indexOf(":") + 1));
    if (name === MEMORY) memory = Number(value);
    if (!field) continue;
    const model = labelValue(labels ?? "", "model_name");
    const reading = models.get(model) ?? { running: 0, waiting: 0, kv: 0, tokens: 0 };
    reading[field] += Number(value);
    models.set(model, reading);
  }
  return { memory, models };
}

/**
 * The value of a label, its escapes undone; empty where there is none of that name.
 *
 * @param {string} labels
 * @param {string} wanted
 */
function labelValue(labels, wanted) {
  for (const [, name, value] of labels.matchAll(LABEL)) {
    if (name === wanted) {
      return value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    }
  }
  return "";
}

/**
 * Tokens generated a second between two readings, for each model of the later one.
 *
 * @param {Map<string, ModelReading>} before models of the earlier reading.
 * @param {Map<string, ModelReading>} after models of the later one.
 * @param {number} seconds between the two, more than 0.
 * @returns {Map<string, number>} 0 for a model that is new, or whose counter fell because the
 *   server was started again.
 */
export function tokenRates(before, after, seconds) {
  const rates = new Map();
  for (const [name, { tokens }] of after) {
    const earlier = before.get(name)?.tokens ?? tokens;
    rates.set(name, Math.max(tokens - earlier, 0) / seconds);
  }
  return rates;
}
