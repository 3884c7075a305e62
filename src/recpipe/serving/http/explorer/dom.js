// Elements and text. Data of the service enters the page as text only: nothing here writes markup.

import { pictureAddress } from "./api.js";

const PROPERTIES = new Set(["checked", "disabled", "hidden", "value", "open"]);

// el("button", {class: "plain", onclick: f}, "text", child): children are elements or text, or lists of them; null and
// false are left out.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const byId = (id) => document.getElementById(id);

// Replaces the children of a container and puts the focus back on the element with the same data-focus.
export function replace(container, ...children) {
  const active = document.activeElement;
  const key = container.contains(active) ? active.dataset.focus : null;
  const [start, end] = [active?.selectionStart, active?.selectionEnd];
  container.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (!key) return;
  const twin = [...container.querySelectorAll("[data-focus]")].find(
    (element) => element.dataset.focus === key,
  );
  if (!twin) return;
  twin.focus({ preventScroll: true });
  if (twin.type === "text" && start !== null && start !== undefined) twin.setSelectionRange(start, end);
}

export function announce(text) {
  byId("status").textContent = text;
}

export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export function percent(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const share = 100 * value;
  if (share > 0 && share < 0.01) return "< 0.01\u202f%";
  return `${share >= 10 ? share.toFixed(0) : share >= 1 ? share.toFixed(1) : share.toFixed(2)}\u202f%`;
}

export const decimal = (value, digits = 2) =>
  value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "\u2212");

export function signed(value) {
  const text = decimal(value);
  return Number(value.toFixed(2)) === 0 ? "0.00" : value > 0 ? `+${text}` : text;
}

export function debounce(run, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), milliseconds);
  };
}

let isPressed = false;
let waiting = [];
for (const [kind, value] of [
  ["pointerdown", true],
  ["pointerup", false],
  ["pointercancel", false],
])
  window.addEventListener(kind, () => ((isPressed = value), value || setTimeout(runWaiting)), true);

function runWaiting() {
  const runs = waiting;
  waiting = [];
  for (const run of runs) run();
}

// Runs a function when the focus has arrived and no button of the mouse is down: what is drawn anew between pressing
// and releasing it loses the click.
export function whenSettled(run) {
  setTimeout(() => (isPressed ? waiting.push(run) : run()));
}

// A title as the page shows it: the id where there is none.
export function titled(title, id) {
  return title && title.trim() ? title : id;
}

const pictures = new Map(); // item id -> promise of an address

// The picture of an item where the service has pictures; one that is missing disappears.
export function picture(id, images) {
  if (!images) return null;
  const image = el("img", { class: "picture", alt: "", loading: "lazy" });
  const drop = () => image.remove();
  image.addEventListener("error", drop);
  if (!pictures.has(id)) pictures.set(id, pictureAddress(id));
  pictures.get(id).then((address) => (image.src = address), drop);
  return image;
}
