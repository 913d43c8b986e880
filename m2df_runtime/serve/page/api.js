/* The server's routes, one function each. Every failure is an error with what is wrong and what to do. */

const KEY = "m2df-token";

/** Tells the page that the server asks for a token, does not answer, or answers again. */
export const link = new EventTarget();

class ApiError extends Error {
  constructor(status, { code = "error", message = "The server gave no reason", hint = "" } = {}) {
    super(message);
    this.name = status === 401 ? "NeedsToken" : "ApiError";
    this.status = status;
    this.code = code;
    this.hint = hint;
  }
}

/** The token, as long as this tab is open. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function ask(method, path, { body, json } = {}) {
  const headers = {};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: json === undefined ? body : JSON.stringify(json) });
  } catch {
    link.dispatchEvent(new Event("lost"));
    throw new ApiError(0, { message: "The server does not answer", hint: "Is m2df-run serve still running?" });
  }
  if (response.ok) {
    link.dispatchEvent(new Event("answered"));
    return response;
  }
  const { error } = await response.json().catch(() => ({}));
  if (response.status === 401) link.dispatchEvent(new Event("token"));
  throw new ApiError(response.status, error);
}

const answer = async (...request) => (await ask(...request)).json();
const ofClass = (label) => `/v1/classes/${encodeURIComponent(label)}`;

/** Frames of a recording as a form: JPEG pictures, and when each was taken. */
function recorded(frames) {
  const form = new FormData();
  const times = frames.map((frame) => Number((frame.time - frames[0].time).toFixed(3)));
  for (const [number, frame] of frames.entries()) form.append("frames", frame.blob, `${number}.jpg`);
  form.append("times", JSON.stringify(times));
  return form;
}

function files(name, list) {
  const form = new FormData();
  for (const file of list) form.append(name, file, file.name);
  return form;
}

export const classes = () => answer("GET", "/v1/classes");
export function teachFrames(label, frames) {
  const form = recorded(frames);
  form.append("trim", "false"); // whoever recorded has seen where it begins and ends
  return answer("POST", `${ofClass(label)}/clips`, { body: form });
}
export const teachFiles = (label, list) => answer("POST", `${ofClass(label)}/clips`, { body: files("clips", list) });
/** join: the name is that of another class, and the two become one. */
export const rename = (label, name, join = false) => answer("PATCH", ofClass(label), { json: { label: name, join } });
export const removeClass = (label) => answer("DELETE", ofClass(label));
export const removeClip = (label, id) => answer("DELETE", `${ofClass(label)}/clips/${encodeURIComponent(id)}`);
export const strip = async (label, id) =>
  (await ask("GET", `${ofClass(label)}/clips/${encodeURIComponent(id)}/strip`)).blob();
export const undo = () => answer("POST", "/v1/undo");

const ofNothing = (id) => `/v1/background/${encodeURIComponent(id)}`;
export const backgroundStrip = async (id) => (await ask("GET", `${ofNothing(id)}/strip`)).blob();
export const removeBackground = (id) => answer("DELETE", ofNothing(id));
/** cut: seconds of the pieces that a long recording is cut into. */
export function teachNothing(frames, cut) {
  const form = recorded(frames);
  if (cut) form.append("cut", String(cut));
  return answer("POST", "/v1/background", { body: form });
}
export const teachNothingFiles = (list) => answer("POST", "/v1/background", { body: files("clips", list) });

/** Let what a browser asks by itself, such as a frame of the page, stand for the token, too. */
export const session = () => ask("POST", "/v1/session");

export const explanation = (answer) => `/v1/answers/${encodeURIComponent(answer)}/explain`;
export const predictFrames = (frames) => answer("POST", "/v1/predict", { body: recorded(frames) });
export const predict = (file) => answer("POST", "/v1/predict", { body: files("clip", [file]) });
export const EVENTS = "/v1/events";
export const cameras = () => answer("GET", "/v1/cameras");

export const exported = async () => (await ask("GET", "/v1/export")).blob();
export const imported = (file) => answer("POST", "/v1/import", { body: files("file", [file]) });
export const answerStrip = async (id) => (await ask("GET", `/v1/answers/${encodeURIComponent(id)}/strip`)).blob();
