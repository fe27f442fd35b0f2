/** One session as this page knows it: its cells on the page, what runs, and what it can go back to. */

import { Problem, asked, moveTo, offers, request, since } from "./api.js";
import { Cell, WAITING, notice } from "./cell.js";
import { Charts } from "./chart.js";
import { button, element, shownName, size } from "./dom.js";
import { follow, interrupt, ownCell, ownId, resultOf, run } from "./execution.js";
import { wordsOf } from "./names.js";
import { told } from "./verdict.js";

const INSTALL_TIMEOUT = 600; // seconds
const PIP_INSTALL = /^[%!] *(?:python[\d.]* +-m +)?pip3? +install +([^#\n]*)/gm;
const OPTION = /^(?:-[qU]+|--quiet|--upgrade)$/; // nothing to do for a new package: the server installs the newest that fits
const UPGRADE = /(?<= )(?:-U|--upgrade)(?= |$)/gm;
const REQUIREMENT = /^[a-z0-9][\w.,[\]=<>!~*-]*$/i;
const RESET = "Reset: the variables are gone, the files are kept.";
const BRANCHED = "This session goes on from where another was.";
const taken = (checkpoint) => `Checkpoint ${checkpoint} is taken.`;
const wentBack = (checkpoint) => `Back at checkpoint ${checkpoint}: variables and files are as they were then.`;
// The sentence for an entry of the session's ledger that a caller asked for.
const TOLD = {
  reset: ({ cause }) => cause === "reset" && RESET,
  checkpoint: ({ checkpoint }) => checkpoint && taken(`#${checkpoint}`),
  rolled_back: ({ cause, checkpoint }) => cause === "rollback" && wentBack(`#${checkpoint}`),
  branched: () => BRANCHED, // from a session that this tab does not know
};

/** A session's part of the page. `onChange` hears when a cell began or ended. */
export class Workspace {
  constructor(id, { acts, onChange, given = null, ended = false, kept = [], parent = null, hidden = [] }) {
    this.id = id;
    this.given = given; // the name that a user gave it
    this.isGivenHere = given !== null; // and that the server does not know yet
    this.live = null; // what the server lists of it, or nothing
    this.saved = null; // what the server has saved of it, or nothing
    this.ended = ended; // whether it was live before
    this.isEnding = false; // by this page: its panels must not begin it anew
    this.kept = kept; // its cells, as this tab showed them before a reload
    this.hidden = new Map(hidden); // the lengths of values among the variables that are hidden, by the variables' names
    this.parent = parent; // what it was branched from, or nothing: `{ id, name, cells }`
    this.past = []; // the parent's cells on the page
    this.acts = { ...acts, charts: new Charts(() => this.plotly()) };
    this.onChange = onChange;
    this.list = element("ol", { class: "cells", "aria-label": "Cells" });
    this.nothing = element("p", { class: "empty" });
    this.element = element("div", {}, parent ? this.showParent(parent) : "", this.nothing, this.list);
    this.all = []; // cells on the page
    this.cells = []; // those that run or wait, in their order
    this.known = new Map(); // by their ids
    this.numbers = new Map(); // own cells by their numbers in the server's history, after `seen`
    this.seen = 0; // how far this page knows that history
    this.between = []; // entries of the ledger that are to be told
    this.isFollowed = false; // whether this page knows the ledger by its own results
    this.gone = 0; // cells that the server does not keep any more
    this.checkpoints = [];
    this.completion = null; // the id of one that is on its way
    this.sending = null; // done when the latest cell, and the packages that it installs, have reached the server
    this.explain();
  }

  /** What people call it. */
  get name() {
    return this.given ?? wordsOf(this.id);
  }

  /** Whether the server has it, as far as is known. */
  get begun() {
    return !this.isEnding && (this.live !== null || this.cells.length > 0);
  }

  /** Run a cell. Return its result, or null if the server refused it. */
  async run(source, transactional) {
    this.dropCompletion();
    const cell = new Cell(this.id, source, { acts: this.acts, transactional });
    const onStarted = (id) => this.startedAs(cell, id);
    const [hasInstallation, before] = [offers("packages") && source.search(PIP_INSTALL) >= 0, this.sending];
    let sent = () => {};
    this.sending = new Promise((resolve) => (sent = resolve)); // a browser may send the later of two requests first
    const onNumbered = (number) => {
      this.numbered(cell, number);
      sent();
    };
    return this.shown(cell, async (reader) => {
      try {
        await before;
        if (cell.isInterrupted) throw new Problem(0, "Interrupted", "it was interrupted before it was sent");
        const wanted = hasInstallation ? requirementsOf(source) : [];
        if (wanted.length) await this.installFor(cell, wanted);
        const sendable = wanted.length ? source.replace(PIP_INSTALL, (line) => line.replace(UPGRADE, "")) : source; // it is the newest
        return await run(this.id, sendable, { transactional, reader, onStarted, onNumbered });
      } finally {
        sent();
      }
    });
  }

  /** Takes in what the server lists of the session: nothing, if it is not live. */
  update(live) {
    if (live && live.created !== this.live?.created) this.beginLife(live);
    this.ended = !live && (this.ended || this.live !== null);
    this.live = live;
    if (!live) {
      this.checkpoints = [];
      this.showKept();
    }
    if (live && !this.isGivenHere) this.given = live.given;
    this.explain();
  }

  /** The server has nothing of a session that ended: its cells come from this tab. */
  showKept() {
    if (this.all.length || !this.kept.length) return;
    for (const { id, source, events = [], result = null, ledger, undone } of this.kept.splice(0)) {
      const cell = this.added(new Cell(this.id, source, { acts: this.acts }), id);
      cell.restore(events, result);
      if (undone) cell.markUndone(undone);
      if (ledger) moveTo(this.id, ledger.id, ledger.end);
    }
    this.tell(this.saved ? this.tellSave() : "This session has ended, with its variables and files. The next cell begins it anew.", "warn");
  }

  /** The cells of the session from which this one was branched, up to then. */
  showParent({ id, name, cells }) {
    this.past = cells.map(({ source, events = [], result = null, undone }) => {
      const cell = new Cell(this.id, source, { acts: this.acts });
      cell.restore(events, result);
      if (undone) cell.markUndone(undone);
      return cell;
    });
    const link = button(name, () => this.acts.open(id), { class: "link" });
    return element("ol", { class: "cells past", "aria-label": `Cells of ${name}` }, ...this.past.map(({ element }) => element), notice("Branched here from ", "plain", link));
  }

  added(cell, id) {
    this.startedAs(cell, id);
    this.all.push(cell);
    this.list.append(cell.element);
    this.settle(cell);
    return cell;
  }

  /** What this tab keeps of it. */
  keep(most) {
    const parent = this.parent && { ...this.parent, cells: this.past.map((cell) => cell.keep(most)) };
    return { given: this.given, cells: this.all.length ? this.all.map((cell) => cell.keep(most)) : this.kept, parent, hidden: [...this.hidden] };
  }

  /** Another life under the same identifier has a history of its own, and no name yet. */
  beginLife(live) {
    [this.seen, this.gone] = [0, 0];
    this.numbers.clear();
    this.isGivenHere = this.given !== null && live.given === null;
  }

  /** Shows the cells that the server has and this page does not: those of before, and of other clients. */
  async catchUp() {
    if (this.isCatchingUp || !offers("history")) return;
    this.isCatchingUp = true;
    try {
      while (this.live && this.seen < this.live.cells) {
        const { created } = this.live;
        const page = await asked("GET", "session/history", { session: this.id, query: { after: this.seen } });
        if (this.live?.created !== created) continue;
        this.seen = page.cells.at(-1)?.number ?? page.accepted;
        this.gone = page.gone;
        this.take(page);
      }
    } catch (problem) {
      if (problem.status !== 400) throw problem; // 400: the session has ended meanwhile
    } finally {
      this.isCatchingUp = false;
      this.explain();
    }
  }

  /** Restart its cool-down, if this tab shows it or ran cells in it. */
  async keepUp(isShown) {
    if (!this.live?.cooldown || !(isShown || this.all.length) || this.live.idle < this.live.cooldown / 3 || !offers("history")) return;
    await asked("GET", "session/history", { session: this.id, query: { after: this.seen } });
  }

  /** A page of the history; with what happened between its cells, where the page shows nothing yet. */
  take({ cells, ledger, questions, accepted }) {
    if (this.list.childElementCount === 0) this.between = ledger.entries.filter((entry) => TOLD[entry.kind]?.(entry) && !(this.parent && entry.kind === "branched"));
    let last = 0;
    for (const past of cells) {
      const known = this.known.get(past.execution.id);
      if (known) {
        this.settle(known);
        continue;
      }
      const { start = Infinity, end = Infinity } = past.execution.acaSessions?.ledger ?? {};
      last = Math.max(last, this.tellUntil(start), end < Infinity ? end : 0);
      while (this.between[0]?.position <= end) this.between.shift(); // what happened in the cell is in its result
      this.takeCell(past, questions);
    }
    this.markUndone(ledger.entries);
    if (this.seen >= accepted) last = Math.max(last, this.tellUntil(Infinity));
    if (last && !this.isFollowed) moveTo(this.id, ledger.id, last);
    this.isFollowed ||= this.seen >= accepted;
  }

  /** Mark the cells that rollbacks among the entries of the ledger undid: those between the checkpoint and the rollback. */
  markUndone(entries) {
    for (const { variables, to, position, checkpoint } of entries.filter((one) => one.variables === "rolled_back")) {
      const why = checkpoint ? `Undone by going back to checkpoint #${checkpoint}` : "Undone by a cell that failed";
      for (const cell of this.all) {
        const end = cell.result?.ledger?.end;
        if (end > to && end < position) cell.markUndone(why);
      }
    }
  }

  /** Tells what happened up to a position of the ledger, and returns the position of the last of it. */
  tellUntil(position) {
    let latest = 0;
    while (this.between[0]?.position <= position) {
      const entry = this.between.shift();
      this.tell(TOLD[entry.kind](entry), entry.kind === "rolled_back" ? "warn" : "plain");
      latest = entry.position;
    }
    return latest;
  }

  takeCell(past, questions) {
    const cell = new Cell(this.id, past.code, { acts: this.acts, transactional: past.transactional });
    const { id } = past.execution;
    if (past.execution.acaSessions) {
      const result = resultOf(past.execution, past.interrupted);
      const { state = result.state, events = past.events } = this.kept.find((one) => one.id === id) ?? {}; // as this tab showed it, with answers
      this.added(cell, id).restore(events, { ...result, state });
    } else {
      this.startedAs(cell, id);
      cell.questions = questions;
      const { isFollowed } = this; // a cell that runs has no position yet
      this.shown(cell, (reader) => follow(this.id, cell.id, reader));
      this.settle(cell);
      this.isFollowed = isFollowed;
    }
  }

  startedAs(cell, id) {
    cell.id = id;
    this.known.set(id, cell);
  }

  /** An own cell has its place in the history: what is before it was of others. */
  numbered(cell, number) {
    cell.isNumbered = number > 0;
    if (cell.isNumbered) this.numbers.set(number, cell);
    for (let next; (next = this.numbers.get(this.seen + 1)); this.seen += 1) {
      this.numbers.delete(this.seen + 1);
      next.isSettled = true;
    }
  }

  /** Move a cell that follows the settled ones in the server's history to its place: before own cells that were accepted later. */
  settle(cell) {
    if (cell.isSettled) return;
    cell.isSettled = true;
    for (const list of [this.all, this.cells]) {
      const [from, to] = [list.indexOf(cell), list.findIndex((one) => !one.isSettled)];
      if (to < 0 || to > from) continue;
      if (list === this.all) list[to].element.before(cell.element);
      list.splice(to, 0, ...list.splice(from, 1));
    }
  }

  async shown(cell, work) {
    this.isFollowed = true;
    this.cells.push(cell);
    this.all.push(cell);
    this.list.append(cell.element);
    this.explain();
    this.onChange(this, null);
    const looks = () => this.cells[0] === cell && this.element.isConnected && !document.hidden;
    const result = await cell.live(work, looks);
    this.markUndone(result?.ledger?.entries ?? []);
    this.cells.splice(this.cells.indexOf(cell), 1);
    cell.isSettled ||= !cell.isNumbered; // it was refused, or the server keeps no history
    this.onChange(this, result);
    return result;
  }

  /** A line between the cells. */
  tell(text, mood, ...more) {
    this.list.append(notice(text, mood, ...more));
    this.explain();
  }

  /** What stands in the place of cells, if there are none. A live session is never said to have run nothing: others may have used it. */
  explain() {
    const kept = this.live?.cells === 0 ? "No cell was sent to it yet." : "What ran in it before is not kept by this server.";
    const known = this.live?.cells > this.seen ? "Its cells are being loaded." : kept;
    const ended = this.ended ? "This session has ended. The next cell begins it anew." : "Nothing has run yet. Write Python below: the session begins with its first cell.";
    const absent = this.saved ? this.tellSave() : ended;
    const leftOut = `${this.gone === 1 ? "One cell is" : `${this.gone} cells are`} not shown: the server keeps the latest, and drops large ones first.`;
    if (this.list.childElementCount === 0 && this.parent) this.nothing.textContent = "";
    else if (this.list.childElementCount === 0) this.nothing.textContent = this.live ? `This session is live. ${known}` : absent;
    else this.nothing.textContent = this.gone ? leftOut : "";
  }

  tellSave() {
    return `This session was saved ${new Date(this.saved.created).toLocaleString()}. Its next cell goes on from there: ${counted(this.saved.variables, "variable")} and its files.`;
  }

  /** Runs a cell of the page's own and returns its answer. A loss that it detects is reported with the user's next cell. */
  async asked(name, ...values) {
    const [answer] = await ownCell(this.id, ownId(), name, ...values);
    return answer;
  }

  /** Return the script of plotly that the session has. */
  async plotly() {
    if (!this.live) throw new Error("the session has ended, and plotly with it: run the cell again");
    const [, { displays }] = await ownCell(this.id, ownId(), "plotly_script");
    if (!displays.length) throw new Error("the session has no plotly now: install it");
    return displays[0]["text/plain"];
  }

  /** Return the completions of a text. The latest request counts; those before it are dropped. */
  async complete(text, cursor) {
    this.dropCompletion();
    const id = (this.completion = ownId());
    const [answer] = await ownCell(this.id, id, "complete", text, cursor);
    if (this.completion === id) this.completion = null;
    return answer;
  }

  /** Interrupt a completion that is on its way, because cells wait for it. */
  dropCompletion() {
    const id = this.completion;
    this.completion = null;
    if (id && offers("interrupt")) interrupt(this.id, id).catch(() => {}); // it may have ended, or not arrived
  }

  /** Installs packages, between cells. */
  async install(requirements) {
    this.tell(await this.requestPackages(requirements));
  }

  /** Have the server install packages, and return a sentence about it. */
  async requestPackages(requirements) {
    const json = { requirements, timeout: INSTALL_TIMEOUT };
    const { error, stdout } = (await asked("POST", "session/packages", { session: this.id, json })).acaSessions;
    if (error) throw new Problem(200, "NotInstalled", `not installed: ${error.message}`);
    const names = requirements.map((one) => (REQUIREMENT.test(one) ? one : shownName(one))).join(", ");
    const isThere = stdout.split("\n")[0].endsWith(" is there already"); // the first line is the server's
    return isThere ? `There already, and left as it is: ${names}. For another version, write NAME==VERSION.` : `Installed: ${names}.`;
  }

  /** Install what the `%pip install` of a cell names, because the cell itself cannot. Then its pip finds that all of it is there. */
  async installFor(cell, requirements) {
    cell.status.textContent = `Installing ${requirements.join(", ")} …`;
    cell.element.before(notice(await this.requestPackages(requirements)));
    if (cell.isInterrupted) throw new Problem(0, "Interrupted", "it was interrupted while packages were installed");
    cell.status.textContent = WAITING;
  }

  /** Gives it another name, or takes the name away. One that is not live yet gets it when it begins. */
  async rename(name) {
    if (this.live) this.given = (await asked("PUT", "session/name", { session: this.id, json: { name: name || null } })).name;
    else [this.given, this.isGivenHere] = [name || null, Boolean(name)];
  }

  /** Tells the server the name that the session was given before it began. */
  async giveName() {
    if (!this.isGivenHere || !this.live || !offers("names")) return;
    this.isGivenHere = false;
    if (this.live.given === null) await this.rename(this.given);
  }

  /** Begins anew, with the files as they are; where the endpoint has no reset, by a cell that clears the variables. */
  async reset(canReset) {
    if (canReset) {
      const entry = await asked("POST", "session/reset", { session: this.id });
      moveTo(this.id, entry.ledger, entry.position);
    } else await this.asked("reset");
    this.checkpoints = [];
    this.tell(RESET);
  }

  /** Writes the session to the server's store. */
  async save() {
    this.dropCompletion();
    const saved = await asked("POST", "session/save", { session: this.id, headers: since(this.id) });
    const lost = Object.entries(saved.lost).map(([name, why]) => `${name} (${why})`);
    this.tell(`Saved: ${counted(saved.variables, "variable")} and the files, ${size(saved.size)}.${lost.length ? ` Not saved: ${lost.join(", ")}.` : ""}`);
  }

  /** Keeps the session as it is now. */
  async checkpoint() {
    this.dropCompletion();
    const kept = await asked("POST", "session/checkpoints", { session: this.id, json: { name: null }, headers: since(this.id) });
    if (kept.state.kind !== "kept") this.tell(told(kept.state), "bad");
    moveTo(this.id, kept.ledger.id, kept.ledger.end);
    const left = kept.leftBehind.length ? ` Left behind: ${kept.leftBehind.join(", ")}.` : "";
    this.tell(taken(called(kept)) + left);
    await this.loadCheckpoints();
  }

  /** Goes back to a checkpoint, or to the latest; one that is used up is dropped. */
  async rollBack(id, { usedUp = false } = {}) {
    const reached = await asked("POST", "session/rollback", { session: this.id, json: { id } });
    moveTo(this.id, reached.ledger, reached.position);
    if (usedUp) await this.drop(reached.id);
    this.tell(wentBack(called(reached)), "warn");
    if (offers("history")) this.markUndone((await asked("GET", "session/history", { session: this.id, query: { after: this.seen } })).ledger.entries);
    await this.loadCheckpoints();
  }

  /** Lets go of a checkpoint. */
  async drop(id) {
    await request("DELETE", `session/checkpoints/${encodeURIComponent(id)}`, { session: this.id });
    await this.loadCheckpoints();
  }

  /** Another session that goes on from here. */
  async branch(id) {
    await request("POST", "session/branches", { session: this.id, json: { identifiers: [id], reseed: true } });
  }

  /** Learns what it can go back to. */
  async loadCheckpoints() {
    this.checkpoints = (await asked("GET", "session/checkpoints", { session: this.id })).value;
  }
}

/** The requirements that the `%pip install` lines of a cell name; none if one of them has a path, which the server does not take. */
function requirementsOf(source) {
  const words = [...source.matchAll(PIP_INSTALL)].flatMap(([, named]) => named.trim().split(/ +/));
  const wanted = words.map((word) => word.replace(/^(["'])(.*)\1$/, "$2")).filter((word) => word && !OPTION.test(word));
  const option = wanted.find((word) => word.startsWith("-"));
  if (option) throw new Problem(0, "NotInstalled", `%pip install takes names here, and the options -q and -U, but not ${shownName(option)}`);
  return wanted.every((word) => REQUIREMENT.test(word)) ? wanted : [];
}

const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** A checkpoint's name, or its number. */
export const called = (checkpoint) => checkpoint.name ?? `#${checkpoint.id}`;
