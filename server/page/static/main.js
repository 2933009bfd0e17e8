// @ts-check
/** Puts the page together. */

import { getJson } from "./api.js";
import { chatView } from "./chat.js";
import { compareView } from "./compare.js";
import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { startLivePanel } from "./live.js";
import { readLook, showLook } from "./look.js";
import { eachOnce } from "./models.js";
import { noticeBoard } from "./notices.js";
import { settingsPanel } from "./settings.js";
import { sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { loadTexts, t } from "./text.js";

const WIDE = matchMedia("(min-width: 56rem)");

showLook(readLook());
boot().catch((error) => {
  document.body.append(el("p", { class: "alert", role: "alert", text: String(error) }));
});

async function boot() {
  await loadTexts(readLook().language);
  byId("skip").textContent = t("frame.skip");
  const tell = noticeBoard(byId("notices"));
  const [models, fields] = await Promise.all([
    getJson("/v1/models").then((found) => eachOnce(found.data), complain([])),
    getJson("/page/fields").then((found) => found.fields, complain([])),
  ]);
  /** @type {HTMLElement | null} */
  let trouble = null;
  let unsaved = false;
  const store = await openStore((found) => {
    trouble?.remove();
    unsaved = found !== null && found.held > 0;
    const action = { label: t("sidebar.export"), run: () => side.exportFile() };
    trouble = found && tell(t(`store.${found.kind}`), { lasts: true, trouble: true, action });
  });
  const settings = settingsPanel({
    models,
    fields,
    onChange: () => chat.setSettings(),
    onLanguage: async () => {
      await chat.keepRunning();
      location.reload();
    },
  });
  const chat = chatView({
    store,
    settings,
    models,
    say: (text) => {
      byId("status").textContent = text;
    },
    onChange: () => {
      showPlace(chat.id());
      side.refresh();
    },
    onDeleted: offerUndo,
  });
  const side = sidebar(byId("sidebar"), {
    store,
    tell,
    onOpen: (id) => go(id),
    onRename: rename,
    onDelete: drop,
  });
  const names = models.map((/** @type {import("./settings.js").Model} */ model) => model.id);
  const compare = compareView({ models: names, settings });
  const views = { chat: chat.element, compare };
  byId("main").append(...Object.values(views));
  const header = buildHeader();
  document.body.append(settings.element);

  /** @param {any} instead of what did not come. */
  function complain(instead) {
    return (/** @type {Error} */ error) => {
      tell(error.message, { lasts: true, trouble: true,
        action: { label: t("answer.try_again"), run: () => location.reload() } });
      return instead;
    };
  }

  function buildHeader() {
    const menu = button(t("frame.conversations"), () => setSidebar(!sidebarIsOpen()), {
      icon: icon("menu"),
      class: "quiet menu",
      "aria-expanded": "false",
      "aria-controls": "sidebar",
    });
    const link = (/** @type {string} */ name) => el("a", { href: `#${name}`, text:
      t(`frame.${name}`), on: { click: name === "chat" ? backToChat : () => {} } });
    const links = { chat: link("chat"), compare: link("compare") };
    const live = el("div", { class: "live-place" });
    byId("header").append(
      menu,
      el("h1", { class: "brand", text: "Halfbyte" }),
      el("div", { class: "views" }, links.chat, links.compare),
      live,
      button(t("frame.settings"), settings.show, { icon: icon("settings"), class: "quiet" }));
    startLivePanel(live);
    return { menu, links };
  }

  /** @param {Event} event */
  function backToChat(event) {
    event.preventDefault();
    location.hash = `chat/${chat.id()}`;
  }

  function sidebarIsOpen() {
    return document.body.classList.contains("sidebar-open");
  }

  /** @param {boolean} on */
  function setSidebar(on) {
    if (on === sidebarIsOpen()) return;
    document.body.classList.toggle("sidebar-open", on);
    header.menu.setAttribute("aria-expanded", String(on));
    // What is behind an open sidebar must not be reached by keyboard.
    byId("main").inert = on && !WIDE.matches;
    if (on) side.focus();
    else header.menu.focus();
  }

  /** @param {string | null} id */
  async function go(id) {
    setSidebar(false);
    await chat.open(id);
    showPlace(chat.id());
    show("chat");
  }

  /** @param {string} id of the conversation that the address names from now on. */
  function showPlace(id) {
    side.setOpen(id);
    document.title = chat.title() || "Halfbyte";
    const place = `#chat/${id}`;
    if (location.hash.startsWith("#compare")) return;
    if (location.hash !== place) history.replaceState(null, "", place);
  }

  /** @param {"chat" | "compare"} name */
  function show(name) {
    for (const [other, view] of Object.entries(views)) view.hidden = other !== name;
    for (const [other, link] of Object.entries(header.links)) {
      if (other === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    byId("skip").setAttribute("href", name === "chat" ? "#message" : "#main");
  }

  async function route() {
    setSidebar(false);
    const [name, id] = location.hash.slice(1).split("/");
    if (name === "compare") return show("compare");
    if (id && id !== chat.id()) await chat.open(id);
    show("chat");
    showPlace(chat.id());
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  async function rename(id, title) {
    if (id === chat.id()) return chat.setTitle(title);
    const found = await store.get(id);
    if (found) await store.put({ ...found, title });
    side.refresh();
  }

  /** @param {string} id */
  async function drop(id) {
    chat.stop(id);
    const gone = await store.get(id);
    await store.remove(id);
    if (id === chat.id()) await go(null);
    side.refresh();
    offerUndo(async () => {
      if (gone) await store.put(gone);
      side.refresh();
    });
  }

  /** @param {() => void} run */
  function offerUndo(run) {
    tell(t("frame.deleted"), { action: { label: t("frame.undo"), run } });
  }

  store.onChange((id) => {
    side.refresh();
    if (id === chat.id()) chat.reload();
  });
  addEventListener("hashchange", route);
  addEventListener("pagehide", chat.keepRunning);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey && event.shiftKey && event.code === "KeyO") {
      event.preventDefault();
      go(null).then(chat.focus);
    }
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      if (!WIDE.matches) setSidebar(true);
      side.search();
    }
    if (event.key === "Escape") setSidebar(false);
  });
  byId("skip").addEventListener("click", (event) => {
    // The address names the conversation and must not change to the place in the page.
    event.preventDefault();
    if (views.chat.hidden) byId("main").focus();
    else chat.focus();
  });
  byId("main").addEventListener("pointerdown", () => setSidebar(false));
  addEventListener("unhandledrejection", ({ reason }) => {
    tell(t("answer.page_fault", { what: String(reason) }), { lasts: true, trouble: true });
  });
  addEventListener("beforeunload", (event) => {
    if (unsaved) event.preventDefault();
  });
  await chat.open(null);
  await route();
  await side.refresh();
  document.body.classList.add("ready");
}

/** @param {string} id of an element of index.html. */
function byId(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}
