// @ts-check
/** Conversations in the browser's database; in this tab's memory where the browser refuses. */

import { ApiFailure } from "./api.js";
import { exportText, parseExport } from "./check.js";
import { t } from "./text.js";
import { newId } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {{id: string, title: string, created: number, updated: number}} Summary
 * @typedef {{kind: "full" | "refused", held: number}} Trouble `held`: conversations that only this
 *   tab has.
 * @typedef {Awaited<ReturnType<typeof openStore>>} Store
 */

const NAME = "halfbyte";
const VERSION = 1;
const WHOLE = "conversations";
const BRIEF = "summaries";

/**
 * @param {(trouble: Trouble | null) => void} onTrouble told whenever what the browser keeps is less
 *   than everything, and with null when that is over.
 */
export async function openStore(onTrouble) {
  /** @type {Map<string, Conversation>} */
  const held = new Map();
  /**
   * Ids of messages that are gone from conversations which are not written yet.
   *
   * @type {Map<string, string[]>}
   */
  const dropped = new Map();
  /** @type {IDBDatabase | null} */
  const db = await openDatabase().catch(() => null);
  const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;
  let troubled = false;
  if (db === null) report("refused");

  /** @param {Trouble["kind"] | null} kind */
  function report(kind) {
    if (kind === null && !troubled) return;
    troubled = kind !== null;
    onTrouble(kind && { kind, held: held.size });
  }

  /** @returns {Promise<Conversation[]>} */
  async function all() {
    const kept = db ? await request(db.transaction(WHOLE).objectStore(WHOLE).getAll()) : [];
    return [...kept.filter((item) => !held.has(item.id)), ...held.values()];
  }

  /** Write what did not fit before; there may be room now. */
  async function writeHeld() {
    if (!db || !held.size) return report(null);
    const waiting = [...held.values()];
    try {
      await write(db, waiting, dropped);
    } catch {
      return;
    }
    waiting.forEach(written);
    if (!held.size) report(null);
  }

  /** @param {Conversation} conversation */
  function written(conversation) {
    const { id } = conversation;
    if (held.get(id) !== conversation) return;
    held.delete(id);
    dropped.delete(id);
  }

  return {
    /** @returns {Promise<Summary[]>} the latest first. */
    async list() {
      const kept = db ? await request(db.transaction(BRIEF).objectStore(BRIEF).getAll()) : [];
      const others = kept.filter((item) => !held.has(item.id));
      return latestFirst([...others, ...[...held.values()].map(summary)]);
    },

    /**
     * @param {string} id
     * @returns {Promise<Conversation | null>}
     */
    async get(id) {
      if (held.has(id) || !db) return held.get(id) ?? null;
      return (await request(db.transaction(WHOLE).objectStore(WHOLE).get(id))) ?? null;
    },

    /**
     * Keep a conversation. Messages that another tab has added to it stay.
     *
     * @param {Conversation} conversation kept in memory when the browser does not take it.
     * @param {string[]} [removed] ids of messages to drop.
     */
    async put(conversation, removed = []) {
      const { id } = conversation;
      held.set(id, conversation);
      dropped.set(id, [...(dropped.get(id) ?? []), ...removed]);
      if (!db) return report("refused");
      try {
        await write(db, [conversation], dropped);
      } catch (error) {
        return report(isFull(error) ? "full" : "refused");
      }
      written(conversation);
      channel?.postMessage(id);
      await writeHeld();
    },

    /** @param {string} id */
    async remove(id) {
      held.delete(id);
      dropped.delete(id);
      if (!db) return;
      try {
        await change(db, (whole, brief) => {
          whole.delete(id);
          brief.delete(id);
        });
      } catch {
        return report("refused");
      }
      channel?.postMessage(id);
      await writeHeld();
    },

    /**
     * @param {string} text looked for in titles and messages, whatever its case and accents.
     * @returns {Promise<Summary[]>} the latest first.
     */
    async search(text) {
      const wanted = fold(text.trim());
      const found = (await all()).filter((item) =>
        [item.title, ...Object.values(item.nodes).map((node) => node.content)]
          .some((part) => fold(part).includes(wanted)));
      return latestFirst(found.map(summary));
    },

    /** @returns {Promise<Blob>} a file with every conversation. */
    async exportAll() {
      return new Blob([exportText(await all())], { type: "application/json" });
    },

    /**
     * Add the conversations of a file. One that is here already is not added again; one that has
     * changed since is added beside it.
     *
     * @param {File} file
     * @returns {Promise<{added: number, known: number}>}
     * @throws {ApiFailure} the file is damaged or there is no room for it; nothing has changed.
     */
    async importFile(file) {
      const items = parseExport(await file.text(), file.name);
      const here = new Map((await all()).map((item) => [item.id, item]));
      const fresh = items.filter((item) => !holds(here.get(item.id), item))
        .map((item) => (here.has(item.id) ? { ...item, id: newId() } : item));
      if (!db) {
        for (const item of fresh) held.set(item.id, item);
        report("refused");
      } else {
        await write(db, fresh, dropped).catch((error) => {
          throw new ApiFailure(t(isFull(error) ? "store.import_full" : "store.import_refused"));
        });
        for (const item of fresh) channel?.postMessage(item.id);
      }
      return { added: fresh.length, known: items.length - fresh.length };
    },

    /** @param {(id: string) => void} listener told of what other tabs change. */
    onChange(listener) {
      channel?.addEventListener("message", (event) => listener(event.data));
    },
  };
}

/** @returns {Promise<IDBDatabase>} */
async function openDatabase() {
  const opening = indexedDB.open(NAME, VERSION);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore(WHOLE, { keyPath: "id" });
    opening.result.createObjectStore(BRIEF, { keyPath: "id" });
  };
  return request(opening);
}

/**
 * Write conversations, all or none.
 *
 * @param {IDBDatabase} db
 * @param {Conversation[]} conversations
 * @param {Map<string, string[]>} dropped ids of messages, by conversation, that are not taken over
 *   from what is kept, unless they are there again.
 */
function write(db, conversations, dropped) {
  return change(db, (whole, brief, fail) => {
    for (const item of conversations) {
      const reading = whole.get(item.id);
      reading.onsuccess = () => {
        const kept = { ...reading.result?.nodes };
        for (const id of dropped.get(item.id) ?? []) delete kept[id];
        try {
          whole.put({ ...item, nodes: { ...kept, ...item.nodes } });
          brief.put(summary(item));
        } catch (error) {
          fail(error);
        }
      };
    }
  });
}

/**
 * One transaction over both tables; rejected with its error when it is not carried out.
 *
 * @param {IDBDatabase} db
 * @param {(whole: IDBObjectStore, brief: IDBObjectStore,
 *   fail: (error: unknown) => void) => void} work
 * @returns {Promise<void>}
 */
function change(db, work) {
  return new Promise((resolve, reject) => {
    const transaction = db.transaction([WHOLE, BRIEF], "readwrite");
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
    const fail = (/** @type {unknown} */ error) => {
      reject(error);
      transaction.abort();
    };
    work(transaction.objectStore(WHOLE), transaction.objectStore(BRIEF), fail);
  });
}

/**
 * @template T
 * @param {IDBRequest<T>} asked
 * @returns {Promise<T>}
 */
function request(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/** @param {unknown} error */
function isFull(error) {
  return error instanceof DOMException && error.name === "QuotaExceededError";
}

/**
 * Whether a conversation that is here has every message of another one.
 *
 * @param {Conversation | undefined} here
 * @param {Conversation} item
 */
function holds(here, item) {
  if (!here) return false;
  return Object.values(item.nodes).every((node) => here.nodes[node.id]?.content === node.content);
}

/** @param {Conversation} conversation */
function summary({ id, title, created, updated }) {
  return { id, title, created, updated };
}

/** @param {Summary[]} items */
function latestFirst(items) {
  return items.sort((a, b) => b.updated - a.updated);
}

/** @param {string} text */
function fold(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}
