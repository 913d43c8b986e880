/* Videos that are dropped onto the page, their answers, and why. */

import * as api from "./api.js";
import { button, find, iconButton, make, said, toast } from "./dom.js";
import { moment } from "./moments.js";
import { store } from "./store.js";
import { strip } from "./strips.js";
import { explain } from "./why.js";

const KEPT = 12; // results on the page

export function tryClips() {
  const drop = find("#drop");
  find("#clip").addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = "";
  });
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}

async function take(files) {
  if (store.classes.length === 0) {
    toast("Teach an action first: there is nothing to compare a clip with.");
    return;
  }
  for (const file of files.slice(0, KEPT)) await one(file);
}

async function one(file) {
  const list = find("#results");
  const waiting = make("li", { class: "moment waiting" }, make("p", { class: "how" }, `Looking at ${file.name} …`));
  list.prepend(waiting);
  while (list.children.length > KEPT) list.lastElementChild.remove();
  try {
    const answer = await api.predict(file);
    waiting.replaceWith(result(file, answer));
  } catch (error) {
    const line = make("li", { class: "moment failed" }, make("p", {}, error.message.startsWith(file.name) ? said(error) : `${file.name}: ${said(error)}`));
    line.append(iconButton("close", "Forget this", () => line.remove(), "quiet small away"));
    waiting.replaceWith(line);
  }
}

function result(file, answer) {
  const [best] = answer.predictions;
  const words = answer.rejected ? "None of these" : best.label;
  const detail = answer.rejected ? `nearest: ${best.label}` : `${Math.round(100 * best.probability)} %`;
  return moment({
    words,
    detail: [detail, file.name, answer.warning].filter(Boolean).join(" · "),
    picture: strip(`answer-${answer.id}`, () => api.answerStrip(answer.id), `Frames of ${file.name}`),
    teach: (label) => api.teachFiles(label, [file]),
    nothing: () => api.teachNothingFiles([file]),
    more: [button("Why?", () => explain(answer, words))],
    folded: true,
    done: (line) => line.remove(),
  });
}
