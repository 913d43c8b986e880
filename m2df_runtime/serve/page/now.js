/* What is seen now: a bar for every action, one as tall for none of them, and the answer in words. */

import { find, icon, make } from "./dom.js";
import { store } from "./store.js";

const AVERAGED = 3; // windows: one alone makes the bars jump
const UNKNOWN = "not known yet: teach a second clip";
const SAID_EVERY = 2; // seconds between two answers that are read out

const percent = (share) => `${Math.round(100 * share)} %`;

export class Now {
  shown = null; // the answer in words, and its label, which is null for none of them

  #rows = new Map(); // label, or null for none of them, to its parts
  #windows = [];
  #spoken = "";
  #spokenAt = 0;

  constructor() {
    store.addEventListener("change", () => this.#arrange());
  }

  /** The newest window of the server. */
  show(scores) {
    this.#windows.push(scores);
    this.#windows = this.#windows.slice(-AVERAGED);
    const mean = (of) => this.#windows.reduce((sum, one) => sum + of(one), 0) / this.#windows.length;
    const share = new Map([[null, mean((one) => (one.still || one.rejected ? 1 : 0))]]);
    for (const label of store.labels) {
      share.set(label, mean((one) => one.classes.find((found) => found.label === label)?.score ?? 0));
    }
    const unknown = store.info.rejection?.startsWith("not calibrated");
    const [best] = [...share].reduce((first, next) => (next[1] > first[1] ? next : first));
    for (const [label, row] of this.#rows) {
      const value = share.get(label) ?? 0;
      row.fill.style.transform = `scaleX(${value})`;
      const open = label === null && unknown && value === 0;
      row.number.textContent = open ? UNKNOWN : percent(value);
      row.number.classList.toggle("unknown", open);
      row.line.classList.toggle("best", label === best);
      row.line.setAttribute("aria-valuenow", Math.round(100 * value));
      row.line.setAttribute("aria-valuetext", row.number.textContent);
    }
    const words = best === null ? (scores.still ? "Nothing moves" : "None of these") : best;
    this.shown = { words, label: best };
    find("#winner").classList.remove("paused");
    this.#say(words, best === null ? "" : `${percent(share.get(best))} sure`, best === null);
  }

  /** No scores come: say why. */
  pause(words, more = "") {
    this.shown = null;
    this.#windows = [];
    for (const row of this.#rows.values()) {
      row.fill.style.transform = "scaleX(0)";
      row.number.textContent = "";
      row.line.classList.remove("best");
      row.line.setAttribute("aria-valuenow", 0);
      row.line.removeAttribute("aria-valuetext");
    }
    find("#winner").classList.add("paused");
    this.#say(words, more, true);
  }

  #say(words, more, none) {
    const winner = find("#winner");
    winner.textContent = words || "\u00a0";
    winner.classList.toggle("none", none);
    find("#winner-more").textContent = more;
    const time = performance.now() / 1000;
    if (words === this.#spoken || time - this.#spokenAt < SAID_EVERY) return;
    this.#spoken = words;
    this.#spokenAt = time;
    find("#said").textContent = words;
  }

  #arrange() {
    this.#windows = [];
    this.#rows.clear();
    const rows = store.classes.length > 1 ? [...store.labels, null] : [];
    for (const label of rows) {
      const fill = make("span", { class: "fill" });
      const number = make("span", { class: "share" });
      const words = label ?? "none of these";
      const line = make(
        "li",
        {
          class: label === null ? "bar none" : "bar",
          role: "meter",
          "aria-label": words,
          "aria-valuemin": 0,
          "aria-valuemax": 100,
          "aria-valuenow": 0,
        },
        make("span", { class: "track" }, fill),
        make("span", { class: "label" }, words),
        number,
      );
      this.#rows.set(label, { line, fill, number });
    }
    find("#bars").replaceChildren(...[...this.#rows.values()].map((row) => row.line));
    this.#steps();
  }

  /** What a first-time user does next. */
  #steps() {
    const [first, second] = store.classes;
    const done = [Boolean(first), Boolean(second), false];
    const texts = [
      ["Record an action", "Hold the button and do it, for example wave. Then give it a name."],
      ["Record another", "There must be something to tell it from."],
      ["Do one of them", "It is recognised from then on. More clips of each make it surer."],
    ];
    const next = done.indexOf(false);
    const list = find("#steps");
    list.hidden = !store.loaded || done[1];
    list.replaceChildren(
      ...texts.map(([title, text], step) =>
        make(
          "li",
          { class: done[step] ? "done" : step === next ? "next" : "", "aria-current": step === next && "step" },
          make("span", { class: "mark" }, done[step] ? icon("check") : String(step + 1)),
          make(
            "div",
            {},
            make("strong", {}, title, done[step] && make("span", { class: "unseen" }, " (done)")),
            make("p", {}, text),
          ),
        ),
      ),
    );
  }
}
