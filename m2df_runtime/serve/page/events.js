/* What happened, and when: before this page's camera and those that the server watches, and how the latter are. */

import * as api from "./api.js";
import { find, make } from "./dom.js";

const KEPT = 8; // events on the page
const ASKED_EVERY = 5; // seconds between two questions how the cameras are

const PAGES = /^live \d+$/; // how the server calls the camera of a page: a name for programs

const lines = new Map(); // camera and number of an event to its line

/** Follow what the server tells. The browser comes back by itself where the connection is lost. */
export function followEvents() {
  const source = new EventSource(api.EVENTS);
  source.addEventListener("event", ({ data }) => show(JSON.parse(data)));
  ask();
}

function show(event) {
  const key = `${event.camera} ${event.id}`;
  if (event.type === "new") {
    const line = make("li", { class: "event" });
    lines.set(key, line);
    find("#events").prepend(line);
    while (find("#events").children.length > KEPT) find("#events").lastElementChild.remove();
  }
  const line = lines.get(key);
  if (!line) return; // it began before this page was opened
  if (event.type === "end") lines.delete(key);
  const began = event.start_time === null ? null : new Date(1000 * event.start_time);
  const camera = PAGES.test(event.camera) ? "" : event.camera;
  const length = `${Math.max(0, event.end - event.start).toFixed(1)} s`;
  line.replaceChildren(
    make("strong", {}, event.label),
    make("span", { class: "how" }, [began?.toLocaleTimeString(), length, camera].filter(Boolean).join(" · ")),
  );
  find("#happened").hidden = false;
}

async function ask() {
  const cameras = await api.cameras().catch(() => []);
  const list = find("#cameras");
  list.hidden = cameras.length === 0;
  list.replaceChildren(
    ...cameras.map(({ name, state, cause, picture }) =>
      make("li", {}, make("strong", {}, name), ` ${[state, cause, picture].filter(Boolean).join(", ")}`),
    ),
  );
  if (cameras.length === 0) return;
  find("#happened").hidden = false;
  setTimeout(ask, 1000 * ASKED_EVERY);
}
