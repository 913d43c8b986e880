/* The camera as small JPEG frames, each with its time. The preview is mirrored by the style sheet, the data never. */

const RATE = 15; // frames a second
const SIDE = 480; // pixels of a frame's long side: the model looks at fewer
const QUALITY = 0.85;
const GRID = 40; // cells of the long side of the grid that tells movement
const REMEMBERED = 8; // seconds of frames that are kept, so that what just happened can be taught

/** Why there is no camera, in words that say what to do. */
function reason(error) {
  switch (error?.name) {
    case "NotAllowedError":
      return "This page may not use the camera. Allow it beside the address of the page, then try again.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "No camera was found. Connect one, then try again.";
    case "NotReadableError":
    case "AbortError":
      return "The camera cannot be opened. Close other programs that use it, then try again.";
    default:
      return `The camera cannot be opened (${error?.message ?? error}).`;
  }
}

export class Camera extends EventTarget {
  #running = false;
  #stream = null;
  #picture = document.createElement("canvas");
  #cells = document.createElement("canvas");

  constructor(video) {
    super();
    this.video = video;
    this.recent = []; // {time, blob, grid}, the newest last
    this.facing = "user";
  }

  get running() {
    return this.#running;
  }

  /** Open a camera. Throws an Error whose message says why there is none. */
  async start(deviceId) {
    this.stop();
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error(
        window.isSecureContext
          ? "This browser gives pages no camera."
          : "Browsers give a camera only to https and to localhost. Open this page there, or serve it with --tls-cert.",
      );
    }
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    const video = deviceId ? { ...size, deviceId: { exact: deviceId } } : { ...size, facingMode: "user" };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
      this.video.srcObject = this.#stream;
      await this.video.play();
    } catch (error) {
      this.stop();
      throw new Error(reason(error), { cause: error });
    }
    const [track] = this.#stream.getVideoTracks();
    this.facing = track.getSettings().facingMode ?? "user";
    this.deviceId = track.getSettings().deviceId;
    track.addEventListener("ended", () => this.dispatchEvent(new Event("lost")));
    this.#running = true;
    this.#grab(this.#stream);
  }

  stop() {
    this.#running = false;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.video.srcObject = null;
    this.recent = [];
  }

  async devices() {
    const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return all.filter((device) => device.kind === "videoinput");
  }

  /** The frames from one second of this page to another that are still known. */
  between(start, end) {
    return this.recent.filter((frame) => frame.time >= start && frame.time <= end);
  }

  async #grab(stream) {
    let due = performance.now();
    while (this.#running && stream === this.#stream) {
      if (!document.hidden && this.video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) await this.#frame();
      due = Math.max(due + 1000 / RATE, performance.now());
      await new Promise((resume) => setTimeout(resume, due - performance.now()));
    }
  }

  async #frame() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width || !height) return;
    const time = performance.now() / 1000;
    const scale = Math.min(1, SIDE / Math.max(width, height));
    this.#draw(this.#picture, Math.round(width * scale), Math.round(height * scale));
    const cells = GRID / Math.max(width, height);
    const rows = this.#draw(this.#cells, Math.round(width * cells), Math.round(height * cells));
    const pixels = rows.getImageData(0, 0, this.#cells.width, this.#cells.height).data;
    const grid = new Float32Array(pixels.length / 4);
    for (let cell = 0; cell < grid.length; cell += 1) {
      grid[cell] = 0.299 * pixels[4 * cell] + 0.587 * pixels[4 * cell + 1] + 0.114 * pixels[4 * cell + 2];
    }
    const blob = await new Promise((done) => this.#picture.toBlob(done, "image/jpeg", QUALITY));
    if (!blob || !this.#running) return;
    const frame = { time, blob, grid };
    this.recent.push(frame);
    while (this.recent[0].time < time - REMEMBERED) this.recent.shift();
    this.dispatchEvent(new CustomEvent("frame", { detail: frame }));
  }

  #draw(canvas, width, height) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.video, 0, 0, width, height);
    return pen;
  }
}
