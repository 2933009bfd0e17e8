// @ts-check
/** The server as the page sees it. Every failure is an `ApiFailure` with a text for the user. */

import { apiKey, askKey, mayAskAgain } from "./key.js";
import { t } from "./text.js";

const ROOT = new URL("..", import.meta.url);

/**
 * Why a request, or something that the user gave for one, did not work.
 */
export class ApiFailure extends Error {
  /**
   * @param {string} message for the user.
   * @param {{status?: number, code?: string, param?: string | null}} [facts] the HTTP status, 0
   *   when there was no answer; the error's code; the field at fault.
   */
  constructor(message, { status = 0, code = "", param = null } = {}) {
    super(message);
    this.name = "ApiFailure";
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/**
 * @param {string} path such as `/v1/models`.
 * @returns {Promise<any>}
 */
export async function getJson(path) {
  return readJson(await send(path, {}));
}

/**
 * @param {string} path
 * @returns {Promise<string>}
 */
export async function getText(path) {
  return (await send(path, {})).text();
}

/**
 * Markdown as HTML.
 *
 * @param {string[]} texts
 * @returns {Promise<(string | null)[]>} null for a text that stays plain.
 */
export async function render(texts) {
  return (await readJson(await send("/page/render", post({ texts })))).html;
}

/**
 * The events of an answer, as they come.
 *
 * @param {object} body of `/page/chat`.
 * @param {AbortSignal} signal stops the answer.
 * @returns {AsyncGenerator<any, void, void>} throws an ApiFailure when the server reports one, or
 *   goes in mid-answer; the DOMException `AbortError` after the signal.
 */
export async function* chat(body, signal) {
  mayAskAgain();
  const response = await send("/page/chat", { ...post(body), signal });
  // A proxy may answer with a page of its own.
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw unreadable();
  for await (const data of eventData(response, signal)) {
    if (data === "[DONE]") return;
    const event = parse(data);
    if (event.error) throw failureOf(event.error, Number(event.error.code) || 200);
    yield event;
  }
  throw new ApiFailure(t("api.cut_off"), { code: "cut_off" });
}

/**
 * Halves of characters, which a text that was cut may end in, are no JSON to the server.
 *
 * @param {unknown} body
 */
function post(body) {
  const whole = (/** @type {string} */ _, /** @type {unknown} */ value) =>
    (typeof value === "string" ? value.replace(/\p{Surrogate}/gu, "\ufffd") : value);
  return {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body, whole),
  };
}

/**
 * A request with the key, tried again with another one when the server refuses it.
 *
 * @param {string} path
 * @param {RequestInit} init
 * @returns {Promise<Response>} one whose status is good.
 */
async function send(path, init) {
  for (;;) {
    const key = apiKey();
    const headers = new Headers(init.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let response;
    try {
      response = await fetch(new URL(path.replace(/^\//, ""), ROOT), { ...init, headers });
    } catch (error) {
      throw readFailure(error, init.signal);
    }
    if (response.ok) return response;
    if (response.status !== 401 || !(await askKey(key))) throw await refusal(response);
  }
}

/** @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const failure = failureOf(body?.error ?? {}, response.status);
  const seconds = Number(response.headers.get("Retry-After"));
  if (seconds > 0) failure.message += ` ${t("api.retry_after", { count: seconds })}`;
  return failure;
}

/**
 * @param {{message?: unknown, code?: unknown, param?: string | null}} error
 * @param {number} status
 */
function failureOf(error, status) {
  const told = typeof error.message === "string" && error.message;
  const message = told || t("api.status", { status: String(status) });
  const code = error.code === null || error.code === undefined ? "" : String(error.code);
  return new ApiFailure(message, { status, code, param: error.param ?? null });
}

/**
 * What became of a request that broke: the user's stop stays what it is.
 *
 * @param {unknown} error
 * @param {AbortSignal | null | undefined} signal
 */
function readFailure(error, signal) {
  if (signal?.aborted) return new DOMException("stopped", "AbortError");
  return new ApiFailure(t("api.unreachable"), { code: "unreachable" });
}

/** @param {Response} response */
async function readJson(response) {
  try {
    return await response.json();
  } catch {
    throw unreadable();
  }
}

/**
 * @param {string} data
 * @returns {any} an object.
 */
function parse(data) {
  try {
    return Object(JSON.parse(data));
  } catch {
    throw unreadable();
  }
}

function unreadable() {
  return new ApiFailure(t("api.not_json"), { code: "not_json" });
}

/**
 * The `data` of server-sent events, one line each, as our server writes them.
 *
 * @param {Response} response
 * @param {AbortSignal} signal
 */
async function* eventData(response, signal) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    if (signal.aborted) throw readFailure(error, signal);
    throw new ApiFailure(t("api.cut_off"), { code: "cut_off" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
