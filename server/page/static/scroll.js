// @ts-check
/** Keeps the end of a conversation in sight, as long as the reader is there. */

const NEAR = 48;
/** Milliseconds after an input in which a move upwards is the reader's. */
const BY_HAND_MS = 1000;
/** Milliseconds after a change of size in which one that follows no input is the browser's. */
const SETTLED_MS = 500;
const UPWARDS = new Set(["ArrowUp", "Home", "PageUp", " "]);

/**
 * @param {HTMLElement} scroller
 * @param {HTMLElement} content what grows in it.
 * @param {(away: boolean) => void} onAway told when the reader leaves the end, or is back.
 * @returns {{toEnd: () => void}}
 */
export function followEnd(scroller, content, onAway) {
  let following = true;
  let last = 0;
  let input = -Infinity;
  let resized = -Infinity;

  /** @param {boolean} follows */
  function set(follows) {
    if (follows !== following) onAway(!follows);
    following = follows;
  }

  function toEnd() {
    scroller.scrollTop = scroller.scrollHeight;
  }

  scroller.addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    // Growth leaves the place as it is, but text that turns out shorter as HTML moves it upwards.
    // A search of the browser moves it, too, and is no input here.
    const now = performance.now();
    const byHand = now - input < BY_HAND_MS || now - resized > SETTLED_MS;
    set(near || (following && !(scrollTop < last && byHand)));
    last = scrollTop;
  }, { passive: true });
  for (const kind of ["pointerdown", "touchmove", "wheel"]) {
    scroller.addEventListener(kind, () => {
      input = performance.now();
    }, { passive: true });
  }
  document.addEventListener("keydown", ({ key, target }) => {
    const writes = target instanceof HTMLTextAreaElement || target instanceof HTMLInputElement;
    if (UPWARDS.has(key) && !writes) input = performance.now();
  });

  // Observers run when the layout is known already, so that nothing is measured twice.
  const observer = new ResizeObserver(() => {
    resized = performance.now();
    if (following) toEnd();
  });
  observer.observe(content);
  observer.observe(scroller);
  return {
    toEnd() {
      set(true);
      toEnd();
    },
  };
}
