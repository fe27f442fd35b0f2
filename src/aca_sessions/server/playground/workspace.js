/** One session as this page knows it: its cells on the page, what runs, and what it can go back to. */

import { asked, moveTo, request } from "./api.js";
import { Cell, notice } from "./cell.js";
import { element } from "./dom.js";
import { OWN, follow, ownCell, run } from "./execution.js";
import { told } from "./verdict.js";

/** A session's part of the page. `onChange` hears when a cell began or ended. */
export class Workspace {
  constructor(name, { edit, onChange }) {
    this.name = name;
    this.begun = false; // whether the server has it
    this.edit = edit;
    this.onChange = onChange;
    this.element = element("ol", { class: "cells", "aria-label": "Cells" });
    this.cells = []; // those that run or wait, in their order
    this.known = new Set();
    this.suspected = "";
    this.checkpoints = [];
  }

  /** Run a cell. Return its result, or null if the server refused it. */
  async run(source, transactional) {
    const cell = new Cell(this.name, source, { edit: this.edit, transactional });
    const onStarted = (id) => this.startedAs(cell, id);
    return this.shown(cell, (reader) => run(this.name, source, { transactional, reader, onStarted }));
  }

  /** Follow a cell that another client started, once it was seen twice: most end before that. */
  async notice(id, atOnce) {
    if (!id || this.known.has(id) || id.startsWith(OWN)) return;
    if (!atOnce && this.suspected !== id) {
      this.suspected = id;
      return;
    }
    const cell = new Cell(this.name, null);
    this.startedAs(cell, id);
    await this.shown(cell, (reader) => follow(this.name, id, reader));
  }

  startedAs(cell, id) {
    cell.id = id;
    this.known.add(id);
  }

  async shown(cell, work) {
    this.begun = true;
    this.cells.push(cell);
    this.element.append(cell.element);
    this.onChange(this, null);
    const looks = () => this.cells[0] === cell && this.element.isConnected && !document.hidden;
    const result = await cell.live(work, looks);
    this.cells.splice(this.cells.indexOf(cell), 1);
    this.onChange(this, result);
    return result;
  }

  /** A line between the cells. */
  tell(text, mood) {
    this.element.append(notice(text, mood));
  }

  /** Runs a cell of the page's own and returns its answer. A loss that it detects is reported with the user's next cell. */
  async asked(name, ...values) {
    const [answer] = await ownCell(this.name, name, ...values);
    return answer;
  }

  /** Begins anew, with the files as they are; where the endpoint has no reset, by a cell that clears the variables. */
  async reset(canReset) {
    if (canReset) {
      const entry = await asked("POST", "session/reset", { session: this.name });
      moveTo(this.name, entry.ledger, entry.position);
    } else await this.asked("reset");
    this.checkpoints = [];
    this.tell("Reset: the variables are gone, the files are kept.");
  }

  /** Keeps the session as it is now. */
  async checkpoint() {
    const kept = await asked("POST", "session/checkpoints", { session: this.name, json: { name: null } });
    const left = kept.leftBehind.length ? ` Left behind: ${kept.leftBehind.join(", ")}.` : "";
    this.tell(`Checkpoint ${called(kept)} is taken.${left}`);
    await this.loadCheckpoints();
  }

  /** Goes back to a checkpoint, or to the latest; one that is used up is dropped. */
  async rollBack(id, { usedUp = false } = {}) {
    const reached = await asked("POST", "session/rollback", { session: this.name, json: { id } });
    moveTo(this.name, reached.ledger, reached.position);
    if (usedUp) await this.drop(reached.id);
    this.tell(`Back at checkpoint ${called(reached)}: variables and files are as they were then.`, "warn");
    await this.loadCheckpoints();
  }

  /** Lets go of a checkpoint. */
  async drop(id) {
    await request("DELETE", `session/checkpoints/${encodeURIComponent(id)}`, { session: this.name });
    await this.loadCheckpoints();
  }

  /** Another session that goes on from here. */
  async branch(name) {
    await request("POST", "session/branches", { session: this.name, json: { identifiers: [name], reseed: true } });
  }

  /** Learns what it can go back to. */
  async loadCheckpoints() {
    this.checkpoints = (await asked("GET", "session/checkpoints", { session: this.name })).value;
  }
}

/** A checkpoint's name, or its number. */
export const called = (checkpoint) => checkpoint.name ?? `#${checkpoint.id}`;
