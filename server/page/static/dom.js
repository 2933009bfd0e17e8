// @ts-check
/** Elements without a framework. Text is always text here; HTML comes in by `setHtml` alone. */

const SVG = "http://www.w3.org/2000/svg";

/** Turns the server's sanitized HTML into what the browser lets into the document. */
const policy = makePolicy();

function makePolicy() {
  /** @type {any} */
  const types = Reflect.get(globalThis, "trustedTypes");
  const pass = { createHTML: (/** @type {string} */ html) => html };
  return types ? types.createPolicy("halfbyte", pass) : pass;
}

/**
 * An HTML element.
 *
 * @param {string} tag
 * @param {Record<string, any>} [props] `class`, `text`, `on: {click: handler}`; all others are
 *   attributes: true is an empty one, false, null and undefined are none.
 * @param {...(Node | string | null | undefined)} children null and undefined are left out.
 * @returns {HTMLElement}
 */
export function el(tag, props = {}, ...children) {
  return /** @type {HTMLElement} */ (fill(document.createElement(tag), props, children));
}

/**
 * An SVG element; arguments as those of `el`.
 *
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node | string | null | undefined)} children
 * @returns {SVGElement}
 */
export function svg(tag, props = {}, ...children) {
  return /** @type {SVGElement} */ (fill(document.createElementNS(SVG, tag), props, children));
}

/**
 * A button that does not submit anything.
 *
 * @param {string} label its accessible name, and its text where there is no icon.
 * @param {(event: MouseEvent) => void} onClick
 * @param {Record<string, any>} [props] as those of `el`, and `icon`: a node shown in place of text.
 * @returns {HTMLButtonElement}
 */
export function button(label, onClick, props = {}) {
  const { icon, on, ...rest } = props;
  const named = icon ? { "aria-label": label, title: label } : {};
  const all = { type: "button", ...named, ...rest, on: { ...on, click: onClick } };
  return /** @type {HTMLButtonElement} */ (el("button", all, icon ?? label));
}

/**
 * Replace what is in a node by HTML that the server has sanitized.
 *
 * @param {Element} node
 * @param {string} html
 */
export function setHtml(node, html) {
  node.innerHTML = policy.createHTML(html);
}

/**
 * @param {Element} node
 * @param {Record<string, any>} props
 * @param {(Node | string | null | undefined)[]} children
 */
function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "text") {
      node.textContent = value;
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, String(value));
    }
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
