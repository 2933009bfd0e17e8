// @ts-check
/** The page's own icons: strokes on a grid of 16. */

import { svg } from "./dom.js";

const STROKES = {
  chevron: "M6 3.5 10.5 8 6 12.5",
  back: "M10 3.5 5.5 8 10 12.5",
  close: "M4 4l8 8M12 4l-8 8",
  continue: "M3.5 3.5 8 8l-4.5 4.5M8.5 3.5 13 8l-4.5 4.5",
  copy: "M5.5 5.5h7v8h-7zM3.5 10.5v-8h7",
  down: "M8 3v9.5M4 8.5 8 12.5l4-4",
  edit: "M3 13l.7-2.9L10.6 3.2l2.2 2.2L5.9 12.3zM9.3 4.5l2.2 2.2",
  menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
  plus: "M8 3v10M3 8h10",
  refresh: "M12.8 6.5A5 5 0 1 0 13 9M13 3v3.5H9.5",
  send: "M8 13V3.5M4 7.2l4-4 4 4",
  settings: "M2.5 5h6M12.5 5h1M2.5 11h1M7.5 11h6M10.5 3a2 2 0 1 0 0 4 2 2 0 0 0 0-4z"
    + "M5.5 9a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
  stop: "M4.5 4.5h7v7h-7z",
  tokens: "M3 13V9M6.3 13V5M9.7 13V7.5M13 13V3",
  trash: "M3 4.5h10M6.5 4V2.5h3V4M4.5 4.5l.6 9h5.8l.6-9M6.8 7v4M9.2 7v4",
};

/**
 * A decoration; what it means is the name of the button that it is in.
 *
 * @param {keyof typeof STROKES} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const shape = { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" };
  return svg("svg", shape, svg("path", { d: STROKES[name] }));
}
