/** What is beside the cells: sessions, variables, checkpoints. */

import { asked, request } from "./api.js";
import { arrange, button, element, showList, shownName, size, span } from "./dom.js";
import { wordsOf } from "./names.js";
import { isSecret } from "./output.js";
import { called } from "./workspace.js";

const MOST = 200;
const SHOWN_SIZE = 1024; // bytes; of most objects, a smaller size is that of its shell
const WHY = { rule: "by the rules", address: "not a public address", malformed: "malformed", limit: "over a limit", tls: "no TLS agreed" };
const PAGE = 300; // as many sessions are listed at once

/** The sessions that the server keeps, the latest used first. */
export async function listSessions() {
  const found = new Map();
  for (;;) {
    const before = found.size;
    const page = (await asked("GET", "listSessions", { query: before ? { skip: before } : {} })).sessions;
    for (const one of page) found.set(one.identifier, described(one));
    if (page.length < PAGE || found.size === before) break;
  }
  return [...found.values()].reverse();
}

/** Ends a session, with its variables and files. */
export const endSession = (name) => request("DELETE", "session", { session: name });

function described({ identifier: id, createdAt: created, ...one }) {
  const cooldown = (Date.parse(one.expireAt) - Date.parse(one.lastAccessedAt)) / 1000; // 0 where sessions do not expire
  const { name: given = null, cells = null, ...live } = one.acaSessions ?? unknownState(one);
  return { id, created, cooldown, given, cells, name: given ?? wordsOf(id), ...live };
}

function unknownState(one) {
  const idle = (Date.now() - Date.parse(one.lastAccessedAt)) / 1000;
  return { idle: Math.max(0, idle), memory: null, active: null, running: null };
}

/** The list of sessions on the page. Its items stay the same elements while they are updated: what is clicked or focused is not exchanged. */
export class SessionList {
  constructor(list, acts) {
    this.list = list;
    this.acts = acts;
    this.items = new Map();
    this.more = element("li", { class: "note" });
  }

  /** Shows the sessions, the current one first where it has not begun, or has ended meanwhile; and behind them those `ended` whose cells are there. */
  show(sessions, current, ended) {
    const live = new Set(sessions.map(({ id }) => id));
    const absent = ({ id, name, ended, all, saved }) => ({ id, name, absent: saved ? "saved" : ended ? "ended" : "not begun", isSaved: saved !== null, hasCells: all.length > 0 });
    const [first, last] = [[current], ended.filter((one) => one !== current)].map((some) => some.filter(({ id }) => !live.has(id)).map(absent));
    const all = [...first, ...sessions, ...last].slice(0, MOST);
    const ids = new Set(all.map((one) => one.id));
    for (const id of this.items.keys()) if (!ids.has(id)) this.items.delete(id);
    for (const one of all) this.item(one.id).update(one, one.id === current.id);
    const rest = sessions.length - MOST;
    this.more.textContent = rest > 0 ? `and ${rest} more` : "";
    arrange(this.list, [...all.map((one) => this.items.get(one.id).element), this.more]);
  }

  item(id) {
    if (!this.items.has(id)) this.items.set(id, new SessionItem(id, this.acts));
    return this.items.get(id);
  }
}

class SessionItem {
  constructor(id, { select, end, drop }) {
    this.name = element("span", { class: "name" });
    this.state = element("span");
    this.facts = element("span", { class: "facts" });
    this.choice = button("", () => select(id), { class: "session" });
    this.choice.append(this.name, this.state, this.facts);
    this.ending = button("End", (made) => end(id, made), { sure: "End it", class: "quiet" });
    this.dropping = button("Drop", (made) => drop(id, made), { sure: "Drop its cells", class: "quiet" });
    this.element = element("li", {}, this.choice, this.ending, this.dropping);
  }

  update(one, isCurrent) {
    const state = one.absent ?? stateOf(one);
    this.name.textContent = this.choice.title = this.choice.dataset.name = one.name;
    this.ending.setAttribute("aria-label", `End session ${one.name}`);
    this.dropping.setAttribute("aria-label", `Drop the cells of session ${one.name}`);
    this.state.textContent = state;
    this.state.className = `state-of-session ${state.replace(" ", "-")}`;
    const used = one.idle < 2 ? "just now" : `${span(one.idle)} ago`;
    const memory = one.memory === null ? "" : `${size(one.memory)} · `;
    const next = one.isSaved ? "goes on with its next cell" : "begins with its next cell";
    this.facts.textContent = one.absent ? next : `${memory}used ${used}`;
    if (isCurrent) this.choice.setAttribute("aria-current", "true");
    else this.choice.removeAttribute("aria-current");
    this.ending.hidden = Boolean(one.absent);
    this.dropping.hidden = !["ended", "saved"].includes(one.absent) || !one.hasCells;
  }
}

const stateOf = ({ running, active }) => (running ? "running" : active === null ? "live" : active ? "busy" : "idle");

/** The variables of a session, as a cell of the client's own tells them. Code of the session can forge it.
 *
 * `hidden` has the lengths of the values that are hidden, by their names: a reload of the page forgets the secrets themselves.
 */
export function showVariables(holder, told, hidden) {
  const rows = Array.isArray(told) ? told.filter((one) => typeof one?.name === "string") : [];
  if (!rows.length) {
    holder.replaceChildren(element("p", { class: "empty" }, Array.isArray(told) ? "No variables yet." : "They cannot be read: reset the session."));
    return;
  }
  const head = element("tr", {}, ...["Name", "Type", "Value"].map((text) => element("th", { scope: "col" }, text)));
  holder.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows.slice(0, MOST).map((row) => variableRow(row, hidden)))));
}

function variableRow({ name, type, shape, size: bytes, text }, hidden) {
  if (text && isSecret(String(text))) hidden.set(name, String(text).length);
  const isHidden = text && hidden.get(name) === String(text).length;
  const value = text ? (isHidden ? "••••" : String(text)) : [Array.isArray(shape) ? shape.join(" × ") : "", bytes >= SHOWN_SIZE ? size(Number(bytes)) : ""].filter(Boolean).join(", ");
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(type)), element("td", { class: "worth", title: value }, value));
}

/** The packages that were installed in a session, beside those that each session has. */
export async function listPackages(session) {
  return (await asked("GET", "session/packages", { session })).packages;
}

/** Shows them. */
export function showPackages(holder, packages) {
  const rows = packages.slice(0, MOST).map(({ name, version }) =>
    element("li", { class: "row" }, element("span", { class: "name" }, name), element("span", { class: "facts" }, version)),
  );
  const none = element("p", { class: "empty" }, "None installed yet.");
  holder.replaceChildren(rows.length ? element("ul", { class: "plain" }, ...rows) : none);
}

/** What the network of a session refused. */
export async function listRefused(session) {
  return (await asked("GET", "session/network", { session })).refused;
}

/** Shows it, if there is something. Hosts and methods are the choice of code. */
export function showRefused(panel, holder, refused) {
  const rows = refused.map(({ host, port, method, reason, count, latest }) => {
    const name = host ? [method && shownName(method), `${shownName(host)}:${port}`].filter(Boolean).join(" ") : "A request that could not be read";
    const times = count === 1 ? "" : `${count} times, latest `;
    return element("li", { class: "row" }, element("span", { class: "name" }, name), element("span", { class: "facts" }, `${WHY[reason] ?? reason}, ${times}${new Date(latest).toLocaleTimeString()}`));
  });
  panel.hidden = rows.length === 0;
  holder.replaceChildren(element("ul", { class: "plain" }, ...rows));
}

/** The saved sessions, by their identifiers. */
export async function listSaved() {
  return new Map((await asked("GET", "savedSessions")).value.map((one) => [one.session_id, one]));
}

/** Delete the saves of a session. */
export const forgetSaved = (session) => request("DELETE", "session/save", { session });

/** Shows those that are not live, the latest first. */
export function showSaved(holder, saved, { open, forget }) {
  const rows = saved.slice(0, MOST).map((one) => [one.session_id + one.created, () => savedItem(one, open, forget)]);
  if (rows.length) showList(holder, rows);
  else holder.replaceChildren(element("p", { class: "empty" }, "None that is not live. A session is saved when it expires or the server stops."));
}

function savedItem(one, open, forget) {
  const name = wordsOf(one.session_id);
  const when = new Date(one.created).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return element(
    "li",
    { class: "row" },
    button(name, () => open(one.session_id), { class: "link", title: "Its next cell goes on from there" }),
    element("span", { class: "facts" }, `${when} · ${size(one.size)}`),
    button("Forget", (made) => forget(one.session_id, made), { sure: "Forget it", class: "quiet", "aria-label": `Delete the saves of ${name}` }),
  );
}

/** What a session can go back to, the latest first; or why it cannot. */
export function showCheckpoints(holder, session, checkpoints, { whyNot, goBack, drop }) {
  if (!checkpoints.length) {
    holder.replaceChildren(element("p", { class: "empty" }, whyNot || "None yet. A checkpoint keeps variables and files, to go back to."));
    return;
  }
  showList(holder, [...checkpoints].reverse().map((one) => [JSON.stringify([session, one.id]), () => checkpointItem(one, goBack, drop)]));
}

function checkpointItem(one, goBack, drop) {
  const taken = new Date(one.created).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return element(
    "li",
    { class: "row" },
    element("span", { class: "name" }, called(one)),
    element("span", { class: "facts" }, `${taken} · ${size(one.size)} of files`),
    button("Go back", (made) => goBack(one.id, made), { sure: "Go back now", class: "quiet", "aria-label": `Go back to checkpoint ${called(one)}` }),
    button("Drop", (made) => drop(one.id, made), { class: "quiet", "aria-label": `Drop checkpoint ${called(one)}` }),
  );
}
