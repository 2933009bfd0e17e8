// @ts-check
/** Moves the focus among many inline elements, of which one is a stop of the Tab key. */

export class Cursor {
  /** @type {HTMLElement[]} */
  #items = [];
  /** @type {Map<EventTarget | null, number>} */
  #places = new Map();
  #index = 0;

  /**
   * Take in the next item; the Tab key reaches the first one.
   *
   * @param {HTMLElement} item with `tabindex="-1"`.
   */
  add(item) {
    this.#places.set(item, this.#items.length);
    this.#items.push(item);
    if (this.#items.length === 1) this.reached(0);
  }

  /** @param {number} index */
  item(index) {
    return this.#items[index];
  }

  /**
   * Which item an element is.
   *
   * @param {EventTarget | null} target
   * @returns {number | null} null for none.
   */
  indexOf(target) {
    return this.#places.get(target) ?? null;
  }

  /**
   * An item has got the focus, or is the one that the Tab key is to reach.
   *
   * @param {number} index
   */
  reached(index) {
    this.#items[this.#index].setAttribute("tabindex", "-1");
    this.#items[index].setAttribute("tabindex", "0");
    this.#index = index;
  }

  /**
   * Move the focus as a key asks for.
   *
   * @param {string} key as `KeyboardEvent.key` has it.
   * @returns {boolean} whether the key is one of those.
   */
  follow(key) {
    const target = this.#target(key);
    if (target === null) return false;
    this.#items[target]?.focus();
    return true;
  }

  /**
   * @param {string} key
   * @returns {number | null}
   */
  #target(key) {
    const last = this.#items.length - 1;
    const right = getComputedStyle(this.#items[this.#index]).direction === "rtl" ? -1 : 1;
    const within = (/** @type {number} */ index) => Math.max(0, Math.min(index, last));
    switch (key) {
      case "ArrowRight": return within(this.#index + right);
      case "ArrowLeft": return within(this.#index - right);
      case "ArrowDown": return this.#lineAway(1);
      case "ArrowUp": return this.#lineAway(-1);
      case "Home": return 0;
      case "End": return last;
      default: return null;
    }
  }

  /**
   * The item nearest to this one in the line below or above; this one where there is no line.
   *
   * @param {1 | -1} step
   */
  #lineAway(step) {
    const here = box(this.#items[this.#index]);
    let best = this.#index;
    let line = null;
    for (let at = this.#index + step; at in this.#items; at += step) {
      const there = box(this.#items[at]);
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      if (line !== null && Math.abs(there.top - line) >= here.height / 2) break;
      const nearer = distance(there, here) < distance(box(this.#items[best]), here);
      if (line === null || nearer) best = at;
      line ??= there.top;
    }
    return best;
  }
}

/** The first rectangle of an element that may go over several lines. */
function box(/** @type {Element} */ item) {
  return item.getClientRects()[0] ?? item.getBoundingClientRect();
}

/**
 * @param {DOMRect} one
 * @param {DOMRect} other
 */
function distance(one, other) {
  return Math.abs(one.left + one.width / 2 - other.left - other.width / 2);
}
