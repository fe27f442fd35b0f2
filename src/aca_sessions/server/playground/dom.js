/** Elements of the page. Text is set as text: no function of this page takes HTML, but for `frame.js`. */

/** An element with attributes, handlers of events (functions) and children (elements or text). */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A button; one that destroys something asks once more, in its own place. */
export function button(label, act, { sure = "", ...attributes } = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", () => (sure ? confirmIn(made, label, sure, act) : act(made)));
  return made;
}

function confirmIn(made, label, sure, act) {
  if (made.textContent === sure) {
    made.textContent = label;
    made.classList.remove("sure");
    act(made);
    return;
  }
  made.textContent = sure;
  made.classList.add("sure");
  const forget = () => {
    made.textContent = label;
    made.classList.remove("sure");
  };
  made.addEventListener("blur", forget, { once: true });
}

let refusal = null; // the one that is shown

/** Shows, beside the button that caused it, why something was not done. The next thing that is done takes it away. */
export function refuse(made, message) {
  forgetRefusal();
  const place = made?.isConnected && made.closest("[role=group], form, li, .upload, section");
  if (!place || place.checkVisibility?.() === false) return false;
  refusal = element("p", { class: "refusal", role: "alert" }, message);
  place.append(refusal);
  const left = made.offsetLeft - place.firstElementChild.offsetLeft;
  if (place.getAttribute("role") === "group") refusal.style.paddingLeft = `${Math.max(0, Math.min(left, place.clientWidth - 280))}px`;
  refusal.scrollIntoView({ block: "nearest" });
  return true;
}

/** Takes the refusal away. */
export function forgetRefusal() {
  refusal?.remove();
  refusal = null;
}

/** A list of keys and makers of items. An item whose key was there before stays the same element: what is focused or refused in it stays. */
export function showList(holder, wanted) {
  const list = holder.querySelector(":scope > ul") ?? element("ul", { class: "plain" });
  if (!list.isConnected) holder.replaceChildren(list);
  const there = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const made = wanted.map(([key, make]) => {
    const item = there.get(key) ?? make();
    item.dataset.key = key;
    return item;
  });
  arrange(list, made);
}

/** Puts items into a list, in their order. What has the focus keeps it though it is moved; where its item has gone, the neighbour gets it. */
export function arrange(list, items) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const place = focused && [...list.children].findIndex((item) => item.contains(focused));
  for (const item of [...list.children]) if (!items.includes(item)) item.remove();
  items.forEach((item, at) => list.children[at] === item || list.insertBefore(item, list.children[at] ?? null));
  if (!focused || document.activeElement === focused) return;
  const near = items[Math.min(place, items.length - 1)]?.querySelector("button") ?? list.closest("details")?.querySelector("summary");
  (focused.isConnected ? focused : near)?.focus({ preventScroll: true });
}

/** A button that can be used, or that shows why not: in its title, and in its description for screen readers. */
export function enable(made, reason = "") {
  made.disabled = reason !== "";
  made.title = reason || made.dataset.title || "";
  if (reason) made.setAttribute("aria-description", reason);
  else made.removeAttribute("aria-description");
}

/** A name that code chose: quoted and escaped if it has more than letters, digits and marks that separate nothing. */
export function shownName(name) {
  if (/^[\p{L}\p{N}_.,/@%+=:~#-]+$/u.test(name)) return name;
  return JSON.stringify(name).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);
}

/** Bytes, for people. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) [bytes, unit] = [bytes / 1000, unit + 1];
  return `${bytes < 10 && unit ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

/** A time span, for people. */
export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** Return a name that cannot be guessed. (`crypto.randomUUID` is there on secure origins only.) */
export function randomName(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return prefix + [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
