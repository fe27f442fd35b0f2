/** What a name may be completed to, chosen from a list by keys or mouse. */

import { element } from "./dom.js";

const MOST = 60;

/** The list below an editor's text area; `ask` returns the completions of IPython, and `giveUp` ends a request for them. */
export class Completion {
  constructor(area, list, { ask, giveUp }) {
    this.area = area;
    this.list = list;
    this.ask = ask;
    this.giveUp = giveUp;
    this.turn = 0; // counts requests, so that late answers are ignored
    this.close();
    area.addEventListener("blur", () => this.close());
    area.addEventListener("input", () => this.close());
    list.addEventListener("mousedown", (event) => event.preventDefault()); // the text area keeps the focus
  }

  get isOpen() {
    return this.matches.length > 0;
  }

  /** Asks, and shows what is found; one match alone is taken at once. */
  async open(insert) {
    const turn = (this.turn += 1);
    const [text, cursor] = [this.area.value, this.area.selectionStart];
    this.note("Looking for names …");
    const found = await this.ask(text, [...text.slice(0, cursor)].length);
    if (turn === this.turn) this.close();
    if (turn !== this.turn || this.area.value !== text || this.area.selectionStart !== cursor || !Array.isArray(found?.matches)) return;
    const characters = [...text];
    [this.start, this.end] = [found.start, found.end].map((place) => characters.slice(0, place).join("").length);
    this.matches = found.matches.filter((one) => typeof one === "string").slice(0, MOST);
    this.insert = insert;
    if (this.matches.length === 1) this.take(0);
    else if (this.isOpen) this.show();
    else this.note("No name found.");
  }

  /** Show a line in the place of the list. The next key or click takes it away. */
  note(text) {
    this.list.replaceChildren(element("li", { class: "note" }, text));
    this.list.hidden = false;
  }

  /** Ends a request that is on its way: its answer is not shown. */
  drop() {
    this.turn += 1;
    this.close();
    this.giveUp();
  }

  show() {
    const option = (text, index) =>
      element("li", { role: "option", id: `completion-${index}`, "aria-selected": "false", click: () => this.take(index) }, text);
    this.list.replaceChildren(...this.matches.map(option));
    this.list.hidden = false;
    this.select(0);
  }

  select(index) {
    this.chosen = (index + this.matches.length) % this.matches.length;
    [...this.list.children].forEach((one, place) => one.setAttribute("aria-selected", String(place === this.chosen)));
    this.list.children[this.chosen].scrollIntoView({ block: "nearest" });
    this.area.setAttribute("aria-activedescendant", `completion-${this.chosen}`);
  }

  take(index) {
    const match = this.matches[index];
    this.area.setSelectionRange(this.start, this.end);
    this.close();
    this.insert(match);
  }

  close() {
    this.matches = [];
    this.list.hidden = true;
    this.area.removeAttribute("aria-activedescendant");
  }

  /** What a key does while the list is open. */
  actionOf(event) {
    if (!this.isOpen || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return null;
    const actions = {
      ArrowDown: () => this.select(this.chosen + 1),
      ArrowUp: () => this.select(this.chosen - 1),
      Enter: () => this.take(this.chosen),
      Tab: () => this.take(this.chosen),
      Escape: () => this.close(),
    };
    return actions[event.key] ?? null;
  }
}
