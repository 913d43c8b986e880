/* What the server has been taught, as this page knows it, and the one way to say that it has changed. */

import * as api from "./api.js";
import { busy, said, sentence, toast } from "./dom.js";

class Store extends EventTarget {
  classes = [];
  background = [];
  window = 2;
  lastLabel = null;
  loaded = false;
  #known = "";
  #soon = null;

  get labels() {
    return this.classes.map((entry) => entry.label);
  }

  /** Ask the server anew. */
  async refresh() {
    const found = await api.classes();
    const before = this.#known;
    this.#known = JSON.stringify(found);
    Object.assign(this, {
      classes: found.classes,
      background: found.background.clips,
      window: found.window ?? 2,
      info: found,
      loaded: true,
    });
    if (before !== this.#known) this.dispatchEvent(new Event("change"));
  }

  /** Ask anew in a moment, however often this is called until then. */
  refreshSoon() {
    this.#soon ??= setTimeout(() => {
      this.#soon = null;
      this.refresh().catch(() => undefined); // it has been said that the server does not answer
    }, 1000);
  }

  /**
   * Change what is taught, as `pressed` is to do: say what was done, and offer to take it back.
   *
   * `then` runs before that; `words` are of what the server did where its own are not for people. Whether it was done is
   * given.
   */
  async change(pressed, work, then = () => undefined, words = sentence) {
    const told = await busy(pressed, work);
    if (!told) return false;
    then();
    await this.refresh();
    toast(words(told.did), { offer: "Undo", action: () => this.undo() });
    return true;
  }

  async undo() {
    try {
      const { did } = await api.undo();
      toast(sentence(did));
    } catch (error) {
      toast(said(error), { failed: true });
    }
    await this.refresh();
  }
}

export const store = new Store();
