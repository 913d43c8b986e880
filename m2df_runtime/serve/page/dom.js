/* Elements without markup: text is always text, so a label or a file name can never become HTML. */

export const find = (selector, root = document) => root.querySelector(selector);

/** An element; properties that begin with "on" are listeners, undefined and false ones are left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** An icon of icons.svg; what it means is said by the text or the label beside it. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", new URL(`icons.svg#${name}`, import.meta.url).href);
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(use);
  return drawing;
}

/** A button with a text; `press` is given the button. */
export const button = (text, press, kind) =>
  make("button", { type: "button", class: kind, onclick: ({ currentTarget }) => press(currentTarget) }, text);

/** A button with an icon, and what is read out of it. */
export const iconButton = (name, label, press, kind = "quiet small") => {
  const made = button(icon(name), press, kind);
  made.setAttribute("aria-label", label);
  return made;
};

/** "1 clip", "2 clips". */
export const counted = (count, noun, plural = `${noun}s`) => `${count} ${count === 1 ? noun : plural}`;

/** What the server says, as a sentence of its own. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export const seconds = (value) => `${value.toFixed(1)} s`;

let silence;

/**
 * Say in a corner what was done or went wrong, with what can be done about it.
 *
 * lasting: what goes on, until something else is said. Given is what takes it away.
 */
export function toast(text, { offer, action, failed = false, lasting = false } = {}) {
  const place = find("#toasts");
  const line = make("div", { class: failed ? "toast failed" : "toast" }, make("span", {}, text));
  const close = () => line.remove();
  if (offer) line.append(button(offer, () => (close(), action())));
  line.append(iconButton("close", "Dismiss", close));
  place.replaceChildren(line);
  clearTimeout(silence);
  if (!lasting) silence = setTimeout(close, failed ? 15000 : 8000);
  return close;
}

/** Run what a button does: it cannot be pressed twice meanwhile, and what goes wrong is said. */
export async function busy(element, work) {
  element.setAttribute("aria-busy", "true");
  element.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (error.name !== "NeedsToken") toast(said(error), { failed: true });
    return undefined;
  } finally {
    element.disabled = false;
    element.removeAttribute("aria-busy");
  }
}

/** An error in words: what is wrong, and what to do. */
export const said = (error) => (error.hint ? `${error.message}. ${error.hint}` : error.message);
