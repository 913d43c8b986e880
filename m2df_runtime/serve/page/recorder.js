/* Recording an action: hold the button, or press it once for a countdown; then correct both ends and give it a name. */

import * as api from "./api.js";
import { counted, find, seconds, sentence, toast } from "./dom.js";
import { movingPart } from "./motion.js";
import { store } from "./store.js";

const TAP = 0.35; // seconds: who lets go sooner has not held the button
const COUNT = 3; // seconds of the countdown
const LENGTH = 3; // seconds that are recorded after it
const LONGEST = 10; // seconds of a recording by hand
const SHORTEST = 0.3; // seconds that a clip must last
const PICTURES = 10; // of the filmstrip
const REPLAYED = 320; // pixels of the width of what is shown again
const AWAY = 5; // seconds to leave the picture before a minute of nothing
const NOTHING = 59; // seconds of it: a server takes clips of up to a minute

const RUNNING = ["held", "recording", "nothing"]; // phases in which frames are taken

const now = () => performance.now() / 1000;

export class Recorder extends EventTarget {
  #camera;
  #button = find("#record");
  #phase = "idle"; // held, counting, recording, review, nothing
  #frames = [];
  #until = Infinity;
  #timers = [];
  #note = ""; // what is said of the recording
  #files = null; // what is to be taught in place of a recording
  #first = 0;
  #last = 0;
  #pictures = []; // of #frames, decoded

  constructor(camera) {
    super();
    this.#camera = camera;
    camera.addEventListener("frame", ({ detail }) => this.#took(detail));
    camera.addEventListener("lost", () => this.#cancel());
    this.#listenToButton();
    this.#listenToReview();
    find("#teach-files").addEventListener("change", ({ target }) => this.#chose(target));
    find("#minute").addEventListener("click", () => this.#minute());
    find("#nothing-files").addEventListener("change", ({ target }) => this.#nothingFrom(target));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.#cancel());
  }

  /** Whether somebody records or names something, so that what is seen is not to be taken for an action. */
  get active() {
    return this.#phase !== "idle";
  }

  // ---- the button

  #listenToButton() {
    const button = this.#button;
    let pressed = 0;
    const down = () => {
      if (this.#phase === "counting") return this.#cancel();
      if (this.#phase === "recording" || this.#phase === "nothing") return this.#finish();
      if (this.#phase !== "idle" || !this.#camera.running) return;
      pressed = now();
      this.#record("held", LONGEST);
    };
    const up = () => {
      if (this.#phase !== "held") return;
      if (now() - pressed < TAP) this.#countdown(COUNT, () => this.#record("recording", LENGTH));
      else this.#finish();
    };
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      down();
    });
    button.addEventListener("pointerup", up);
    button.addEventListener("pointercancel", () => this.#cancel());
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press on a phone opens one
    button.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) down();
    });
    button.addEventListener("keyup", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      up();
    });
    button.addEventListener("blur", () => this.#phase === "held" && this.#finish());
    // Assistive technology presses without pointer or key: that is a press, not a hold.
    button.addEventListener("click", (event) => {
      if (event.detail !== 0) return;
      down();
      up();
    });
  }

  #became(phase) {
    this.#phase = phase;
    const running = RUNNING.includes(phase);
    find("#recording").hidden = !running;
    find("#count").hidden = phase !== "counting";
    this.#button.classList.toggle("on", running);
    this.#button.disabled = phase === "idle" && !this.#camera.running;
    find("#record-text").textContent = {
      idle: "Hold to record",
      held: "Let go to stop",
      counting: "Cancel",
      recording: "Stop",
      nothing: "Stop",
      review: "",
    }[phase];
    find("#controls").hidden = phase === "review";
    find("#review").hidden = phase !== "review";
    find("#replay").hidden = phase !== "review" || this.#files !== null;
    find("#minute").disabled = phase !== "idle" || !this.#camera.running;
  }

  /** The camera came or went. */
  refresh() {
    if (this.#phase === "idle") this.#became("idle");
  }

  #countdown(count, then) {
    this.#became("counting");
    this.#frames = [];
    const tick = (left) => {
      if (left === 0) return then();
      find("#count").textContent = left;
      this.dispatchEvent(new CustomEvent("say", { detail: String(left) }));
      this.#timers.push(setTimeout(() => tick(left - 1), 1000));
    };
    tick(count);
  }

  #record(phase, length) {
    this.#frames = [];
    this.#until = length;
    find("#recorded").textContent = seconds(0);
    this.#became(phase);
    this.dispatchEvent(new CustomEvent("say", { detail: phase === "held" ? "" : "Recording" }));
  }

  #took(frame) {
    if (!RUNNING.includes(this.#phase)) return;
    this.#frames.push(frame);
    const taken = frame.time - this.#frames[0].time;
    find("#recorded").textContent =
      this.#phase === "nothing" ? `${Math.max(0, this.#until - taken).toFixed(0)} s left` : seconds(taken);
    if (taken >= this.#until) this.#finish();
  }

  #cancel() {
    if (this.#phase !== "counting" && !RUNNING.includes(this.#phase)) return;
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
    this.#frames = [];
    this.#became("idle");
  }

  #finish() {
    if (this.#phase === "nothing") return this.#finishNothing();
    const frames = this.#frames;
    const length = frames.length > 1 ? frames.at(-1).time - frames[0].time : 0;
    if (length < SHORTEST) {
      this.#cancel();
      toast("That was too short. Hold the button while you do it, or press once for a countdown.");
      return;
    }
    const { first, last, moved } = movingPart(frames);
    this.#first = Math.min(first, frames.length - 2);
    this.#last = Math.max(last, this.#first + 1);
    this.#review(moved ? "" : "Nothing moves in it. ");
  }

  // ---- both ends, and the name

  async #review(note) {
    this.#files = null;
    this.#note = note;
    this.#became("review");
    find("#trim").hidden = true;
    find("#review-said").textContent = "";
    const frames = this.#frames;
    const decoded = frames.map((frame) => createImageBitmap(frame.blob, { resizeWidth: REPLAYED }));
    const pictures = await Promise.all(decoded);
    if (frames !== this.#frames) return; // it was discarded meanwhile
    this.#pictures = pictures;
    find("#trim").hidden = false;
    this.#drawStrip();
    this.#showEnds();
    this.#named();
    this.#replay();
  }

  #named() {
    const name = find("#name");
    name.value = store.lastLabel ?? "";
    name.focus();
    name.select();
    this.dispatchEvent(new CustomEvent("say", { detail: "Recorded. Give it a name." }));
  }

  #drawStrip() {
    const canvas = find("#filmstrip");
    const pen = canvas.getContext("2d", { alpha: false });
    const [width, height] = [canvas.width / PICTURES, canvas.height];
    for (let place = 0; place < PICTURES; place += 1) {
      const picture = this.#pictures[Math.floor(((place + 0.5) * this.#pictures.length) / PICTURES)];
      const scale = Math.max(width / picture.width, height / picture.height);
      const [w, h] = [width / scale, height / scale]; // the middle of the picture
      pen.drawImage(picture, (picture.width - w) / 2, (picture.height - h) / 2, w, h, place * width, 0, width, height);
    }
  }

  #showEnds() {
    const frames = this.#frames;
    const most = frames.length - 1;
    const [start, end] = [this.#first / most, this.#last / most];
    const length = frames[this.#last].time - frames[this.#first].time;
    find("#trim").style.setProperty("--start", start);
    find("#trim").style.setProperty("--end", end);
    for (const [handle, index, low, high] of [
      ["#handle-start", this.#first, 0, this.#last - 1],
      ["#handle-end", this.#last, this.#first + 1, most],
    ]) {
      const at = (number) => (frames[number].time - frames[0].time).toFixed(2);
      const element = find(handle);
      element.setAttribute("aria-valuemin", at(low));
      element.setAttribute("aria-valuemax", at(high));
      element.setAttribute("aria-valuenow", at(index));
      element.setAttribute("aria-valuetext", `${at(index)} seconds`);
    }
    const cut = this.#first > 0 || this.#last < most;
    const more = cut ? "; the rest is cut off. Drag the handles to correct that." : ".";
    find("#review-said").textContent = `${this.#note}${seconds(length)} are kept${more}`;
  }

  #move(which, index) {
    const most = this.#frames.length - 1;
    if (which === "start") this.#first = Math.max(0, Math.min(index, this.#last - 1));
    else this.#last = Math.min(most, Math.max(index, this.#first + 1));
    this.#showEnds();
  }

  #listenToReview() {
    for (const which of ["start", "end"]) {
      const handle = find(`#handle-${which}`);
      handle.addEventListener("pointerdown", (event) => {
        handle.setPointerCapture(event.pointerId);
        event.preventDefault();
        handle.focus();
      });
      handle.addEventListener("pointermove", (event) => {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const { left, width } = find("#trim").getBoundingClientRect();
        this.#move(which, Math.round(((event.clientX - left) / width) * (this.#frames.length - 1)));
      });
      handle.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -8, PageUp: 8 }[event.key];
        const end = { Home: 0, End: this.#frames.length - 1 }[event.key];
        if (step === undefined && end === undefined) return;
        event.preventDefault();
        this.#move(which, end ?? (which === "start" ? this.#first : this.#last) + step);
      });
    }
    find("#review").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#teach();
    });
    find("#discard").addEventListener("click", () => this.#done());
  }

  /** Show what is kept, again and again, as fast as it happened. */
  #replay() {
    const canvas = find("#replay");
    const pen = canvas.getContext("2d", { alpha: false });
    [canvas.width, canvas.height] = [this.#pictures[0].width, this.#pictures[0].height];
    const frames = this.#frames;
    const began = now();
    const draw = () => {
      if (this.#phase !== "review" || frames !== this.#frames) return;
      const length = frames[this.#last].time - frames[this.#first].time + 0.4; // a pause between two rounds
      const at = frames[this.#first].time + ((now() - began) % length);
      let index = this.#first;
      while (index < this.#last && frames[index + 1].time <= at) index += 1;
      pen.drawImage(this.#pictures[index], 0, 0);
      requestAnimationFrame(draw);
    };
    draw();
  }

  async #teach() {
    const label = find("#name").value.trim();
    if (!label) return;
    const clip = this.#files ?? this.#frames.slice(this.#first, this.#last + 1);
    const teach = this.#files ? api.teachFiles : api.teachFrames;
    // Where it fails it can be tried again, under another name.
    await store.change(find("#teach"), () => teach(label, clip), () => {
      store.lastLabel = label;
      this.#done();
    });
  }

  #done() {
    for (const picture of this.#pictures) picture.close();
    this.#pictures = [];
    this.#frames = [];
    this.#files = null;
    this.#became("idle");
    this.#button.focus();
  }

  #chose(input) {
    const files = [...input.files];
    input.value = "";
    if (files.length === 0 || this.#phase !== "idle") return;
    this.#files = files;
    this.#became("review");
    find("#trim").hidden = true;
    const names = files.map((file) => file.name).join(", ");
    find("#review-said").textContent = `${counted(files.length, "video")}: ${names}`;
    this.#named();
  }

  // ---- nothing

  #minute() {
    find("#stage").scrollIntoView({ block: "start" });
    this.#countdown(AWAY, () => this.#record("nothing", NOTHING));
    toast("Leave the picture, or do what is none of your actions. It records a minute of that.");
    this.#button.focus({ preventScroll: true });
  }

  async #finishNothing() {
    const frames = this.#frames;
    this.#became("idle");
    this.#frames = [];
    if (frames.length < 2) return;
    await this.#keepNothing(() => api.teachNothing(frames, store.window));
  }

  async #nothingFrom(input) {
    const files = [...input.files];
    input.value = "";
    if (files.length === 0) return;
    await this.#keepNothing(() => api.teachNothingFiles(files));
  }

  async #keepNothing(work) {
    const before = store.background.length;
    const sent = toast("Sending …", { lasting: true });
    const kept = (did) => {
      const more = store.background.length - before;
      return more > 0 ? `${counted(more, "clip")} of nothing kept` : sentence(did);
    };
    await store.change(find("#minute"), work, undefined, kept);
    sent();
    this.refresh();
  }
}
