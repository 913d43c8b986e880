/* What was seen, and what it should have been: a strip, the answer, and buttons that teach the right one. */

import * as api from "./api.js";
import { busy, button, find, iconButton, make, toast } from "./dom.js";
import { store } from "./store.js";
import { strip, stripOf } from "./strips.js";
import { explain } from "./why.js";

const KEPT = 8; // moments that wait to be named
const SHOWN = 2; // of them at first: they are much alike
const CLEAR = 0.6; // probability below which an answer is not clear
const APART = 3; // seconds between two moments: one action makes several unclear windows
const BUTTONS = 6; // actions that have a button of their own; all others are in the list of the field

let numbers = 0;

/**
 * One moment as an element.
 *
 * words: the answer. picture: an img. teach, nothing: what the buttons do, given a label. more: other elements.
 * denied: the label that somebody said it was not. folded: the answer is right more often than not, so that the buttons
 * wait behind a word.
 */
export function moment({ words, detail, picture, teach, nothing, more = [], done, denied, folded = false }) {
  const line = make("li", { class: "moment" });
  const finish = (pressed, work) => store.change(pressed, work, () => done(line));
  const choices = () => {
    const id = `as-${(numbers += 1)}`;
    const typed = { type: "text", list: "labels", maxlength: 80, autocapitalize: "none", required: true };
    const field = make("input", { id, ...typed, placeholder: "another name" });
    const form = make(
      "form",
      {
        class: "row other",
        autocomplete: "off",
        onsubmit: (event) => {
          event.preventDefault();
          const label = field.value.trim();
          if (label) finish(form.querySelector("button"), () => teach(label));
        },
      },
      make("label", { class: "unseen", for: id }, "Teach this as"),
      field,
      make("button", { type: "submit" }, "Teach"),
    );
    const named = (label) => button(label, (pressed) => finish(pressed, () => teach(label)));
    const likely = store.labels.filter((label) => label !== denied);
    const buttons = make(
      "div",
      { class: "row" },
      make("span", { class: "how" }, "It was"),
      ...likely.slice(0, BUTTONS).map(named),
      button("nothing", (pressed) => finish(pressed, nothing), "quiet"),
      store.labels.includes(denied) && named(denied),
      form,
    );
    if (!folded) return make("div", { class: "choices" }, buttons);
    return make("details", { class: "choices", open: shown?.open }, make("summary", {}, "That is wrong"), buttons);
  };
  let shown = null;
  shown = choices();
  const renewed = () => {
    if (!line.isConnected) return store.removeEventListener("change", renewed);
    if (shown.contains(document.activeElement)) return undefined; // somebody types
    const next = choices();
    shown.replaceWith(next);
    shown = next;
    return undefined;
  };
  store.addEventListener("change", renewed);
  line.append(
    picture,
    make(
      "div",
      { class: "words" },
      make("p", { class: "answer" }, words),
      detail && make("p", { class: "how" }, detail),
    ),
    ...more,
    iconButton("close", "Forget this", () => done(line), "quiet small away"),
    shown,
  );
  return line;
}

/** Whether a window's answer leaves open what was done. */
function unclear(scores) {
  if (scores.still || scores.classes.length < 2) return false;
  return scores.rejected || scores.classes[0].probability < CLEAR;
}

/** The moments of the camera that were not clear, until somebody says what they were. */
export class Unsure {
  #camera;
  #now;
  #last = -Infinity;
  #before = false;
  #newest = null;

  constructor(camera, now) {
    this.#camera = camera;
    this.#now = now;
    find("#unsure-clear").addEventListener("click", () => this.#clear());
    find("#unsure-more").addEventListener("click", ({ currentTarget }) => {
      currentTarget.setAttribute("aria-expanded", currentTarget.getAttribute("aria-expanded") !== "true");
      this.#count();
    });
    find("#wrong").addEventListener("click", () => this.#wrong());
  }

  /** A window was answered; it waits here where two in a row are not clear. */
  async see(scores) {
    this.#newest = scores;
    const now = unclear(scores);
    const both = now && this.#before;
    this.#before = now;
    if (!both || scores.end - this.#last < APART + store.window) return;
    await this.#add(scores);
  }

  /** Somebody says that what is shown is wrong: the newest window can be named at once. */
  async #wrong() {
    const { shown } = this.#now; // of several windows, so the newest may be answered otherwise
    if (!this.#newest || !shown) return;
    const line = await this.#add(this.#newest, shown);
    if (!line) toast("That moment is gone. Do it again, and press sooner.");
    line?.scrollIntoView({ block: "nearest", behavior: "smooth" });
    line?.querySelector(".choices button")?.focus({ preventScroll: true });
  }

  async #add(scores, wrong = null) {
    const frames = this.#camera.between(scores.start, scores.end);
    if (frames.length < 2) return null;
    this.#last = scores.end;
    const best = scores.classes[0];
    const found = `${best.label}, ${Math.round(100 * best.probability)} %`;
    const key = `moment-${(numbers += 1)}`;
    const words = wrong ? `Not “${wrong.words}”?` : scores.rejected ? "None of these?" : `${found}?`;
    const asked = async (pressed) => {
      const answer = await busy(pressed, () => api.predictFrames(frames));
      if (answer) explain(answer, answer.rejected ? "none of these" : answer.predictions[0].label);
    };
    const line = moment({
      words,
      detail: wrong ? null : scores.rejected ? `nearest: ${best.label}` : `or ${scores.classes[1].label}`,
      picture: strip(key, () => stripOf(frames), "What was seen"),
      teach: (label) => api.teachFrames(label, frames),
      nothing: () => api.teachNothing(frames),
      more: [button("Why?", asked)],
      denied: wrong?.label,
      done: (gone) => {
        gone.remove();
        this.#count();
      },
    });
    const list = find("#unsure-list");
    list.prepend(line);
    while (list.children.length > KEPT) list.lastElementChild.remove();
    this.#count();
    return line;
  }

  #clear() {
    find("#unsure-list").replaceChildren();
    this.#count();
  }

  #count() {
    const lines = [...find("#unsure-list").children];
    const count = lines.length;
    const more = find("#unsure-more");
    const all = more.getAttribute("aria-expanded") === "true";
    for (const [place, line] of lines.entries()) line.hidden = !all && place >= SHOWN;
    more.hidden = count <= SHOWN;
    more.textContent = all ? "Show fewer" : `Show ${count - SHOWN} more`;
    find("#unsure").hidden = count === 0;
    find("#unsure-count").textContent = count;
  }
}
