// @ts-check
/** One message of a conversation on the screen, with what can be done to it. */

import { copyFrom } from "./code.js";
import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./text.js";
import { tokenView } from "./tokens.js";

/**
 * @typedef {import("./tree.js").TreeNode} TreeNode
 * @typedef {{onEdit: (node: TreeNode, content: string) => boolean,
 *   onRegenerate: (node: TreeNode) => void, onContinue: (node: TreeNode) => void, onDelete: (node: TreeNode) => void,
 *   onVersion: (id: string, step: string) => void}} Actions `onEdit` says
 *   whether the text was taken; `onVersion`: show the version with this id; `step` is the button
 *   that was pressed, `previous` or `next`.
 */

/**
 * @param {TreeNode} node
 * @param {import("./answer.js").AnswerView | null} view that of an answer.
 * @param {Actions} actions
 * @returns {{element: HTMLElement, setVersions: (ids: string[]) => void,
 *   focusStep: (step: string) => void}} `setVersions` is told the ids of all versions of the
 *   message whenever there may be others; `focusStep` focuses a button of them, another where that
 *   is off.
 */
export function messageItem(node, view, actions) {
  const versions = el("span", { class: "versions" });
  const bar = el("div", { class: "bar" }, versions);
  const element = el("li", { class: "message", "data-role": node.role });
  element.append(el("div", { class: "who", text: who(node) }), view?.element ?? plain(node), bar);
  bar.append(...buttons(node, element, actions));
  if (view) bar.append(view.figures);
  return {
    element,
    setVersions: (ids) => {
      drawVersions(versions, node.id, ids, actions.onVersion);
      element.querySelector(".continue")?.toggleAttribute("hidden", !wasCut(node));
    },
    focusStep: (step) => {
      const same = versions.querySelector(`[data-step="${step}"]:enabled`);
      const button = same ?? versions.querySelector("button:enabled");
      /** @type {HTMLElement | null} */ (button)?.focus();
    },
  };
}

/** @param {TreeNode} node */
function who(node) {
  if (node.role === "assistant") return node.model || t("chat.assistant");
  return t(node.role === "user" ? "chat.you" : "chat.result");
}

/** Whether an answer has more to say. @param {TreeNode} node */
function wasCut(node) {
  const early = ["stopped", "length", "unfinished"].includes(node.finish ?? "");
  return Boolean((early || node.error) && node.content && !node.calls?.length);
}

/** @param {TreeNode} node */
function plain(node) {
  return el("div", { class: "content plain", dir: "auto", text: node.content });
}

/**
 * @param {TreeNode} node
 * @param {HTMLElement} item
 * @param {Actions} actions
 */
function buttons(node, item, actions) {
  const copy = tool("copy", () => copyFrom(copy, node.content));
  const drop = tool("delete", () => actions.onDelete(node), "trash");
  if (node.role === "tool") return [copy, drop];
  if (node.role === "user") return [tool("edit", () => edit(node, item, actions)), copy, drop];
  const again = tool("regenerate", () => actions.onRegenerate(node), "refresh");
  const on = tool("continue", () => actions.onContinue(node));
  on.classList.add("continue");
  const tokens = tool("tokens", () => toggleTokens(node, item, tokens));
  tokens.setAttribute("aria-pressed", "false");
  return [again, on, copy, tokens, drop];
}

/**
 * @param {string} name of the text and, but for a few, of the icon.
 * @param {() => void} onClick
 * @param {string} [shape]
 */
function tool(name, onClick, shape = name) {
  const drawn = icon(/** @type {any} */ (shape));
  return button(t(`chat.${name}`), onClick, { icon: drawn, class: "quiet" });
}

/**
 * Let the user rewrite a message in its place.
 *
 * @param {TreeNode} node
 * @param {HTMLElement} item
 * @param {Actions} actions
 */
function edit(node, item, actions) {
  const box = /** @type {HTMLTextAreaElement} */ (
    el("textarea", { class: "grows", rows: 2, dir: "auto", "aria-label": t("chat.edit_label") })
  );
  box.value = node.content;
  const shown = [...item.children].filter((child) => !child.matches(".who"));
  const editor = el("form", { class: "editor", on: { submit: save, keydown: key } },
    box,
    el("div", { class: "row end" },
      button(t("chat.cancel"), leave),
      el("button", { type: "submit", class: "primary", text: t("chat.save") })));
  for (const child of shown) child.toggleAttribute("hidden", true);
  item.append(editor);
  box.focus();

  function leave() {
    editor.remove();
    for (const child of shown) child.toggleAttribute("hidden", false);
    /** @type {HTMLElement | null} */ (item.querySelector(".bar button:not(.versions *)"))?.focus();
  }

  /** @param {Event} event */
  function save(event) {
    event.preventDefault();
    if (box.value.trim() && actions.onEdit(node, box.value)) leave();
  }

  /** @param {KeyboardEvent} event */
  function key(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && !event.shiftKey && event.target === box) save(event);
  }
}

/**
 * Show an answer token by token, or as text again.
 *
 * @param {TreeNode} node
 * @param {HTMLElement} item
 * @param {HTMLElement} from
 */
function toggleTokens(node, item, from) {
  const on = from.getAttribute("aria-pressed") !== "true";
  from.setAttribute("aria-pressed", String(on));
  item.querySelector(".answer")?.toggleAttribute("hidden", on);
  item.querySelector(".tokens-box")?.remove();
  if (!on) return;
  const tokens = node.tokens ?? [];
  const inside = tokens.length
    ? tokenView(tokens)
    : el("p", { class: "hint", text: t("chat.no_tokens") });
  item.querySelector(".bar")?.before(el("div", { class: "tokens-box" }, inside));
}

/**
 * @param {HTMLElement} box
 * @param {string} id
 * @param {string[]} ids
 * @param {Actions["onVersion"]} onVersion
 */
function drawVersions(box, id, ids, onVersion) {
  // What has not changed keeps the focus that it may have.
  if (box.dataset.ids === ids.join()) return;
  box.dataset.ids = ids.join();
  const at = ids.indexOf(id);
  const step = (/** @type {string} */ name, /** @type {number} */ to, /** @type {any} */ shape) =>
    button(t(`chat.${name}`), () => onVersion(ids[to], name), {
      icon: icon(shape),
      class: "quiet",
      "data-step": name,
      disabled: to < 0 || to >= ids.length,
    });
  const place = t("chat.version", { at: at + 1, count: ids.length });
  const parts = [step("previous", at - 1, "back"), el("span", { class: "number", text: place }),
    step("next", at + 1, "chevron")];
  box.replaceChildren(...(ids.length > 1 ? parts : []));
}
