/* Scores while it happens: frames go over a WebSocket, at most one of them unanswered, and scores come back. */

import { token } from "./api.js";

const TEACH = 4409; // how a server ends what has too few actions
const LONGEST_WAIT = 5; // seconds between two attempts to reach the server

export class Live extends EventTarget {
  #socket = null;
  #ready = false;
  #waiting = false; // for the server to have taken the last frame
  #next = null; // the newest frame meanwhile
  #attempt = 0;
  #timer = null;
  #wanted = false;

  /** off, connecting, open or lost. */
  state = "off";

  start(window, stride) {
    this.window = window;
    this.stride = stride;
    if (this.#wanted) return;
    this.#wanted = true;
    this.#connect();
  }

  stop() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#became("off");
  }

  /** Try now what would be tried later. */
  retry() {
    if (this.state !== "lost") return;
    clearTimeout(this.#timer);
    this.#connect();
  }

  send(frame) {
    if (!this.#ready || this.#socket.readyState !== WebSocket.OPEN) return; // it closes before it says so
    if (this.#waiting) {
      this.#next = frame;
      return;
    }
    this.#waiting = true;
    this.#next = null;
    const head = new DataView(new ArrayBuffer(8));
    head.setFloat64(0, frame.time, true);
    this.#socket.send(new Blob([head, frame.blob]));
  }

  #connect() {
    this.#became("connecting");
    const place = new URL(`/v1/live?window=${this.window}&stride=${this.stride}`, location.href);
    place.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(place);
    this.#socket = socket;
    this.#ready = this.#waiting = false;
    socket.addEventListener("open", () => socket.send(JSON.stringify({ type: "hello", token: token.get() || null })));
    socket.addEventListener("message", ({ data }) => socket === this.#socket && this.#told(JSON.parse(data)));
    socket.addEventListener("close", ({ code, reason }) => socket === this.#socket && this.#closed(code, reason));
  }

  #told(message) {
    if (message.type === "ready") {
      this.#attempt = 0;
      this.#ready = true;
      this.#became("open");
    } else if (message.type === "ack") {
      this.#waiting = false;
      if (this.#next) this.send(this.#next);
    } else {
      this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
    }
  }

  #closed(code, reason) {
    this.#socket = null;
    this.#ready = false;
    if (!this.#wanted) return;
    this.reason = code === TEACH ? "" : reason; // it tells itself why two actions are needed
    this.#became("lost");
    const wait = Math.min(LONGEST_WAIT, 0.5 * 2 ** this.#attempt);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.#connect(), 1000 * wait);
  }

  #became(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}
