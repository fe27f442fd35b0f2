/** One cell on the page: its source, its output while it runs, and its result. */

import { Problem, offers } from "./api.js";
import { slim } from "./chart.js";
import { button, element, span } from "./dom.js";
import { interrupt, reply } from "./execution.js";
import { highlighted } from "./highlight.js";
import { Denials } from "./denials.js";
import { Output } from "./output.js";
import { verdict } from "./verdict.js";

/** The status of a cell that has not begun. */
export const WAITING = "Waiting …";

const PIP = /^\s*[%!]\s*(?:python\d?\s+-m\s+)?pip\b/m;
// As in hints.py: messages of C libraries, of Python's HTTP clients behind the proxy of allowed domains, of curl and of git.
const NO_NETWORK =
  /[Nn]ame resolution|Name or service not known|No address associated with hostname|Network is unreachable|[Cc]ould not resolve|getaddrinfo failed|Tunnel connection failed: 403|ProxyError|CONNECT tunnel failed, response 403|by this session's network rules/;
const NO_MODULE = /^ModuleNotFoundError: No module named '(\w+)'/; // a part of a package that is there has a dot in its name
const PACKAGES = { PIL: "pillow", bs4: "beautifulsoup4", cv2: "opencv-python-headless", dateutil: "python-dateutil", dotenv: "python-dotenv", fitz: "pymupdf", skimage: "scikit-image", sklearn: "scikit-learn", yaml: "pyyaml" };
const NO_MEMORY = /^[\w.]*MemoryError(?::|$)/;
const LOOKED_AT = 10_000; // characters at the end of each stream
const MOST_DOMAINS = 5;
const NOT_KEPT = "Its output is not kept.";
const UNTIL_END = 3000; // milliseconds after an interrupt, until another one may end the interpreter
let network = ""; // what sessions can reach, in words, if that may be why a cell failed

/** Return in words what sessions can reach: `none`, `host`, or some domains. A hint below a cell that lacks it names it. */
export function learnNetwork([first, ...others]) {
  if (first === "host") return "network of the host";
  const more = others.length < MOST_DOMAINS ? "" : ` and ${others.length + 1 - MOST_DOMAINS} more`;
  network = first === "none" ? "no network" : `a network of ${[first, ...others].slice(0, MOST_DOMAINS).join(", ")}${more}, by HTTP and HTTPS`;
  return network;
}

const PIP_FAILED = /^ERROR: |cannot install packages/m;

/** A cell that this page or another client sent. */
export class Cell {
  constructor(session, source, { acts, transactional = false }) {
    this.session = session;
    this.source = source;
    this.acts = acts;
    this.id = "";
    this.isNumbered = false; // whether it has a number in the server's history
    this.isSettled = false; // whether it is known which cells are before it there
    this.result = null;
    this.questions = { latest: 0, open: [] }; // those that were asked before this page followed the cell
    this.output = new Output(acts.charts);
    this.denials = new Denials();
    const code = element("pre", {}, element("code", {}, ...highlighted(source)));
    this.number = element("span", { class: "number", title: "The number by which tracebacks name this cell" });
    const again = button("Run again", () => acts.run(source), { class: "quiet", title: "Run this source as a new cell" });
    const edit = button("Edit", () => acts.edit(source), { class: "quiet", title: "Put this source into the editor" });
    this.undone = element("span", { class: "tag", hidden: true }, "undone");
    const mark = transactional ? element("span", { class: "tag", title: "If it fails, it leaves no trace" }, "transactional") : "";
    this.status = element("p", { class: "running" }, WAITING);
    this.stop = offers("interrupt") ? button("Interrupt", () => this.interrupt(), { class: "quiet", title: "Raise KeyboardInterrupt in this cell" }) : "";
    this.isInterrupted = this.mayEnd = false;
    this.isUndone = ""; // why, if a rollback undid it
    this.began = null; // when it began to run, by this page's clock
    this.element = element(
      "li",
      { class: "cell", "aria-busy": "true" },
      element("div", { class: "source" }, this.number, code, element("div", { class: "of-cell" }, this.undone, mark, again, edit)),
      this.output.element,
      this.denials.element,
      element("div", { class: "ending" }, this.status, this.stop),
    );
  }

  /** Show the result of `work`, which passes events to a reader. `looks` returns whether the page is visible. Show refusals of the server as errors. */
  async live(work, looks) {
    const clock = this.startClock();
    try {
      return this.end(await work({ hear: (event) => this.hear(event), begin: (seconds) => this.begin(seconds), looks }));
    } catch (problem) {
      const told = problem instanceof Problem ? "The cell was not run" : "This page failed, whatever the cell did";
      this.status.replaceWith(element("p", { class: "verdict bad" }, `${told}: ${problem.message.replace(/\.$/, "")}.`));
      return null;
    } finally {
      clearInterval(clock);
      this.settleDown();
    }
  }

  /** Show a cell that has ended before. Without a result, show that it is not kept. */
  restore(events, result) {
    for (const event of events) {
      if (event.kind === "input") this.output.restoreQuestion(event);
      else this.denials.show(event, null) || this.output.show(event, null);
    }
    if (result) this.end(result);
    else {
      this.output.parts.push({ kind: "skipped", text: NOT_KEPT }); // for a notebook
      this.status.replaceWith(element("p", { class: "verdict" }, NOT_KEPT));
    }
    this.settleDown();
  }

  /** Nothing of it can be interrupted any more. */
  settleDown() {
    this.element.removeAttribute("aria-busy");
    this.denials.end();
    if (this.stop) this.stop.remove();
  }

  /** Show that a rollback undid what it did to the variables. */
  markUndone(why) {
    this.isUndone = why;
    this.element.classList.add("undone");
    this.undone.hidden = false;
    this.undone.title = why;
  }

  /** What `restore` needs to show it after a reload. Outputs of more than `most` characters are left out. */
  keep(most) {
    const { id, source, result } = this;
    const events = this.output.parts.map(({ kind, text, data }) => ({ kind, text, display: data && slim(data), name: null }));
    events.push(...this.denials.events);
    const shown = result && { events, result: { ...result, stdout: "", displays: result.displays.slice(-1).map(slim) } };
    const fits = JSON.stringify(shown).length <= most;
    return { id, source, undone: this.isUndone, state: result?.state, ledger: result?.ledger && { id: result.ledger.id, end: result.ledger.end }, ...(fits ? shown : {}) };
  }

  hear(event) {
    const isAnswered = event.number <= this.questions.latest && !this.questions.open.includes(event.number);
    const answer = (number, text) => reply(this.session, this.id, number, text);
    if (this.denials.show(event, isAnswered ? null : answer)) return;
    if (event.kind === "input" && isAnswered) this.output.restoreQuestion(event);
    else this.output.show(event, answer);
  }

  end(result) {
    this.result = result;
    this.output.finish(result);
    if (result.count) this.number.textContent = `[${result.count}]`;
    const [, missing] = (result.error?.title ?? "").match(NO_MODULE) ?? [];
    const isRefused = PIP.test(this.source) && offers("packages") && this.wrote(/cannot install packages/);
    if (missing && offers("packages")) this.offerPackage(PACKAGES[missing] ?? missing);
    else if (isRefused) this.output.add(element("p", { class: "note" }, "On this page, install packages in the panel Packages, then run the cell again."));
    else if (network && this.lacksNetwork(result)) {
      this.output.add(element("p", { class: "note" }, `Sessions of this server have ${network}. Files can be uploaded in the panel Files.`));
    }
    else if (NO_MEMORY.test(result.error?.title ?? "")) {
      this.output.add(element("p", { class: "note" }, "The session's limit of memory was reached. Work on smaller parts of the data, or delete variables with del."));
    }
    this.status.replaceWith(verdict(result, { failed: this.whyNotGood(result) }));
    return result;
  }

  offerPackage(name) {
    const label = `Install ${name}`;
    const act = async (made) => {
      [made.disabled, made.textContent] = [true, "Installing …"];
      const isDone = await this.acts.install([name], made);
      [made.disabled, made.textContent] = [false, label];
      if (isDone) note.replaceChildren(`${name} is installed now. `, button("Run again", () => this.acts.run(this.source), { class: "link" }));
    };
    const install = button(label, act, { class: "link", title: "From the server's index of packages, into this session: for packages that you trust" });
    const note = element("p", { class: "note" }, "This module is not installed. ", install);
    this.output.add(note);
  }

  /** A cell goes on after a `%pip` that failed, unless that is its last line: so only its output tells. */
  whyNotGood(result) {
    const failed = PIP.test(this.source) && this.wrote(PIP_FAILED);
    return failed && !result.error ? "pip failed" : "";
  }

  /** Programs catch errors and print them: so output is searched, too. */
  lacksNetwork({ error }) {
    return [error?.title, ...this.output.parts.map(({ text }) => text?.slice(-LOOKED_AT))].some((text) => NO_NETWORK.test(text ?? ""));
  }

  wrote(pattern) {
    return this.output.parts.some(({ kind, text }) => kind === "stderr" && pattern.test(text));
  }

  /** Interrupts it, also if it waits for others. If its code does not react, the next interrupt ends the interpreter. */
  async interrupt() {
    this.isInterrupted = true;
    if (!this.id) return;
    if (this.began === null) this.status.textContent = "Cancelled: it will not run.";
    setTimeout(() => this.offerEnd(), UNTIL_END);
    await interrupt(this.session, this.id, { gentle: !this.mayEnd });
  }

  offerEnd() {
    if (!this.element.hasAttribute("aria-busy") || this.began === null || !this.stop) return;
    this.mayEnd = true;
    this.stop.textContent = "End the interpreter";
    this.stop.title = "The code does not react. Ending its interpreter loses the variables, and keeps the files";
  }

  /** The server says how long it has run. */
  begin(seconds) {
    this.began ??= performance.now() - seconds * 1000;
  }

  startClock() {
    const tell = () => {
      if (this.began !== null) this.status.textContent = `Running … ${span((performance.now() - this.began) / 1000)}`;
    };
    return setInterval(tell, 500);
  }
}

/** A line between cells: something else that happened to the session. */
export const notice = (text, mood = "plain", ...more) => element("li", { class: `notice ${mood}` }, text, ...more);
