// @ts-check
/** The compare view: one prompt to two models, side by side, and where their answers part. */

import { AnswerView, newAnswer, streamInto } from "./answer.js";
import { ApiFailure } from "./api.js";
import { differenceView, verdict } from "./difference.js";
import { button, el } from "./dom.js";
import { agreedTokens } from "./probability.js";
import { requestBody } from "./settings.js";
import { t } from "./text.js";
import { tokenView } from "./tokens.js";

/** @typedef {import("./record.js").Answer} Answer */
/** @typedef {import("./tree.js").ChatSettings} ChatSettings */

/** Alternatives a token; a token of the other answer that is not among them is less likely. */
const ALTERNATIVES = 10;

/**
 * The view in which two models answer the same prompt.
 *
 * @param {{models: string[], settings: {current: () => ChatSettings}}} sources `models`: their
 *   names; both answer with the settings of the moment, but for the model.
 * @returns {HTMLElement}
 */
export function compareView({ models, settings }) {
  return new Comparison(models, settings).element;
}

class Comparison {
  #stop = new AbortController();
  #settings;
  #prompt = /** @type {HTMLTextAreaElement} */ (
    el("textarea", { id: "compare-prompt", rows: "3", dir: "auto", required: true })
  );
  #greedy = /** @type {HTMLInputElement} */ (
    el("input", { id: "compare-greedy", type: "checkbox", checked: true })
  );
  #sides;
  #start = el("button", { type: "submit", class: "primary", text: t("compare.start") });
  #halt = button(t("compare.stop"), () => this.#stop.abort(), { disabled: true });
  #said = el("p", { role: "status", class: "compare-verdict" });
  #details = el("div", { class: "compare-details" });

  /**
   * @param {string[]} models
   * @param {{current: () => ChatSettings}} settings
   */
  constructor(models, settings) {
    this.#settings = settings;
    this.#sides = [new Side("left", models, 0), new Side("right", models, 1)];
    this.element = el(
      "div",
      { class: "compare" },
      el("h1", { class: "unseen", text: t("compare.title") }),
      this.#form(models),
      this.#said,
      this.#details,
      el("div", { class: "compare-sides" }, ...this.#sides.map(({ element }) => element)),
    );
  }

  /** @param {string[]} models */
  #form(models) {
    const submit = (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      this.#run();
    };
    const keydown = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") this.#stop.abort();
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#run();
    };
    this.#prompt.addEventListener("keydown", keydown);
    const note = t(models.length > 1 ? "compare.at_once" : "compare.hint");
    return el(
      "form",
      { class: "compare-form", on: { submit } },
      field(t("compare.prompt"), this.#prompt, "compare-prompt-field"),
      el("div", { class: "compare-choices" },
        ...this.#sides.map((side) => field(t(`compare.${side.name}_model`), side.choice)),
        el("label", { class: "compare-check" }, this.#greedy, " ", t("compare.greedy")),
        el("div", { class: "compare-buttons" }, this.#start, this.#halt)),
      el("p", { class: "compare-note", text: note }),
    );
  }

  /** Ask both models at once, unless they are answering. */
  async #run() {
    const prompt = this.#prompt.value.trim();
    if (!prompt || this.#start.hasAttribute("disabled")) return;
    let body;
    try {
      body = this.#body(prompt);
    } catch (error) {
      if (!(error instanceof ApiFailure)) throw error;
      this.#said.textContent = error.message;
      return;
    }
    this.#busy(true);
    this.#details.replaceChildren();
    this.#said.textContent = t("compare.answering");
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    const watch = this.#watch();
    await Promise.all(this.#sides.map((side) => side.ask(body, signal, watch)));
    this.#busy(false);
    this.#conclude();
  }

  /** @param {string} prompt */
  #body(prompt) {
    const body = requestBody(this.#settings.current(), [{ role: "user", content: prompt }]);
    const rated = { logprobs: true, top_logprobs: ALTERNATIVES, seed: body.seed ?? 0 };
    return { ...body, ...rated, ...(this.#greedy.checked ? { temperature: 0 } : {}) };
  }

  /** What tells of the first difference as soon as both models have got there. */
  #watch() {
    let count = 0;
    let told = false;
    return () => {
      if (told) return;
      const [left, right] = this.#sides.map(({ record }) => record);
      count = agreedTokens(left.tokens, right.tokens, count);
      told = count < Math.min(left.tokens.length, right.tokens.length);
      if (told) this.#tell(left, right, count);
    };
  }

  /**
   * Say how far both agree, and the probabilities where they part.
   *
   * @param {Answer} left
   * @param {Answer} right
   * @param {number} count tokens that agree.
   */
  #tell(left, right, count) {
    this.#said.textContent = verdict(left, right, count);
    this.#details.replaceChildren(...differenceView(left, right, count));
  }

  /** Both have ended: tell about them, and show the tokens of both. */
  #conclude() {
    const [left, right] = this.#sides.map(({ record }) => record);
    const count = agreedTokens(left.tokens, right.tokens);
    this.#tell(left, right, count);
    for (const side of this.#sides) side.showTokens(count);
  }

  /**
   * One of both buttons can be pressed, and has the focus if the other one had it.
   *
   * @param {boolean} busy
   */
  #busy(busy) {
    const [on, off] = busy ? [this.#halt, this.#start] : [this.#start, this.#halt];
    on.removeAttribute("disabled");
    if (document.activeElement === off) on.focus();
    off.setAttribute("disabled", "");
  }
}

/** One of the two models, and its answer. */
class Side {
  #title = el("h2", {});
  #answer = el("div", {});
  #tokens = el("div", {});

  /**
   * @param {"left" | "right"} name
   * @param {string[]} models
   * @param {number} first index of the model that is chosen at first, where there is one.
   */
  constructor(name, models, first) {
    this.name = name;
    this.record = newAnswer("");
    const options = models.map((model) => el("option", { text: model }));
    this.choice = /** @type {HTMLSelectElement} */ (
      el("select", { id: `compare-${name}` }, ...options)
    );
    this.choice.selectedIndex = Math.min(first, models.length - 1);
    this.element = el(
      "section",
      { class: "compare-side", "aria-label": t(`compare.${name}_answer`) },
      this.#title,
      this.#answer,
      this.#tokens,
    );
  }

  /**
   * Ask the model that is chosen now.
   *
   * @param {object} body without the model.
   * @param {AbortSignal} signal
   * @param {() => void} onEvent
   */
  async ask(body, signal, onEvent) {
    const model = this.choice.value;
    this.record = newAnswer(model);
    const view = new AnswerView(this.record);
    this.#title.textContent = t(`compare.${this.name}_named`, { model });
    this.#answer.replaceChildren(view.element, view.figures);
    this.#tokens.replaceChildren();
    await streamInto(view, { ...body, model }, signal, onEvent);
  }

  /**
   * Show the answer's tokens.
   *
   * @param {number} mark index of the one to point out.
   */
  showTokens(mark) {
    const { tokens } = this.record;
    if (!tokens.length) return;
    const view = tokenView(tokens, { mark, label: t(`compare.${this.name}_tokens`) });
    this.#tokens.replaceChildren(el("h3", { text: t("compare.tokens") }), view);
  }
}

/**
 * @param {string} label
 * @param {HTMLElement} input with an id.
 * @param {string} [className]
 */
function field(label, input, className = "") {
  return el("div", { class: `compare-field ${className}`.trim() },
    el("label", { for: input.id, text: label }), input);
}
