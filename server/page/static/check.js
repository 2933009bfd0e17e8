// @ts-check
/** Reads an export of conversations, and refuses a damaged one as a whole. */

import { ApiFailure } from "./api.js";
import { isObject, parseJson } from "./json.js";
import { t } from "./text.js";

const FORMAT = "halfbyte-conversations";
const VERSION = 1;
const ROLES = ["user", "assistant", "tool"];
/** Ids of conversations are part of the page's address. */
const ID = /^[\w-]{1,64}$/;
/** The last millisecond that a `Date` can be. */
const LAST_MS = 8.64e15;

/**
 * @param {import("./tree.js").Conversation[]} conversations
 * @returns {string} the file's text.
 */
export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/**
 * @param {string} text of a file that `exportText` made.
 * @param {string} name of the file.
 * @returns {import("./tree.js").Conversation[]}
 * @throws {ApiFailure} what is wrong with it, and where.
 */
export function parseExport(text, name) {
  try {
    return readFile(text);
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    throw new ApiFailure(t("store.damaged", { name, what }), { code: "damaged_file" });
  }
}

/**
 * @param {string} text
 * @returns {import("./tree.js").Conversation[]}
 */
function readFile(text) {
  const file = parseJson(text, (what) => new Error(t("store.not_json", { what })));
  if (file?.format !== FORMAT) throw new Error(t("store.not_export", { format: FORMAT }));
  if (file.version !== VERSION) {
    const values = { found: String(file.version), known: String(VERSION) };
    throw new Error(t("store.version", values));
  }
  if (!Array.isArray(file.conversations)) throw wrong("conversations", file.conversations);
  /** @type {import("./tree.js").Conversation[]} */
  const read = file.conversations.map((/** @type {unknown} */ item, /** @type {number} */ n) =>
    readConversation(item, `conversations[${n}]`));
  const ids = new Set();
  for (const [n, { id }] of read.entries()) {
    if (ids.has(id)) throw wrong(`conversations[${n}].id`, id);
    ids.add(id);
  }
  return read;
}

/**
 * @param {any} item
 * @param {string} where
 * @returns {import("./tree.js").Conversation}
 */
function readConversation(item, where) {
  if (!isObject(item)) throw wrong(where, item);
  const nodes = isObject(item.nodes) ? item.nodes : fail(`${where}.nodes`, item.nodes);
  const read = Object.fromEntries(Object.keys(nodes).map((id) =>
    [id, readNode(nodes[id], id, nodes, `${where}.nodes.${id}`)]));
  checkEnds(read, where);
  const leaf = place(item.leaf, nodes, `${where}.leaf`);
  const settings = isObject(item.settings) ? item.settings : {};
  return {
    id: ID.test(string(item.id, `${where}.id`)) ? item.id : fail(`${where}.id`, item.id),
    title: string(item.title, `${where}.title`),
    created: time(item.created, `${where}.created`),
    updated: time(item.updated, `${where}.updated`),
    settings: {
      model: string(settings.model ?? "", `${where}.settings.model`),
      system: string(settings.system ?? "", `${where}.settings.system`),
      params: isObject(settings.params) ? settings.params : {},
      schema: string(settings.schema ?? "", `${where}.settings.schema`),
      tools: string(settings.tools ?? "", `${where}.settings.tools`),
      probabilities: settings.probabilities === true,
    },
    nodes: read,
    leaf,
  };
}

/**
 * @param {any} node
 * @param {string} id
 * @param {Record<string, unknown>} nodes
 * @param {string} where
 * @returns {import("./tree.js").TreeNode}
 */
function readNode(node, id, nodes, where) {
  if (!isObject(node)) throw wrong(where, node);
  if (node.id !== id) throw wrong(`${where}.id`, node.id);
  if (!ROLES.includes(node.role)) throw wrong(`${where}.role`, node.role);
  const parent = place(node.parent, nodes, `${where}.parent`);
  const common = {
    id,
    parent,
    role: node.role,
    content: string(node.content, `${where}.content`),
    created: time(node.created, `${where}.created`),
  };
  if (node.role === "tool") return { ...common, call_id: string(node.call_id, `${where}.call_id`) };
  return node.role === "user" ? common : { ...common, ...readAnswer(node, where) };
}

/**
 * @param {any} node
 * @param {string} where
 */
function readAnswer(node, where) {
  const stats = isObject(node.stats) ? node.stats : {};
  const error = isObject(node.error) ? node.error : null;
  return {
    reasoning: string(node.reasoning ?? "", `${where}.reasoning`),
    model: string(node.model ?? "", `${where}.model`),
    finish: node.finish == null ? null : string(node.finish, `${where}.finish`),
    error: error && { message: string(error.message, `${where}.error`), code: String(error.code) },
    calls: list(node.calls, `${where}.calls`, (call, here) => ({
      id: string(call?.id, `${here}.id`),
      name: string(call?.name, `${here}.name`),
      arguments: string(call?.arguments, `${here}.arguments`),
    })),
    tokens: list(node.tokens, `${where}.tokens`, (token, here) => ({
      ...readRated(token, here),
      top: list(token.top, `${here}.top`, readRated),
    })),
    stats: {
      tokens: finite(stats.tokens ?? 0, `${where}.stats.tokens`),
      prompt_tokens: finite(stats.prompt_tokens ?? 0, `${where}.stats.prompt_tokens`),
      first_ms: stats.first_ms == null ? null : finite(stats.first_ms, `${where}.stats.first_ms`),
      total_ms: finite(stats.total_ms ?? 0, `${where}.stats.total_ms`),
    },
  };
}

/**
 * @param {any} item
 * @param {string} where
 */
function readRated(item, where) {
  const logprob = item?.logprob == null ? null : finite(item.logprob, `${where}.logprob`);
  return { text: string(item?.text, `${where}.text`), logprob };
}

/**
 * Refuse messages that answer one another in a circle, which no path would end in.
 *
 * @param {Record<string, import("./tree.js").TreeNode>} nodes
 * @param {string} where
 */
function checkEnds(nodes, where) {
  /** Ids of messages whose paths are known to end. */
  const good = new Set();
  for (const from of Object.keys(nodes)) {
    const seen = new Set();
    for (let id = /** @type {string | null} */ (from); id !== null && !good.has(id); ) {
      if (seen.has(id)) throw wrong(`${where}.nodes.${id}.parent`, nodes[id].parent);
      seen.add(id);
      id = nodes[id].parent;
    }
    for (const id of seen) good.add(id);
  }
}

/**
 * The id of a message that is there, or null.
 *
 * @param {unknown} id
 * @param {Record<string, unknown>} nodes
 * @param {string} where
 */
function place(id, nodes, where) {
  if (id === undefined || id === null) return null;
  return Object.hasOwn(nodes, string(id, where)) ? string(id, where) : fail(where, id);
}

/**
 * @template T
 * @param {any} items
 * @param {string} where
 * @param {(item: any, where: string) => T} read
 * @returns {T[]}
 */
function list(items, where, read) {
  if (items === undefined || items === null) return [];
  if (!Array.isArray(items)) throw wrong(where, items);
  return items.map((item, n) => read(item, `${where}[${n}]`));
}

/**
 * @param {unknown} value
 * @param {string} where
 * @returns {string}
 */
function string(value, where) {
  return typeof value === "string" ? value : fail(where, value);
}

/**
 * @param {unknown} value
 * @param {string} where
 * @returns {number}
 */
function finite(value, where) {
  return typeof value === "number" && Number.isFinite(value) ? value : fail(where, value);
}

/**
 * @param {unknown} value
 * @param {string} where
 */
function time(value, where) {
  const ms = finite(value, where);
  return Math.abs(ms) <= LAST_MS ? ms : fail(where, value);
}

/**
 * @param {string} where
 * @param {unknown} value
 * @returns {never}
 */
function fail(where, value) {
  throw wrong(where, value);
}

/**
 * @param {string} where
 * @param {unknown} value
 */
function wrong(where, value) {
  const found = value === undefined ? t("store.missing") : JSON.stringify(value).slice(0, 60);
  return new Error(t("store.wrong", { where, found }));
}
