/** One cell on the page: its source, its output while it runs, and its result. */

import { Problem } from "./api.js";
import { button, element, span } from "./dom.js";
import { interrupt, reply } from "./execution.js";
import { highlighted } from "./highlight.js";
import { Output } from "./output.js";
import { verdict } from "./verdict.js";

/** A cell that this page or another client sent. */
export class Cell {
  constructor(session, source, { edit = null, transactional = false } = {}) {
    this.session = session;
    this.id = "";
    this.output = new Output();
    const code = source === null ? "A cell that was started elsewhere" : element("pre", {}, element("code", {}, ...highlighted(source)));
    const again = source !== null && edit ? button("Edit", () => edit(source), { class: "quiet", title: "Put this source into the editor" }) : "";
    const mark = transactional ? element("span", { class: "tag", title: "If it fails, it leaves no trace" }, "transactional") : "";
    this.status = element("p", { class: "running" }, "Waiting …");
    this.element = element(
      "li",
      { class: "cell", "aria-busy": "true" },
      element("div", { class: source === null ? "source elsewhere" : "source" }, code, element("div", { class: "of-cell" }, mark, again)),
      this.output.element,
      this.status,
    );
  }

  /** Show the result of `work`, which passes events to a reader. `looks` returns whether the page is visible. Show refusals of the server as errors. */
  async live(work, looks) {
    const clock = this.startClock();
    const answer = (number, text) => reply(this.session, this.id, number, text);
    try {
      const result = await work({ hear: (event) => this.output.show(event, answer), looks });
      this.output.finish(result);
      this.status.replaceWith(verdict(result));
      return result;
    } catch (problem) {
      const told = problem instanceof Problem ? "The cell was not run" : "This page failed, whatever the cell did";
      this.status.replaceWith(element("p", { class: "verdict bad" }, `${told}: ${problem.message}.`));
      return null;
    } finally {
      clearInterval(clock);
      this.element.removeAttribute("aria-busy");
    }
  }

  /** Interrupts it. */
  interrupt() {
    return interrupt(this.session, this.id);
  }

  startClock() {
    const began = performance.now();
    const tell = () => {
      this.status.textContent = `Running … ${span((performance.now() - began) / 1000)}`;
    };
    return setInterval(tell, 500);
  }
}

/** A line between cells: something else that happened to the session. */
export const notice = (text, mood = "plain") => element("li", { class: `notice ${mood}` }, text);
