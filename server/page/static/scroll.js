// @ts-check
/** Keeps the end of a conversation in sight, as long as the reader is there. */

const NEAR = 48;

/**
 * @param {HTMLElement} scroller
 * @param {HTMLElement} content what grows in it.
 * @param {(away: boolean) => void} onAway told when the reader leaves the end, or is back.
 * @returns {{toEnd: () => void}}
 */
export function followEnd(scroller, content, onAway) {
  let following = true;
  let last = 0;

  /** @param {boolean} follows */
  function set(follows) {
    if (follows !== following) onAway(!follows);
    following = follows;
  }

  function toEnd() {
    scroller.scrollTop = scroller.scrollHeight;
    // Text that turns out shorter as HTML has moved the place upwards; it is not the reader's move.
    last = scroller.scrollTop;
  }

  scroller.addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    // Growth alone leaves the place as it is: only a move upwards means that the reader leaves,
    // and only one downwards that the reader is back.
    set(following ? near || scrollTop >= last : near && scrollTop > last);
    last = scrollTop;
  }, { passive: true });

  // Observers run when the layout is known already, so that nothing is measured twice.
  const observer = new ResizeObserver(() => {
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
