/* The actions that were taught, with their clips: rename, delete, carry away, take over. */

import * as api from "./api.js";
import { busy, button, counted, find, icon, iconButton, make, seconds, sentence, toast } from "./dom.js";
import { store } from "./store.js";
import { strip } from "./strips.js";

export function showTaught() {
  store.addEventListener("change", arrange);
  find("#export").addEventListener("click", ({ currentTarget }) => busy(currentTarget, carryAway));
  find("#import").addEventListener("change", ({ target }) => takeOver(target));
  find("#undo").addEventListener("click", ({ currentTarget }) => busy(currentTarget, () => store.undo()));
}

function arrange() {
  const { classes, background, info } = store;
  find("#taught-count").textContent = classes.length || "";
  find("#classes").replaceChildren(...(classes.length ? classes.map(card) : [none()]));
  find("#nothing-clips").replaceChildren(
    ...background.map((clip) =>
      clipOf(clip, "nothing", () => api.backgroundStrip(clip.id), () => api.removeBackground(clip.id)),
    ),
  );
  find("#rejection").textContent = sentence(info.rejection ?? "");
  find("#labels").replaceChildren(...store.labels.map((label) => make("option", { value: label })));
  find("#export").disabled = classes.length === 0;
  const undo = find("#undo");
  undo.hidden = !info.last_change;
  const again = info.last_change?.startsWith("undone"); // undoing that makes it again
  undo.replaceChildren(icon(again ? "redo" : "undo"), again ? "Redo" : "Undo");
  undo.title = info.last_change ?? "";
  undo.setAttribute("aria-label", again ? `Redo what was ${info.last_change}` : `Undo: ${info.last_change}`);
}

const none = () => make("li", { class: "empty" }, "Nothing is taught yet. What you record appears here.");

function card(entry) {
  const title = make("h3", { title: entry.label }, entry.label);
  const head = make(
    "div",
    { class: "head" },
    title,
    make(
      "div",
      { class: "row" },
      iconButton("pencil", `Rename ${entry.label}`, () => renaming(entry, head)),
      iconButton("bin", `Delete ${entry.label}`, (pressed) => store.change(pressed, () => api.removeClass(entry.label))),
    ),
  );
  const clips = entry.clips.map((clip) =>
    clipOf(clip, entry.label, () => api.strip(entry.label, clip.id), () => api.removeClip(entry.label, clip.id)),
  );
  const lengths = entry.clips.map((clip) => clip.seconds).filter((length) => typeof length === "number");
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const hint = entry.clips.length === 1 ? "A second clip makes it surer" : null;
  return make(
    "li",
    { class: "card" },
    head,
    make("ul", { class: "clips" }, ...clips),
    make("p", { class: "how" }, hint ?? `${counted(entry.clips.length, "clip")}${total ? `, ${seconds(total)}` : ""}`),
  );
}

function clipOf(clip, label, load, remove) {
  const length = typeof clip.seconds === "number" ? seconds(clip.seconds) : "";
  return make(
    "li",
    { class: "clip" },
    strip(`${label}/${clip.id}`, load, `A clip of ${label}${length && `, ${length}`}`),
    length && make("span", { class: "length", "aria-hidden": "true" }, length),
    iconButton("close", `Delete this clip of ${label} (${clip.name})`, (pressed) => store.change(pressed, remove), "delete"),
  );
}

function renaming(entry, head) {
  const typed = { type: "text", value: entry.label, maxlength: 80, autocapitalize: "none", required: true };
  const field = make("input", { ...typed, "aria-label": `New name of ${entry.label}` });
  const back = () => form.replaceWith(head);
  const form = make(
    "form",
    {
      class: "head rename",
      autocomplete: "off",
      onsubmit: (event) => (event.preventDefault(), submit()),
      onkeydown: (event) => event.key === "Escape" && back(),
    },
    field,
    make("button", { type: "submit", class: "primary small" }, "Rename"),
    iconButton("close", "Keep the name", back),
  );
  const submit = async () => {
    const name = field.value.trim();
    if (!name || name === entry.label) return back();
    await store.change(form.querySelector("button"), () => renamed(name));
  };
  const renamed = async (name) => {
    try {
      return await api.rename(entry.label, name);
    } catch (error) {
      if (error.code !== "class_taken") throw error;
      form.replaceWith(joining(entry, name, sentence(error.message), head));
      find(".joining button").focus();
      return undefined;
    }
  };
  head.replaceWith(form);
  field.focus();
  field.select();
}

/** The new name is another action's: are they the same? */
function joining(entry, name, words, head) {
  const back = () => asked.replaceWith(head);
  const join = (pressed) => store.change(pressed, () => api.rename(entry.label, name, true));
  const asked = make(
    "div",
    { class: "joining", onkeydown: (event) => event.key === "Escape" && back() },
    make("p", { role: "alert" }, `${words}. Are they the same?`),
    make("div", { class: "row" }, button("Join the two", join, "primary small"), button("Keep both", back, "small")),
  );
  return asked;
}

async function carryAway() {
  const address = URL.createObjectURL(await api.exported());
  make("a", { href: address, download: "actions.zip" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

async function takeOver(input) {
  const [file] = input.files;
  input.value = "";
  if (!file) return;
  const sent = toast(`Taking over ${file.name} …`, { lasting: true });
  await store.change(find("#import"), () => api.imported(file));
  sent();
}
