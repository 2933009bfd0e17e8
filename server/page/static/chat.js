// @ts-check
/** The conversation that is open, and all answers that are still coming. */

import { AnswerView, newAnswer, streamInto } from "./answer.js";
import { render } from "./api.js";
import { composer } from "./composer.js";
import { button, el } from "./dom.js";
import { emptyState } from "./empty.js";
import { icon } from "./icons.js";
import { messageItem } from "./message.js";
import { followEnd } from "./scroll.js";
import { requestBody } from "./settings.js";
import { t } from "./text.js";
import {
  append, messagesOf, newConversation, newId, path, remove, select, siblings,
} from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./tree.js").TreeNode} TreeNode
 * @typedef {{conversation: Conversation, node: TreeNode, view: AnswerView,
 *   controller: AbortController, saved: number}} Run `saved`: when it was kept last.
 */

const TITLE = 60;
/** Characters that are rendered with one request. */
const BATCH = 100_000;

/**
 * @param {{store: import("./store.js").Store, settings: import("./settings.js").Settings,
 *   models: import("./settings.js").Model[], say: (text: string) => void,
 *   onChange: (conversation: Conversation) => void,
 *   onDeleted: (undo: () => void) => void}} parts `say` tells those who cannot see; `onChange` is
 *   told of each conversation that is kept; `onDeleted` offers to take a deletion back.
 */
export function chatView({ store, settings, models, say, onChange, onDeleted }) {
  let current = newConversation(settings.current());
  /** @type {Map<string, Run>} */
  const runs = new Map();
  /** @type {Map<string, ReturnType<typeof messageItem>>} */
  const shown = new Map();

  const list = el("ol", { class: "messages" });
  const log = el("div", { role: "log", "aria-label": t("chat.log") }, list);
  const top = el("div", { class: "column" }, log);
  const scroller = el("div", { class: "scroller" }, top);
  const toEnd = button(t("chat.to_end"), () => follow.toEnd(), {
    icon: icon("down"),
    class: "to-end",
    hidden: true,
  });
  const follow = followEnd(scroller, top, (away) => {
    toEnd.hidden = !away;
  });
  const box = composer({ onSend: send, onStop: () => stop(current.id), onModel: settings.show });
  const element = el("div", { class: "chat" }, scroller,
    el("div", { class: "dock" }, toEnd,
      el("div", { class: "dock-inner" }, el("div", { class: "column" }, box.element))));
  const actions = {
    onEdit: (/** @type {TreeNode} */ node, /** @type {string} */ content) =>
      ask({ ...userNode(content), parent: node.parent }),
    onRegenerate: (/** @type {TreeNode} */ node) => answer(current, node.parent),
    onContinue: (/** @type {TreeNode} */ node) => answer(current, node.parent, node),
    onDelete: drop,
    onVersion: (/** @type {string} */ id, /** @type {string} */ step) => {
      keep(select(current, id));
      draw();
      shown.get(id)?.focusStep(step);
    },
  };

  /** @param {string} content */
  function send(content) {
    const taken = ask({ ...userNode(content), parent: current.leaf });
    if (taken) follow.toEnd();
    return taken;
  }

  /**
   * Add a user's message and have it answered.
   *
   * @param {TreeNode} node
   * @returns {boolean} false when the settings do not make a request.
   */
  function ask(node) {
    const title = current.title || node.content.trim().split("\n")[0].slice(0, TITLE);
    return answer({ ...append(current, node), title }, node.id);
  }

  /** @param {{id: string, content: string}[]} results of the calls in the last message. */
  function giveResults(results) {
    let next = current;
    for (const { id, content } of results) {
      const base = userNode(content);
      next = append(next, { ...base, role: "tool", call_id: id, parent: next.leaf });
    }
    answer(next, next.leaf);
  }

  /**
   * Have the path up to a message answered.
   *
   * @param {Conversation} asked
   * @param {string | null} parent
   * @param {TreeNode} [begun] an answer to it that is to go on.
   * @returns {boolean} false when the settings do not make a request.
   */
  function answer(asked, parent, begun) {
    let body;
    try {
      const messages = messagesOf(path(asked, parent));
      body = requestBody(settings.current(), messages);
      if (begun) Object.assign(body, goingOn(body.messages, begun.content));
    } catch (error) {
      box.refuse(error instanceof Error ? error.message : String(error));
      return false;
    }
    stop(asked.id);
    const node = { ...newAnswer(body.model, begun), id: newId(), parent };
    const view = makeView(node);
    const now = { ...asked, settings: settings.current(), updated: Date.now() };
    const conversation = append(now, node);
    const controller = new AbortController();
    const run = { conversation, node, view, controller, saved: Date.now() };
    runs.set(asked.id, run);
    keep(conversation);
    draw();
    say(t("chat.answering"));
    streamInto(view, body, controller.signal, () => keepNowAndThen(run)).then(() => end(run));
    return true;
  }

  /** @param {Run} run */
  function end(run) {
    const { conversation, node } = run;
    // Another answer in its place keeps what there is of this one.
    if (runs.get(conversation.id) !== run) return;
    runs.delete(conversation.id);
    if (node.id in conversation.nodes) keep(conversation);
    if (conversation.id !== current.id) return;
    draw();
    const outcome = node.error ? "failed" : node.finish === "stopped" ? "was_stopped" : "complete";
    say(t(`chat.${outcome}`));
  }

  /** @param {string} id of a conversation. */
  function stop(id) {
    runs.get(id)?.controller.abort();
  }

  /**
   * Keep what has come so far, so that a closed tab loses little. The whole conversation is written
   * each time, therefore the longer it is the less often.
   *
   * @param {Run} run
   */
  function keepNowAndThen(run) {
    const { content, tokens } = run.node;
    const pause = 2000 + content.length / 10 + (tokens?.length ?? 0) * 3;
    if (Date.now() - run.saved < pause) return;
    run.saved = Date.now();
    store.put(run.conversation);
  }

  /**
   * Make a conversation what it is now, here and in the browser's storage.
   *
   * @param {Conversation} conversation
   * @param {string[]} [removed]
   */
  function keep(conversation, removed = []) {
    const run = runs.get(conversation.id);
    if (run) run.conversation = conversation;
    if (conversation.id === current.id) current = conversation;
    store.put(conversation, removed).then(() => onChange(conversation));
  }

  /** @param {TreeNode} node */
  function drop(node) {
    const before = current;
    const run = runs.get(current.id);
    const left = remove(current, node.id);
    if (run && left.removed.includes(run.node.id)) stop(current.id);
    keep(left.conversation, left.removed);
    draw();
    box.focus();
    onDeleted(() => {
      const now = before.id === current.id ? current : before;
      keep({ ...now, nodes: { ...before.nodes, ...now.nodes }, leaf: before.leaf });
      draw();
    });
  }

  /**
   * @param {TreeNode} node an answer.
   * @param {boolean} [old] it is not coming now.
   */
  function makeView(node, old = false) {
    // Whoever wrote it is gone, or is another tab, which will say when it is complete.
    if (old && !node.error) node.finish ??= "unfinished";
    const open = node.calls?.length && !Object.values(current.nodes).some(isBelow(node.id));
    return new AnswerView(/** @type {any} */ (node), {
      onRetry: () => actions.onRegenerate(node),
      onResults: open || !node.finish ? giveResults : undefined,
    });
  }

  /** Bring the screen in line with the path that is shown. Items that stay are not touched. */
  function draw() {
    const nodes = path(current);
    const run = runs.get(current.id);
    const ids = new Set(nodes.map((node) => node.id));
    for (const [id, item] of shown) {
      if (ids.has(id)) continue;
      item.element.remove();
      shown.delete(id);
    }
    const fresh = [];
    for (const [at, node] of nodes.entries()) {
      let item = shown.get(node.id);
      if (!item) {
        const running = node.id === run?.node.id ? run.view : null;
        const view = running ?? (node.role === "assistant" ? makeView(node, true) : null);
        if (view && !running) fresh.push(view);
        item = messageItem(node, view, actions);
        shown.set(node.id, item);
      }
      if (list.children[at] !== item.element) list.insertBefore(item.element, list.children[at]);
      item.setVersions(siblings(current, node.id));
    }
    top.querySelector(".empty")?.remove();
    const { model: name } = settings.current();
    const model = models.find(({ id }) => id === name);
    if (!nodes.length) top.append(emptyState(model, tryThis));
    log.setAttribute("aria-live", run ? "off" : "polite");
    box.setBusy(run !== undefined);
    box.setModel(name);
    renderAll(fresh.reverse());
  }

  /** @param {string} text */
  function tryThis(text) {
    box.setText(text);
    box.focus();
  }

  /** @param {string | null} id null for a new one. */
  async function open(id) {
    const found = id && (runs.get(id)?.conversation ?? (await store.get(id)));
    if (found) settings.load(found.settings);
    current = found || newConversation(settings.current());
    shown.clear();
    list.replaceChildren();
    draw();
    follow.toEnd();
    // On a phone the keyboard would cover what is to be read.
    if (matchMedia("(hover: hover)").matches) box.focus();
  }

  return {
    element,
    open,
    focus: box.focus,
    /** Of the open conversation. */
    id: () => current.id,
    title: () => current.title,

    /** Take over the settings that the user has changed. */
    setSettings() {
      box.setModel(settings.current().model);
      if (!current.leaf) draw();
      else keep({ ...current, settings: settings.current() });
    },

    /** @param {string} title */
    setTitle(title) {
      keep({ ...current, title });
    },

    /** Another tab has changed the open conversation. */
    async reload() {
      const found = await store.get(current.id);
      if (!found || found.id !== current.id || runs.has(found.id)) return;
      for (const [id, item] of shown) {
        if (sameAnswer(found.nodes[id], current.nodes[id])) continue;
        item.element.remove();
        shown.delete(id);
      }
      current = found;
      draw();
    },

    /** Keep what there is of the answers that are still coming. */
    async keepRunning() {
      await Promise.all([...runs.values()].map((run) => store.put(run.conversation)));
    },

    /** @param {string} id of a conversation that goes away. */
    stop,
  };
}

/**
 * @param {string} content
 * @returns {TreeNode}
 */
function userNode(content) {
  return { id: newId(), parent: null, role: "user", content, created: Date.now() };
}

/**
 * Fields of a request whose answer goes on from a text.
 *
 * @param {object[]} messages
 * @param {string} content
 */
function goingOn(messages, content) {
  return {
    messages: [...messages, { role: "assistant", content }],
    add_generation_prompt: false,
    continue_final_message: true,
  };
}

/**
 * @param {TreeNode | undefined} a
 * @param {TreeNode | undefined} b
 */
function sameAnswer(a, b) {
  return a?.content === b?.content && a?.reasoning === b?.reasoning && a?.finish === b?.finish;
}

/** @param {string} id */
function isBelow(id) {
  return (/** @type {TreeNode} */ node) => node.parent === id;
}

/**
 * Replace the plain text of answers by HTML, the last ones first; what fails stays plain.
 *
 * @param {AnswerView[]} views
 */
async function renderAll(views) {
  const rest = views.filter((view) => view.record.content);
  while (rest.length) {
    let size = 0;
    const batch = [];
    while (rest.length && size < BATCH) {
      batch.push(rest[0]);
      size += rest[0].record.content.length;
      rest.shift();
    }
    try {
      const html = await render(batch.map((view) => view.record.content));
      batch.forEach((view, n) => view.show(html[n]));
    } catch {
      return;
    }
  }
}
