// @ts-check
/** The live panel: what the server is doing, drawn from GET /metrics while somebody looks. */

import { getText } from "./api.js";
import { el, svg } from "./dom.js";
import { readMetrics, tokenRates } from "./metrics.js";
import { number, t } from "./text.js";

const PERIOD_MS = 2000;
/** Readings that the curve shows: two minutes. */
const MOST = 60;
const WIDTH = 120;
const HEIGHT = 24;

/** @typedef {import("./metrics.js").ModelReading & {rate: number}} ModelNow */

/**
 * Show a panel that follows the server, and stands still while the page is hidden.
 *
 * @param {HTMLElement} container
 */
export function startLivePanel(container) {
  const panel = new LivePanel();
  container.append(panel.element);
  const poll = new Poll(async () => panel.show(await read()), () => panel.fail());
  document.addEventListener("visibilitychange", () => poll.run(!document.hidden));
  poll.run(!document.hidden);
}
