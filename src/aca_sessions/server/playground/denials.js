/** Show the requests of a cell that the rules of its session's network refuse, and let a person decide about them. */

import { button, element, shownName } from "./dom.js";

const LONGEST_SHOWN = 300; // characters of a text that code chose
const MOST_SHOWN = 50; // of one cell; the oldest are removed
const UNTIL_CLICKS = 500; // milliseconds: code chooses when a question appears, and must not catch a click on something else
const TOLD = { once: "Allowed once", always: "Allowed from now on", refuse: "Refused" };

/** The denials of one cell. They are not part of its output, which code can clear. */
export class Denials {
  constructor() {
    this.element = element("ul", { class: "denials plain", "aria-label": "Requests that the network rules refuse" });
    this.open = new Map(); // denials, by the numbers of their questions
    this.events = []; // to show them again
  }

  /** Show an event if it is about a denial, and return whether it is. `answer` sends a reply to a question, or is null if the question has one. */
  show(event, answer) {
    if (event.kind === "network") this.ask(event, answer);
    else if (event.kind === "decision") this.tell(event.number, event.text);
    else return false;
    this.events = [...this.events, event].slice(-2 * MOST_SHOWN);
    return true;
  }

  /** Remove the buttons, because the cell has ended. */
  end() {
    for (const number of [...this.open.keys()]) this.tell(number, "refuse");
  }

  ask({ number, text }, answer) {
    const denial = parsed(text);
    const buttons = [
      ["Allow once", "once"],
      ["Allow from now on", "always"],
      ["Refuse", null],
    ].map(([label, reply]) => button(label, () => this.reply(number, reply, answer), { disabled: true }));
    setTimeout(() => buttons.forEach((one) => (one.disabled = false)), UNTIL_CLICKS);
    const lines = [`The network rules do not allow it to ${described(denial)}.`, `They allow: ${shortened(String(denial.allowed))}.`, consequence(denial)];
    const item = element("li", { class: "denial", role: answer ? "group" : undefined }, ...lines.map((line) => element("p", {}, line)));
    if (answer) item.append(element("div", { class: "choices" }, ...buttons));
    this.open.set(number, { item, denial });
    this.element.append(item);
    while (this.element.childElementCount > MOST_SHOWN) this.element.firstElementChild.remove();
    if (answer) item.scrollIntoView({ block: "nearest" });
  }

  /** Send a decision. An event of the server then has the decision that counts: another client may have been first. */
  reply(number, text, answer) {
    this.open.get(number)?.item.querySelectorAll("button").forEach((one) => (one.disabled = true));
    answer(number, text);
  }

  tell(number, decision) {
    const { item, denial } = this.open.get(number) ?? {};
    this.open.delete(number);
    item?.replaceChildren(`${TOLD[decision] ?? TOLD.refuse}: ${described(denial)}.`);
    item?.removeAttribute("role");
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { host: "?", port: 0, method: null, path: null, allowed: "?", headers: [] };
  }
}

/** Describe what the code wants to do. It chose host, method and path, so unusual characters in them are escaped. */
function described({ host, port, method, path }) {
  const where = `${shownName(shortened(String(host)))}, port ${Number(port)}`;
  return method ? `send a ${shownName(shortened(method))} request to ${where}, path ${shownName(shortened(path ?? ""))}` : `connect to ${where}`;
}

/** Describe what the request can do if a person allows it. */
function consequence({ method, headers }) {
  if (headers.length) return `If you allow it, the server sends these headers with it: ${headers.map(String).join(", ")}.`;
  return method ? "The server sends no headers of its own with it." : "If you allow it, the code can send anything there. The server sends no headers of its own with it.";
}

function shortened(text) {
  const half = LONGEST_SHOWN / 2;
  return text.length <= LONGEST_SHOWN ? text : `${text.slice(0, half)} [${text.length - LONGEST_SHOWN} characters] ${text.slice(-half)}`;
}
