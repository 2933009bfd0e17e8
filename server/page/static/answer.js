// @ts-check
/** An answer on the screen, while it comes and afterwards. */

import { ApiFailure, chat, render } from "./api.js";
import { decorate } from "./code.js";
import { button, el, setHtml } from "./dom.js";
import { apply, newAnswer, rate } from "./record.js";
import { number, t } from "./text.js";
import { callsView } from "./tools.js";

export { apply, newAnswer };

/** Elements that text may go on in; it must not become part of a link, say, that has ended. */
const HOLDS_TEXT =
  "p, li, ul, ol, blockquote, h1, h2, h3, h4, h5, h6, pre, code, table, tbody, tr, td, .table-box";

/** Each block has the direction of its own writing. */
const BLOCK = { class: "block", dir: "auto" };

/**
 * Shows one answer. Events are drawn once a frame; finished blocks are added once and not touched
 * again, so that a long answer costs no more a token than a short one.
 */
export class AnswerView {
  /** @type {string[]} */
  #blocks = [];
  #replaced = false;
  /** @type {string | null} */
  #open = null;
  #covered = 0;
  #frame = 0;
  #shownReasoning = 0;
  #actions;
  #pending = document.createTextNode("");
  #loose = el("div", { class: "plain" });
  #openBox = el("div", BLOCK);
  #body = el("div", { class: "content", dir: "auto" }, this.#openBox, this.#loose);
  #thoughts = document.createTextNode("");
  #reasoning = el("details", { class: "reasoning", hidden: true },
    el("summary", { text: t("answer.reasoning") }),
    el("div", { class: "plain", dir: "auto" }, this.#thoughts));
  #calls = el("div", { class: "calls" });
  #trouble = el("div", {});

  /**
   * @param {import("./record.js").Answer} record shown as it is, its content as plain text.
   * @param {{onResults?: (results: {id: string, content: string}[]) => void,
   *   onRetry?: () => void}} [actions] what "Send results" and "Try again" do; no button without.
   */
  constructor(record, actions = {}) {
    this.record = record;
    /** The line of figures, which may be moved elsewhere. */
    this.figures = el("p", { class: "figures" });
    this.#actions = actions;
    this.element = el("div", { class: "answer" },
      this.#reasoning, this.#body, this.#calls, this.#trouble, this.figures);
    this.#draw();
    if (record.finish || record.error) this.#end();
    else this.element.classList.add("busy");
  }

  /**
   * Take in an event of the stream; the record gets it too.
   *
   * @param {any} event
   */
  event(event) {
    if (event.object === "halfbyte.html") this.#takeHtml(event);
    else apply(this.record, event);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** The stream is over: draw what is left, and the calls or the error that ended it. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
    this.#end();
    if (this.#covered < this.record.content.length) {
      render([this.record.content]).then(([html]) => this.show(html), () => {});
    }
  }

  /**
   * Show the whole content as HTML.
   *
   * @param {string | null} html null leaves it plain.
   */
  show(html) {
    if (html === null) return;
    const length = this.record.content.length;
    this.#takeHtml({ blocks: [html], open: "", length, replace: true });
    this.#draw();
  }

  /** @param {{blocks: string[], open: string, length: number, replace: boolean}} event */
  #takeHtml({ blocks, open, length, replace }) {
    if (replace) this.#blocks = [];
    this.#replaced ||= replace;
    this.#blocks.push(...blocks);
    this.#open = open;
    this.#covered = length;
  }

  #draw() {
    this.#frame = 0;
    if (this.#replaced) this.#body.replaceChildren(this.#openBox, this.#loose);
    this.#replaced = false;
    for (const html of this.#blocks) this.#openBox.before(...blocksOf(html));
    this.#blocks = [];
    if (this.#open !== null) fillBlock(this.#openBox, this.#open);
    if (this.#open !== null || !this.#pending.parentNode) this.#textEnd().append(this.#pending);
    this.#open = null;
    const rest = this.record.content.slice(this.#covered);
    const data = this.#pending.parentNode === this.#loose ? rest.trim() : rest;
    if (this.#pending.data !== data) this.#pending.data = data;
    this.#drawReasoning();
    this.figures.replaceChildren(...figures(this.record));
  }

  /** Where text that is not rendered yet goes: on behind the open block's, or below. */
  #textEnd() {
    let end = this.#openBox;
    for (;;) {
      const last = /** @type {HTMLElement | null} */ (end.lastElementChild);
      const behind = last?.nextSibling?.textContent?.trim();
      if (!last || behind || !last.matches(HOLDS_TEXT)) break;
      end = last;
    }
    return end === this.#openBox ? this.#loose : end;
  }

  #drawReasoning() {
    const { reasoning } = this.record;
    if (reasoning.length === this.#shownReasoning) return;
    this.#reasoning.hidden = false;
    this.#thoughts.appendData(reasoning.slice(this.#shownReasoning));
    this.#shownReasoning = reasoning.length;
  }

  #end() {
    const { calls, error } = this.record;
    this.element.classList.remove("busy");
    const { onResults, onRetry } = this.#actions;
    if (calls.length) this.#calls.replaceChildren(callsView(calls, { onResults }));
    if (!error) return;
    const retry = onRetry ? button(t("answer.try_again"), onRetry) : null;
    this.#trouble.replaceChildren(
      el("div", { class: "alert", role: "alert" }, el("p", { text: error.message }), retry),
    );
  }
}

/**
 * Ask the server and show what comes. Stops, refusals and broken connections end up in the record.
 *
 * @param {AnswerView} view of a new answer.
 * @param {object} body of `/page/chat`.
 * @param {AbortSignal} signal
 * @param {() => void} [onEvent] called after each event.
 * @returns {Promise<void>} never rejected.
 */
export async function streamInto(view, body, signal, onEvent = () => {}) {
  const { record } = view;
  try {
    for await (const event of chat(body, signal)) {
      view.event(event);
      onEvent();
    }
    record.finish ??= "stop";
  } catch (error) {
    if (signal.aborted) record.finish = "stopped";
    else record.error = fault(error);
  }
  view.finish();
}

/**
 * @param {unknown} error
 * @returns {import("./record.js").Fault}
 */
function fault(error) {
  if (error instanceof ApiFailure) return { message: error.message, code: error.code };
  console.error(error);
  return { message: t("answer.page_fault", { what: String(error) }), code: "page" };
}

/**
 * @param {HTMLElement} box
 * @param {string} html
 */
function fillBlock(box, html) {
  setHtml(box, html);
  decorate(box);
  return box;
}

/**
 * Each element of some HTML in a box of its own, which the browser may leave out of the layout
 * while it is out of sight.
 *
 * @param {string} html
 */
function blocksOf(html) {
  return [...fillBlock(el("div"), html).children].map((part) => el("div", BLOCK, part));
}

/**
 * @param {import("./record.js").Answer} record
 * @returns {HTMLElement[]}
 */
function figures(record) {
  const { stats, finish } = record;
  const parts = [];
  if (stats.tokens) parts.push(t("answer.tokens", { count: stats.tokens }));
  const speed = rate(stats);
  if (speed !== null) parts.push(t("answer.rate", { rate: number(speed, 1) }));
  if (stats.first_ms !== null) {
    parts.push(t("answer.first", { seconds: number(stats.first_ms / 1000, 2) }));
  }
  for (const end of ["length", "stopped", "unfinished"]) {
    if (finish === end) parts.push(t(`answer.${end}`));
  }
  return parts.map((text) => el("span", { text }));
}
