// @ts-check
/** Short messages at the edge of the page. */

import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./text.js";

const LASTS_MS = 8000;

/**
 * @param {HTMLElement} container
 * @returns {(text: string, options?: {lasts?: boolean, trouble?: boolean,
 *   action?: {label: string, run: () => void}}) => HTMLElement} shows a notice, which goes away by
 *   itself unless it `lasts`; those of trouble interrupt a screen reader.
 */
export function noticeBoard(container) {
  return (text, { lasts = false, trouble = false, action } = {}) => {
    const close = () => notice.remove();
    const act = action && button(action.label, () => {
      action.run();
      if (!lasts) close();
    });
    const kind = trouble ? "notice trouble" : "notice";
    const role = trouble ? "alert" : "status";
    const notice = el("div", { class: kind, role }, el("p", { text }), act,
      button(t("frame.dismiss"), close, { icon: icon("close"), class: "quiet" }));
    container.append(notice);
    if (!lasts) setTimeout(close, LASTS_MS);
    return notice;
  };
}
