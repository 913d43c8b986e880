/* The page: its parts are made here and told of each other. */

import * as api from "./api.js";
import { Camera } from "./camera.js";
import { find, make, sentence } from "./dom.js";
import { followEvents } from "./events.js";
import { Live } from "./live.js";
import { Unsure } from "./moments.js";
import { Now } from "./now.js";
import { Recorder } from "./recorder.js";
import { store } from "./store.js";
import { showTaught } from "./taught.js";
import { tryClips } from "./try.js";

const STRIDES = 8; // of a window: how often scores come
const AGAIN = 2; // seconds between two questions to a server that does not answer

const camera = new Camera(find("#video"));
const live = new Live();
const now = new Now();
const unsure = new Unsure(camera, now);
const recorder = new Recorder(camera);

// ---- camera

async function openCamera(deviceId) {
  find("#no-camera").hidden = true;
  try {
    await camera.start(deviceId);
  } catch (error) {
    find("#no-camera").hidden = false;
    find("#no-camera-why").textContent = error.message;
  }
  const on = camera.running;
  find("#view").classList.toggle("off", !on);
  find("#video").classList.toggle("mirror", camera.facing !== "environment");
  find("#record").hidden = find("#record-how").hidden = !on;
  recorder.refresh();
  follow();
  const devices = on ? await camera.devices() : [];
  find("#camera-choice").hidden = devices.length < 2;
  find("#camera-list").replaceChildren(
    ...devices.map(({ deviceId: value, label }, number) =>
      make("option", { value, selected: value === camera.deviceId }, label || `Camera ${number + 1}`),
    ),
  );
}

find("#camera-again").addEventListener("click", () => openCamera());
find("#camera-list").addEventListener("change", ({ target }) => openCamera(target.value));
navigator.mediaDevices?.addEventListener?.("devicechange", () => camera.running || openCamera());
camera.addEventListener("lost", () => openCamera());

// ---- scores

/** Scores are asked for while there is a camera, something to tell apart, and somebody who looks. */
function follow() {
  if (camera.running && store.classes.length > 1 && !document.hidden) live.start(store.window, store.window / STRIDES);
  else live.stop();
  state();
}

function state() {
  const open = live.state === "open";
  find("#link").textContent = { open: "Live", connecting: "Connecting …", lost: "Reconnecting …" }[live.state] ?? "";
  find("#link").className = `link ${live.state}`;
  find("#wrong").hidden = !open;
  if (open || !store.loaded) return;
  if (live.state === "off") {
    const more = !camera.running ? "Bars appear here with a camera." : "";
    const missing = ["Teach it two actions", "One more action"][store.classes.length];
    now.pause(missing ?? "No camera", missing ? "" : more);
  } else if (live.state === "lost") now.pause("Reconnecting …", sentence(live.reason));
  else now.pause("Getting ready …");
}

camera.addEventListener("frame", ({ detail }) => live.send(detail));
live.addEventListener("state", state);
live.addEventListener("scores", ({ detail }) => {
  now.show(detail);
  const labels = store.labels;
  const same = detail.classes.length === labels.length && detail.classes.every((one) => labels.includes(one.label));
  if (!same) store.refreshSoon(); // somebody else teaches, too
  if (!recorder.active) unsure.see(detail);
});
recorder.addEventListener("say", ({ detail }) => detail && (find("#said").textContent = detail));
store.addEventListener("change", follow);

// ---- the server

let asking = null;

/** Ask until the server answers, then show what it knows. */
async function reach() {
  clearTimeout(asking);
  try {
    if (api.token.get()) await api.session();
    const first = !store.loaded;
    await store.refresh();
    if (first) followEvents();
    live.retry();
  } catch (error) {
    if (error.status !== 401) asking = setTimeout(reach, 1000 * AGAIN);
  }
}

api.link.addEventListener("lost", () => {
  const trouble = find("#trouble");
  trouble.hidden = false;
  trouble.textContent = "The server does not answer. This page tries again until it does.";
  clearTimeout(asking);
  asking = setTimeout(reach, 1000 * AGAIN);
});
api.link.addEventListener("answered", () => (find("#trouble").hidden = true));
live.addEventListener("state", () => live.state === "lost" && reach());
document.addEventListener("visibilitychange", () => {
  follow();
  if (!document.hidden) reach();
});

// ---- token

const gate = find("#token");
api.link.addEventListener("token", () => {
  find("#token-wrong").hidden = !api.token.get();
  if (!gate.open) gate.showModal();
  find("#token-value").focus();
});
gate.addEventListener("cancel", (event) => event.preventDefault());
find("#token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.token.set(find("#token-value").value.trim());
  find("#token-value").value = "";
  await reach();
  if (store.loaded) gate.close();
});

// ---- begin

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  api.token.set(given);
  history.replaceState(null, "", location.pathname); // a link with the token is not to stay in the address bar
}
showTaught();
tryClips();
store.addEventListener("change", () => {
  const { version, bundle } = store.info;
  find("#about").textContent = [`m2df ${version ?? ""}`.trim(), bundle].filter(Boolean).join(" · ");
});
await Promise.all([reach(), openCamera()]);
