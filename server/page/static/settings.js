// @ts-check
/** The panel of settings, and the request that they make. */

import { button, el } from "./dom.js";
import { fieldInput, parseObject } from "./fields.js";
import { icon } from "./icons.js";
import { apiKey, forgetKey } from "./key.js";
import { keepLook, readItem, readLook, writeItem } from "./look.js";
import { LANGUAGES, t } from "./text.js";
import { parseTools } from "./tools.js";

/**
 * @typedef {import("./tree.js").ChatSettings} ChatSettings
 * @typedef {{id: string, status?: {value: string}, max_model_len?: number}} Model
 * @typedef {ReturnType<typeof settingsPanel>} Settings
 */

const NAME = "halfbyte.settings";
const TOP_LOGPROBS = 5;

/** Settings that leave everything to the server. @returns {ChatSettings} */
function untouched() {
  return { model: "", system: "", params: {}, schema: "", tools: "", probabilities: false };
}

/**
 * The body of `/page/chat`.
 *
 * @param {ChatSettings} settings
 * @param {object[]} messages as the API takes them, without the system prompt.
 * @returns {Record<string, any>}
 * @throws {import("./api.js").ApiFailure} the schema or the tools cannot be read.
 */
export function requestBody(settings, messages) {
  const { model, system, params, schema, tools, probabilities } = settings;
  const lead = system.trim() ? [{ role: "system", content: system }] : [];
  return {
    ...params,
    model,
    messages: [...lead, ...messages],
    stream: true,
    stream_options: { include_usage: true },
    ...(schema.trim() ? { response_format: responseFormat(schema) } : {}),
    ...(tools.trim() ? { tools: parseTools(tools) } : {}),
    ...(probabilities ? { logprobs: true, top_logprobs: TOP_LOGPROBS } : {}),
  };
}

/**
 * What is wrong with a box's text, empty when nothing is. The text stays as it is, to be mended;
 * until then no request is made with it.
 *
 * @param {"system" | "schema" | "tools"} name
 * @param {string} text
 */
function problem(name, text) {
  if (!text.trim()) return "";
  try {
    if (name === "schema") responseFormat(text);
    if (name === "tools") parseTools(text);
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** @param {string} text */
function responseFormat(text) {
  const schema = parseObject(t("settings.schema"), text);
  return { type: "json_schema", json_schema: { name: "answer", schema } };
}

/**
 * @param {{models: Model[], fields: import("./fields.js").Field[],
 *   onChange: (settings: ChatSettings) => void, onLanguage: () => void}} parts `onChange` is told
 *   of each change by the user; `onLanguage` must load the page anew.
 */
export function settingsPanel({ models, fields, onChange, onLanguage }) {
  let settings = withModel({ ...untouched(), ...readItem(NAME) });
  const dialog = /** @type {HTMLDialogElement} */ (
    el("dialog", { class: "sheet", "aria-labelledby": "settings-title" })
  );
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  // A box that the Escape key is pressed in says what was typed into it.
  dialog.addEventListener("cancel", () => {
    /** @type {HTMLElement | null} */ (document.activeElement)?.blur();
  });

  /**
   * @param {ChatSettings} wanted
   * @returns {ChatSettings}
   */
  function withModel(wanted) {
    return { ...wanted, model: wanted.model || (models[0]?.id ?? "") };
  }

  /** @param {Partial<ChatSettings>} part */
  function change(part) {
    settings = { ...settings, ...part };
    writeItem(NAME, settings);
    onChange(settings);
  }

  /**
   * @param {string} name
   * @param {unknown} value
   */
  function setParam(name, value) {
    const { [name]: _, ...others } = settings.params;
    change({ params: value === undefined ? others : { ...others, [name]: value } });
  }

  /** @param {boolean} usual */
  function inputs(usual) {
    return fields.filter((field) => field.usual === usual).map((field) =>
      fieldInput(field, settings.params[field.name], (value) => setParam(field.name, value)));
  }

  /**
   * @param {"system" | "schema" | "tools"} name
   * @param {number} rows
   */
  function textBox(name, rows) {
    const id = `settings-${name}`;
    const box = /** @type {HTMLTextAreaElement} */ (
      el("textarea", { id, rows, spellcheck: name === "system" ? null : "false",
        class: name === "system" ? "" : "mono", "aria-describedby": `${id}-hint ${id}-wrong` })
    );
    const wrong = el("p", { class: "field-error", id: `${id}-wrong`, role: "alert" });
    const check = () => {
      wrong.textContent = problem(name, box.value);
      box.removeAttribute("aria-invalid");
      if (wrong.textContent) box.setAttribute("aria-invalid", "true");
    };
    box.value = settings[name];
    check();
    box.addEventListener("change", () => {
      change({ [name]: box.value });
      check();
    });
    return el("div", { class: "field wide" },
      el("label", { for: id, text: t(`settings.${name}`) }),
      box,
      wrong,
      el("p", { class: "hint", id: `${id}-hint`, text: t(`settings.${name}_hint`) }));
  }

  function modelChoice() {
    const known = models.some((model) => model.id === settings.model);
    const items = models.map((model) => /** @type {[string, string]} */ ([model.id, label(model)]));
    if (!known && settings.model) {
      items.push([settings.model, t("settings.elsewhere", { model: settings.model })]);
    }
    return choice("model", items, settings.model, (model) => change({ model }));
  }

  function probabilities() {
    const box = /** @type {HTMLInputElement} */ (
      el("input", { type: "checkbox", id: "settings-probabilities",
        "aria-describedby": "settings-probabilities-hint" })
    );
    box.checked = settings.probabilities;
    box.addEventListener("change", () => change({ probabilities: box.checked }));
    return el("div", { class: "field wide" },
      el("label", { class: "check" }, box, t("settings.probabilities")),
      el("p", { class: "hint", id: "settings-probabilities-hint",
        text: t("settings.probabilities_hint") }));
  }

  function looks() {
    const themes = ["system", "dark", "light"].map((name) =>
      /** @type {[string, string]} */ ([name, t(`settings.${name}_theme`)]));
    const theme = choice("theme", themes, readLook().theme, (value) =>
      keepLook({ ...readLook(), theme: /** @type {any} */ (value) }));
    const languages = /** @type {[string, string][]} */ (
      [["", t("settings.browser_language")], ...Object.entries(LANGUAGES)]
    );
    const language = choice("language", languages, readLook().language, (value) => {
      keepLook({ ...readLook(), language: value });
      onLanguage();
    });
    return el("div", { class: "grid" }, theme, language);
  }

  function keyRow() {
    if (!apiKey()) return null;
    const forget = button(t("settings.forget_key"), () => {
      forgetKey();
      forget.remove();
    });
    return forget;
  }

  function draw() {
    const more = inputs(false);
    dialog.replaceChildren(
      el("div", { class: "sheet-head" },
        el("h2", { id: "settings-title", text: t("settings.title") }),
        button(t("settings.close"), () => dialog.close(), { icon: icon("close"), class: "quiet" })),
      el("div", { class: "sheet-body" },
        el("section", {}, modelChoice(), textBox("system", 3)),
        el("section", {},
          el("h3", { text: t("settings.sampling") }),
          el("div", { class: "grid" }, ...inputs(true)),
          more.length
            ? el("details", { class: "more" }, el("summary", { text: t("settings.more") }),
              el("div", { class: "grid" }, ...more))
            : null),
        el("section", {}, el("h3", { text: t("settings.shape") }),
          textBox("schema", 3), textBox("tools", 3), probabilities()),
        el("section", {}, el("h3", { text: t("settings.look") }), looks()),
        el("div", { class: "row" },
          button(t("settings.reset"), () => {
            change({ ...untouched(), model: settings.model });
            draw();
          }),
          keyRow())),
    );
  }

  return {
    element: dialog,

    /** What the next request is made with. */
    current: () => settings,

    /** @param {ChatSettings} wanted those of the conversation that is open now. */
    load(wanted) {
      settings = withModel({ ...untouched(), ...wanted });
    },

    /** Show the panel. */
    show() {
      draw();
      dialog.showModal();
      dialog.scrollTop = 0;
    },
  };
}

/**
 * @param {string} name
 * @param {[string, string][]} items values and what is shown for them.
 * @param {string} value
 * @param {(value: string) => void} onValue
 */
function choice(name, items, value, onValue) {
  const id = `settings-${name}`;
  const options = items.map(([item, text]) => el("option", { value: item, text }));
  const select = /** @type {HTMLSelectElement} */ (el("select", { id }, ...options));
  select.value = value;
  select.addEventListener("change", () => onValue(select.value));
  return el("div", { class: "field" },
    el("label", { for: id, text: t(`settings.${name}`) }), select);
}

/** @param {Model} model */
function label(model) {
  const state = model.status?.value;
  return !state || state === "loaded" || state === "ready" ? model.id : `${model.id} (${state})`;
}
