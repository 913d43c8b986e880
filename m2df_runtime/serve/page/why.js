/* The reason of an answer: a page of the server's own, shown in a frame that can do nothing to this one. */

import * as api from "./api.js";
import { find } from "./dom.js";

find("#why-close").addEventListener("click", () => find("#why").close());
find("#why").addEventListener("close", () => find("#why-page").removeAttribute("src"));

/** Show why an answer is what it is. */
export function explain(answer, words) {
  find("#why-title").textContent = `Why “${words}”`;
  find("#why-page").src = api.explanation(answer.id);
  find("#why").showModal();
}
