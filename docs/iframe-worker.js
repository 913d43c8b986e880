/* A worker in a frame. From a disk browsers start no worker, and the search of a site is one: there, this stands for it. */

class FrameWorker extends EventTarget {
  #inside;
  #ready;

  constructor(address) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const inside = frame.contentWindow;
    inside.document.open(); // else Firefox puts an empty document in place of this one later
    inside.document.write("<!doctype html><body></body>");
    inside.document.close();
    inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    const script = inside.document.createElement("script");
    script.src = address;
    this.#inside = inside;
    this.#ready = new Promise((loaded) => script.addEventListener("load", loaded));
    inside.document.body.append(script);
  }

  async postMessage(data) {
    await this.#ready;
    this.#inside.dispatchEvent(new MessageEvent("message", { data }));
  }
}

// By this name the theme's worker knows that it is in a frame.
if (location.protocol === "file:") window.Worker = window.IFrameWorker = FrameWorker;
