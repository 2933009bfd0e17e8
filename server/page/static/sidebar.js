// @ts-check
/** The list of conversations. */

import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { language, t } from "./text.js";

/** @typedef {import("./store.js").Summary} Summary */

const DAY_MS = 86_400_000;
const SEARCH_MS = 150;

/**
 * @param {HTMLElement} container a `nav`.
 * @param {{store: import("./store.js").Store, onOpen: (id: string | null) => void,
 *   onRename: (id: string, title: string) => void, onDelete: (id: string) => void,
 *   tell: ReturnType<typeof import("./notices.js").noticeBoard>}} parts `onOpen`: null is a new
 *   conversation; `tell` shows how exports and imports went.
 */
export function sidebar(container, { store, onOpen, onRename, onDelete, tell }) {
  /** @type {string | null} */
  let open = null;
  let asked = 0;
  let timer = 0;
  const list = el("div", { class: "conversations" });
  const search = /** @type {HTMLInputElement} */ (
    el("input", { type: "search", "aria-label": t("sidebar.search"), class: "search",
      placeholder: t("sidebar.search"), on: { input: searchSoon } })
  );
  const file = /** @type {HTMLInputElement} */ (
    el("input", { type: "file", class: "unseen", accept: ".json,application/json",
      tabindex: "-1", "aria-label": t("sidebar.file"), on: { change: importChosen } })
  );
  const create = button(t("sidebar.new"), () => onOpen(null), { class: "create" });
  create.prepend(icon("plus"));
  container.setAttribute("aria-label", t("sidebar.name"));
  container.append(
    el("div", { class: "sidebar-head" }, create, search),
    list,
    el("div", { class: "sidebar-foot" },
      button(t("sidebar.export"), exportFile, {}),
      button(t("sidebar.import"), () => file.click(), {}), file));

  function searchSoon() {
    clearTimeout(timer);
    timer = setTimeout(refresh, SEARCH_MS);
  }

  async function refresh() {
    asked += 1;
    const mine = asked;
    const text = search.value.trim();
    const found = await (text ? store.search(text) : store.list());
    // An answer that was overtaken by a later question is old.
    if (mine !== asked || list.querySelector("form")) return;
    draw(found, text);
  }

  /**
   * @param {Summary[]} found
   * @param {string} text
   */
  function draw(found, text) {
    const parts = [];
    let group = "";
    let items = el("ul", {});
    for (const item of found) {
      const name = groupOf(item.updated);
      if (name !== group) {
        items = el("ul", {});
        parts.push(el("h2", { text: name }), items);
        group = name;
      }
      items.append(row(item));
    }
    if (!found.length) {
      const key = text ? "sidebar.none_found" : "sidebar.none";
      parts.push(el("p", { class: "hint", text: t(key) }));
    }
    const place = list.scrollTop;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.key;
    list.replaceChildren(...parts);
    list.scrollTop = place;
    if (focused) /** @type {HTMLElement | null} */ (
      list.querySelector(`[data-key="${focused}"]`))?.focus();
  }

  /** @param {Summary} item */
  function row(item) {
    const title = item.title || t("sidebar.untitled");
    const id = `conversation-${item.id}`;
    const line = el("li", { class: "conversation" },
      button(title, () => onOpen(item.id), { id, class: "title", dir: "auto", title,
        "data-key": id, "aria-current": item.id === open ? "true" : null }),
      button(t("sidebar.rename"), () => rename(line, item), { icon: icon("edit"), class: "quiet",
        "aria-describedby": id, "data-key": `rename-${item.id}` }),
      button(t("sidebar.delete"), () => onDelete(item.id), { icon: icon("trash"),
        class: "quiet", "aria-describedby": id, "data-key": `delete-${item.id}` }));
    return line;
  }

  /**
   * @param {HTMLElement} line
   * @param {Summary} item
   */
  function rename(line, item) {
    const box = /** @type {HTMLInputElement} */ (
      el("input", { type: "text", "aria-label": t("sidebar.title"), dir: "auto",
        on: { blur: done, keydown: key } })
    );
    box.value = item.title;
    const form = el("form", { on: { submit: done } }, box);
    // Taking the focused box away makes it lose the focus, which would end the renaming again.
    let over = false;
    line.replaceChildren(form);
    box.select();

    /** @param {Event} event */
    function done(event) {
      event.preventDefault();
      if (over) return;
      const title = box.value.trim();
      leave();
      if (title && title !== item.title) onRename(item.id, title);
    }

    function leave() {
      over = true;
      const fresh = row(item);
      line.replaceWith(fresh);
      /** @type {HTMLElement} */ (fresh.children[1]).focus();
      refresh();
    }

    /** @param {KeyboardEvent} event */
    function key(event) {
      if (event.key === "Escape") leave();
      event.stopPropagation();
    }
  }

  async function exportFile() {
    const url = URL.createObjectURL(await store.exportAll());
    const day = new Date().toISOString().slice(0, 10);
    el("a", { href: url, download: `halfbyte-conversations-${day}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  async function importChosen() {
    const chosen = file.files?.[0];
    if (!chosen) return;
    try {
      const { added, known } = await store.importFile(chosen);
      const also = known ? ` ${t("sidebar.known", { count: known })}` : "";
      tell(t("sidebar.imported", { count: added }) + also);
    } catch (error) {
      tell(error instanceof Error ? error.message : String(error), { lasts: true, trouble: true });
    }
    file.value = "";
    refresh();
  }

  return {
    refresh,
    exportFile,
    focus: () => create.focus(),

    /** Let the user type what to search for. */
    search: () => search.focus(),

    /** @param {string} id the conversation that is open. */
    setOpen(id) {
      open = id;
      for (const title of list.querySelectorAll(".title")) {
        if (title.id === `conversation-${id}`) title.setAttribute("aria-current", "true");
        else title.removeAttribute("aria-current");
      }
    },
  };
}

/** @param {number} time milliseconds. */
function groupOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  const days = Math.max(0, Math.ceil((today - time) / DAY_MS));
  const words = new Intl.RelativeTimeFormat(language(), { numeric: "auto" });
  if (days < 2) return capital(words.format(-days, "day"));
  if (days <= 7) return t("sidebar.week");
  const month = new Intl.DateTimeFormat(language(), { month: "long", year: "numeric" });
  return capital(month.format(time));
}

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toLocaleUpperCase(language()) + text.slice(1);
}
