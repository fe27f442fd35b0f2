/** What a cell gives, as a notebook shows it: streams, displays, questions, its value or error. */

import { wellFormed } from "./clean.js";
import { byId, element } from "./dom.js";
import { failure } from "./failure.js";
import { framed, layoutOf } from "./frame.js";
import { Terminal, shown } from "./terminal.js";
import { wasRun } from "./verdict.js";

const IMAGES = ["image/png", "image/jpeg", "image/gif"];
const SOURCES = ["text/markdown", "text/latex", "application/json", "application/javascript", "text/plain"];
const MOST_KEPT = 400_000; // characters of a stream that a notebook gets; the oldest go first
const secrets = new Set(); // that were typed in this tab: the panel of variables hides them
const BASE64 = /^[A-Za-z0-9+/=\s]+$/;

/** The output below one cell. `charts` are those of its session. */
export class Output {
  constructor(charts) {
    this.charts = charts;
    this.element = element("div", { class: "output" });
    this.clear();
  }

  /** Shows an event of the running cell; `answer` takes a question's number and text. */
  show(event, answer) {
    if (event.kind === "stdout" || event.kind === "stderr") this.write(event.kind, event.text ?? "");
    else if (event.kind === "display") this.display(event.display, event.name);
    else if (event.kind === "clear") this.clear();
    else if (event.kind === "input") this.ask(event, answer);
    else if (event.kind === "skipped") {
      this.add(element("p", { class: "note" }, event.text));
      this.parts.push({ kind: "skipped", text: event.text });
    }
  }

  /** Show what only the result has: the value and the error, and also the output if no events came. */
  finish(result) {
    this.element.querySelectorAll("form").forEach(removeForm);
    if (this.isEmpty) {
      if (result.stdout) this.write("stdout", result.stdout);
      result.displays.forEach((data) => this.display(data, null));
    }
    if (result.warnings) this.write("stderr", result.warnings);
    if (result.text && result.text !== result.displays.at(-1)?.["text/plain"]) {
      this.add(shown(result.text, "value"));
      this.parts.push({ kind: "value", text: result.text });
    }
    if (result.error) {
      const isSkipped = result.error.name === "NotRun" && !wasRun(result);
      this.add(isSkipped ? element("p", { class: "note" }, "A cell before this one failed. Run it again when that is mended.") : failure(result.error));
      this.parts.push({ kind: "error", error: result.error });
    }
  }

  /** Takes everything back. */
  clear() {
    this.element.replaceChildren();
    this.parts = []; // the same for a notebook
    this.named = new Map();
    this.stream = null;
    this.isEmpty = true;
  }

  write(kind, text) {
    if (this.stream?.kind !== kind) {
      const stream = new Terminal(kind);
      this.add(stream.element);
      this.stream = stream;
    }
    this.stream.write(text);
    this.stream.scrollDown();
    if (this.parts.at(-1)?.kind !== kind) this.parts.push({ kind, text: "" });
    this.parts.at(-1).text = (this.parts.at(-1).text + text).slice(-MOST_KEPT);
  }

  /** A display of a name that came before takes its place. */
  display(data, name) {
    const made = element("div", { class: "display" }, rendered(data, this.charts));
    const earlier = name && this.named.get(name);
    const part = earlier?.part ?? { kind: "display" };
    part.data = data;
    if (earlier) earlier.made.replaceWith(made);
    else {
      this.add(made);
      this.parts.push(part);
    }
    if (name) this.named.set(name, { made, part });
  }

  add(child) {
    this.stream = null;
    this.isEmpty = false;
    this.element.append(child);
  }

  /** Show a question whose answer is not kept. */
  restoreQuestion(event) {
    const prompt = event.password ? (event.text ?? "") : ""; // stdout has the prompt of `input()`
    this.write("stdout", isForSecret(event) ? `${prompt}••••\n` : "\n");
  }

  ask(event, answer) {
    const secret = isForSecret(event);
    const field = element("input", { type: secret ? "password" : "text", autocomplete: "off", "aria-label": event.text || "Input for the cell" });
    const send = (text) => {
      removeForm(form);
      if (secret && text) secrets.add(text);
      if (text !== null && secret) this.restoreQuestion(event);
      else if (text !== null) this.write("stdout", `${text}\n`);
      answer(event.number, text);
    };
    const refuse = element("button", { type: "button", class: "quiet", click: () => send(null), title: "The cell gets an EOFError" }, "Refuse");
    const form = element("form", { class: "ask" }, element("label", {}, event.password && event.text ? event.text : "The cell asks for input"), field, element("button", {}, "Answer"), refuse);
    form.addEventListener("submit", (submitted) => {
      submitted.preventDefault();
      send(field.value);
    });
    const stream = this.stream;
    this.add(form);
    this.stream = stream; // the answer goes on where the prompt ends
    field.focus();
    form.scrollIntoView({ block: "nearest" });
  }
}

const isForSecret = ({ password, text }) => password || /pass(word|phrase)|secret|token|key/i.test(text ?? "");

/** Whether a shown value, such as `'abc'` or a long one as `'abc...xyz'`, is a secret that was typed in this tab. */
export function isSecret(shown) {
  const [begin, end = begin] = shown.slice(1, -1).split("...");
  return [...secrets].some((one) => one === begin || (begin !== end && one.startsWith(begin) && one.endsWith(end)));
}

/** Removes a form. What was typed there goes on in the editor. */
function removeForm(form) {
  const hadFocus = form.contains(document.activeElement);
  form.remove();
  if (hadFocus) byId("source").focus({ preventScroll: true });
}

/** The best of a display's forms. Whatever runs or loads something stays in its frame. */
function rendered(data, charts) {
  const has = (type) => typeof data[type] === "string" && data[type] !== "";
  const image = IMAGES.find((type) => has(type) && BASE64.test(data[type]));
  const text = has("text/plain") ? data["text/plain"] : "";
  if (image) return picture(`data:${image};base64,${data[image].replace(/\s/g, "")}`, text);
  if (has("image/svg+xml")) return picture(`data:image/svg+xml,${encodeURIComponent(wellFormed(data["image/svg+xml"]))}`, text);
  const layout = layoutOf(data);
  if (layout) return framed(layout, charts);
  const source = SOURCES.find(has) ?? Object.keys(data).find(has);
  return shown(source ? data[source] : "", "value");
}

/** An image runs no scripts and loads nothing, SVG included. */
function picture(source, text) {
  const described = text.startsWith("<") ? "Image that the cell displayed" : text;
  return element("img", { src: source, alt: described });
}
