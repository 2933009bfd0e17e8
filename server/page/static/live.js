// @ts-check
/** The live panel: what the server is doing, drawn from GET /metrics while somebody looks. */

import { getText } from "./api.js";
import { el, svg } from "./dom.js";
import { readMetrics, tokenRates } from "./metrics.js";
import { number, t } from "./text.js";

const PERIOD_MS = 2000;
/** Readings that the curve shows: two minutes. */
const MOST = 60;
const WIDTH = 96;
const HEIGHT = 24;
const UNKNOWN = "–";
const TABLE = "live-models";

/** @typedef {import("./metrics.js").ModelReading} ModelReading */

/**
 * Show a panel that follows the server, and stands still while the page is hidden.
 *
 * @param {HTMLElement} container
 */
export function startLivePanel(container) {
  const panel = new LivePanel();
  container.append(panel.element);
  follow(panel);
}

/**
 * Read the metrics every other second, as long as the page is open.
 *
 * @param {LivePanel} panel
 */
async function follow(panel) {
  for (;;) {
    if (document.hidden) {
      panel.pause();
      await new Promise((seen) => {
        document.addEventListener("visibilitychange", seen, { once: true });
      });
    }
    try {
      panel.show(readMetrics(await getText("/metrics")), performance.now());
    } catch {
      panel.fail();
    }
    await new Promise((over) => setTimeout(over, PERIOD_MS));
  }
}

/** Figures of the whole server, a curve of its speed, and a table of its models. */
class LivePanel {
  /** @type {{at: number, models: Map<string, ModelReading>} | null} */
  #last = null;
  /** @type {number[]} */
  #speeds = [];
  #figures = {
    running: figure("live.running"),
    waiting: figure("live.waiting"),
    kv: figure("live.kv"),
    rate: figure("live.rate"),
    memory: figure("live.memory"),
  };
  #area = svg("polygon", { class: "live-area" });
  #curve = svg("polyline", { class: "live-curve" });
  #rows = el("tbody");
  #table = el(
    "div",
    { class: "live-table", id: TABLE, popover: "auto", on: { beforetoggle: () => this.#place() } },
    el("table", {}, heads(), this.#rows),
  );
  #models = el("button", {
    type: "button", class: "quiet", popovertarget: TABLE, hidden: true, text: t("live.models"),
  });
  #trouble = el("p", { class: "live-trouble", hidden: true, text: t("live.no_answer") });
  #list = el("dl", {}, ...Object.values(this.#figures).map(({ item }) => item));

  constructor() {
    const box = { class: "live-spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" };
    const spark = svg("svg", { ...box, preserveAspectRatio: "none" }, this.#area, this.#curve);
    this.element = el(
      "section",
      { class: "live", "aria-label": t("live.title") },
      this.#list,
      spark,
      this.#models,
      this.#table,
      this.#trouble,
    );
  }

  /**
   * Show a reading.
   *
   * @param {{memory: number | null, models: Map<string, ModelReading>}} reading
   * @param {number} at when it was made, in milliseconds.
   */
  show({ memory, models }, at) {
    const seconds = this.#last ? (at - this.#last.at) / 1000 : 0;
    const rates = this.#last ? tokenRates(this.#last.models, models, seconds) : new Map();
    const all = [...models.values()];
    const speed = sum([...rates.values()]);
    this.#write("running", number(sum(all.map(({ running }) => running))));
    this.#write("waiting", number(sum(all.map(({ waiting }) => waiting))));
    this.#write("kv", share(Math.max(0, ...all.map(({ kv }) => kv))));
    this.#write("memory", memory === null ? null : gibibytes(memory));
    if (this.#last) {
      this.#write("rate", number(speed, 1));
      this.#draw(speed);
    }
    this.#last = { at, models };
    this.#models.hidden = models.size < 2;
    const rows = [...models].map(([name, now]) => row(name, now, rates.get(name)));
    this.#rows.replaceChildren(...rows);
    this.#say(false);
  }

  /** The server gave no metrics. */
  fail() {
    this.#last = null;
    this.#say(true);
  }

  /** Nobody looks; the next reading is not held against the last one. */
  pause() {
    this.#last = null;
  }

  /** The table opens below its button. */
  #place() {
    this.#table.style.top = `${this.#models.getBoundingClientRect().bottom + 8}px`;
  }

  /** @param {boolean} trouble */
  #say(trouble) {
    this.#trouble.hidden = !trouble;
    this.#list.classList.toggle("live-old", trouble);
  }

  /**
   * @param {"running" | "waiting" | "kv" | "rate" | "memory"} name
   * @param {string | null} text null where the server does not tell.
   */
  #write(name, text) {
    const { item, value } = this.#figures[name];
    item.hidden = text === null;
    if (value.textContent !== text) value.textContent = text;
  }

  /** @param {number} speed tokens a second. */
  #draw(speed) {
    this.#speeds = [...this.#speeds, speed].slice(-MOST);
    const most = Math.max(1, ...this.#speeds);
    const first = MOST - this.#speeds.length;
    const points = this.#speeds.map((one, index) => {
      const x = ((first + index) / (MOST - 1)) * WIDTH;
      return `${x.toFixed(1)},${(HEIGHT - 1 - (one / most) * (HEIGHT - 2)).toFixed(1)}`;
    });
    const start = ((first / (MOST - 1)) * WIDTH).toFixed(1);
    this.#curve.setAttribute("points", points.join(" "));
    this.#area.setAttribute("points", `${start},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`);
  }
}

/** @param {string} key of its name. */
function figure(key) {
  const value = el("dd", { text: UNKNOWN });
  return { value, item: el("div", {}, el("dt", { text: t(key) }), value) };
}

function heads() {
  const keys = ["live.model", "live.running", "live.waiting", "live.kv", "live.rate"];
  const cells = keys.map((key) => el("th", { scope: "col", text: t(key) }));
  return el("thead", {}, el("tr", {}, ...cells));
}

/**
 * @param {string} name
 * @param {ModelReading} now
 * @param {number | undefined} rate undefined where there is no earlier reading.
 */
function row(name, { running, waiting, kv }, rate) {
  const speed = rate === undefined ? UNKNOWN : number(rate, 1);
  const texts = [number(running), number(waiting), share(kv), speed];
  const cells = texts.map((text) => el("td", { text }));
  return el("tr", {}, el("th", { scope: "row", text: name }), ...cells);
}

/** @param {number} part 0 to 1. */
function share(part) {
  return t("live.percent", { value: number(part * 100, part < 0.1 ? 1 : 0) });
}

/** @param {number} bytes */
function gibibytes(bytes) {
  return t("live.gib", { value: number(bytes / 2 ** 30, 2) });
}

/** @param {number[]} numbers */
function sum(numbers) {
  return numbers.reduce((total, one) => total + one, 0);
}
