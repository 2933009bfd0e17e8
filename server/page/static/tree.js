// @ts-check
/** Conversations as trees of messages: every edit and every new try is a branch beside the old. */

/**
 * @typedef {import("./record.js").Answer} Answer
 * @typedef {{id: string, parent: string | null, role: "user" | "assistant" | "tool",
 *   content: string, created: number, call_id?: string} & Partial<Omit<Answer, "role">>} TreeNode
 * @typedef {{model: string, system: string, params: Record<string, unknown>, schema: string,
 *   tools: string, probabilities: boolean}} ChatSettings
 * @typedef {{id: string, title: string, created: number, updated: number,
 *   settings: ChatSettings, nodes: Record<string, TreeNode>, leaf: string | null}} Conversation
 */

/** An id that no other conversation or message has: 96 random bits. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {ChatSettings} settings
 * @returns {Conversation} an empty one.
 */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings, nodes: {}, leaf: null };
}

/**
 * @param {Conversation} conversation
 * @param {TreeNode} node its `parent` is in the conversation, or null.
 * @returns {Conversation} with the node, which is the leaf of the path that is shown.
 */
export function append(conversation, node) {
  return { ...conversation, nodes: { ...conversation.nodes, [node.id]: node }, leaf: node.id };
}

/**
 * The versions of a message, itself among them.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {string[]} ids, the oldest first.
 */
export function siblings(conversation, id) {
  return children(conversation, conversation.nodes[id].parent);
}

/**
 * The messages from the first one to a leaf.
 *
 * @param {Conversation} conversation
 * @param {string | null} [leaf]
 * @returns {TreeNode[]}
 */
export function path(conversation, leaf = conversation.leaf) {
  const found = [];
  for (let id = leaf; id !== null && id in conversation.nodes; ) {
    const node = conversation.nodes[id];
    found.push(node);
    id = node.parent;
  }
  return found.reverse();
}

/**
 * Show another version of a message, and the latest of what came after it.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {Conversation}
 */
export function select(conversation, id) {
  let leaf = id;
  for (let below = children(conversation, leaf); below.length; ) {
    leaf = below[below.length - 1];
    below = children(conversation, leaf);
  }
  return { ...conversation, leaf };
}

/**
 * Take out a message and all that answers it. The version before it is shown, else the one after.
 *
 * @param {Conversation} conversation
 * @param {string} id
 * @returns {{conversation: Conversation, removed: string[]}} `removed`: ids of what is gone.
 */
export function remove(conversation, id) {
  const { parent } = conversation.nodes[id];
  const versions = siblings(conversation, id);
  const at = versions.indexOf(id);
  const removed = [id];
  for (const gone of removed) removed.push(...children(conversation, gone));
  const nodes = { ...conversation.nodes };
  for (const gone of removed) delete nodes[gone];
  const left = { ...conversation, nodes };
  if (left.leaf !== null && left.leaf in nodes) return { conversation: left, removed };
  const other = versions[at - 1] ?? versions[at + 1];
  const shown = other ? select(left, other) : { ...left, leaf: parent };
  return { conversation: shown, removed };
}

/**
 * Messages as the API takes them. An answer that never came is left out.
 *
 * @param {TreeNode[]} nodes of a path.
 * @returns {object[]}
 */
export function messagesOf(nodes) {
  return nodes.filter((node) => node.content || node.calls?.length || node.role !== "assistant")
    .map((node) => {
      if (node.role === "tool") {
        return { role: "tool", tool_call_id: node.call_id, content: node.content };
      }
      if (node.role === "user") return { role: "user", content: node.content };
      return {
        role: "assistant",
        content: node.content,
        ...(node.reasoning ? { reasoning_content: node.reasoning } : {}),
        ...(node.calls?.length ? { tool_calls: node.calls.map(callOf) } : {}),
      };
    });
}

/** @param {import("./record.js").Call} call */
function callOf({ id, name, arguments: text }) {
  return { id, type: "function", function: { name, arguments: text } };
}

/**
 * @param {Conversation} conversation
 * @param {string | null} parent
 * @returns {string[]} the oldest first.
 */
function children(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.created - b.created)
    .map((node) => node.id);
}
