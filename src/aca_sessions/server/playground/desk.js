/** What lies open once the key is known: one session at a time, its cells, its tools and its panels. */

import { asked, forgetLife } from "./api.js";
import { Completion } from "./completion.js";
import { byId, button, enable, randomName } from "./dom.js";
import { Editor } from "./editor.js";
import { listFiles, showFiles, takeDrops, upload } from "./files.js";
import { SessionList, endSession, listSessions, showCheckpoints, showVariables } from "./panels.js";
import { stateText } from "./verdict.js";
import { Workspace } from "./workspace.js";

const LOOK_EVERY = 4000; // milliseconds
const PLAIN = "This server has Azure's API and nothing more (serve --plain).";
const WITHOUT_NAMESPACES = "Sessions without namespaces cannot be kept and gone back to.";

/** The page behind the door. */
export class Desk {
  constructor(offers) {
    this.offers = offers;
    this.level = "";
    this.workspaces = new Map();
    const end = (name) => this.doing(() => this.end(name));
    this.sessions = new SessionList(byId("sessions"), { select: (name) => this.select(name), end });
    const completion = new Completion(byId("source"), byId("completions"), (text, cursor) => this.completed(text, cursor));
    this.editor = new Editor(byId("source"), byId("mirror"), completion, (source) => this.run(source));
  }

  /** Shows the sessions, and a new one to begin with. */
  async open() {
    this.connectTools();
    this.connectFiles();
    await this.select(randomName("page-"));
    this.editor.area.focus();
    setInterval(() => document.hidden || this.refreshSessions(), LOOK_EVERY);
    if (this.offers("isolation")) await this.doing(() => this.learnIsolation());
  }

  connectTools() {
    const tools = {
      interrupt: () => this.current.cells[0]?.interrupt(),
      checkpoint: () => this.current.checkpoint(),
      undo: () => this.current.rollBack(null, { usedUp: true }),
      branch: () => this.branch(),
    };
    for (const [id, act] of Object.entries(tools)) byId(id).addEventListener("click", () => this.doing(act));
    const reset = button("Reset", () => this.doing(() => this.current.reset(this.offers("reset"))), { id: "reset", sure: "Really reset" });
    reset.dataset.title = byId("reset").dataset.title;
    byId("reset").replaceWith(reset);
    byId("run").addEventListener("click", () => this.editor.submit());
    byId("new-session").addEventListener("submit", (event) => {
      event.preventDefault();
      this.select(byId("new-name").value.trim() || randomName("page-"));
      byId("new-name").value = "";
      this.editor.area.focus();
    });
    for (const id of ["files-panel", "variables-panel", "checkpoints-panel"]) byId(id).addEventListener("toggle", () => this.refreshPanels());
  }

  connectFiles() {
    const take = (files) => this.doing(() => this.upload(files));
    takeDrops(document.body, take); // wherever: else the browser would leave the page for the file
    byId("upload").addEventListener("change", async (event) => {
      await take([...event.target.files]);
      event.target.value = "";
    });
  }

  /** Do something that may be refused, and show why. Then update the panels. */
  async doing(act) {
    byId("problem").textContent = "";
    try {
      await act();
    } catch (problem) {
      this.fail(problem);
    }
    await this.refresh();
  }

  fail(problem) {
    byId("problem").textContent = problem.status === 401 ? "The server does not take the key any more." : problem.message;
  }

  async run(source) {
    byId("problem").textContent = "";
    await this.current.run(source, byId("transactional").checked && !byId("transactional").disabled);
  }

  /** Return nothing while a cell runs, because the session cannot answer then. */
  async completed(text, cursor) {
    if (this.current.cells.length) return null;
    return this.current.asked("complete", text, cursor).catch((problem) => this.fail(problem));
  }

  async branch() {
    const [from, name] = [this.current, randomName("branch-")];
    await from.branch(name);
    from.tell("A branch goes on from here.");
    await this.select(name);
    this.current.tell("This session goes on from where another was.");
  }

  async upload(files) {
    this.announce(`Uploading ${files.length === 1 ? files[0].name : `${files.length} files`}`);
    for (const file of files) await upload(this.current.name, file);
    this.announce("Uploaded");
  }

  /** Turns to a session, whether the server has it already or not. */
  async select(name) {
    if (!this.workspaces.has(name)) this.workspaces.set(name, this.made(name));
    this.current = this.workspaces.get(name);
    byId("transcript").replaceChildren(this.current.element);
    this.scrollDown();
    await this.refresh(true);
  }

  made(name) {
    const edit = (source) => this.editor.edit(source);
    const made = new Workspace(name, { edit, onChange: (workspace, result) => this.changed(workspace, result) });
    made.refreshPanels = coalesced(() => this.loadPanels(made));
    return made;
  }

  async changed(workspace, result) {
    if (result) this.announce(`The cell has ${result.error ? "failed" : "ended"}. State ${stateText(result.state)}.`);
    if (workspace !== this.current) return;
    this.scrollDown();
    await this.refresh();
  }

  async end(name) {
    await endSession(name);
    forgetLife(name);
    this.workspaces.delete(name);
    if (this.current.name === name) await this.select(randomName("page-"));
  }

  async refresh(atOnce = false) {
    this.showTools();
    await this.refreshSessions(atOnce);
    this.refreshPanels(); // which may wait for a cell to end
    this.showTools();
  }

  async refreshSessions(atOnce = false) {
    const workspace = this.current;
    const sessions = await listSessions().catch((problem) => this.fail(problem));
    if (!sessions || workspace !== this.current) return;
    const own = sessions.find((one) => one.name === workspace.name);
    workspace.begun = Boolean(own) || workspace.cells.length > 0;
    this.sessions.show(sessions, workspace.name, { ended: workspace.known.size > 0 });
    this.showTools();
    workspace.notice(own?.running, atOnce).catch((problem) => this.fail(problem));
  }

  /** Asks nothing of a session that has not begun, and so begins none; of one at work, it waits for the end of the cell. */
  async refreshPanels() {
    const workspace = this.current;
    if (workspace.cells.length === 0) await workspace.refreshPanels();
  }

  async loadPanels(workspace) {
    const told = async (id, load, show) => {
      const found = workspace.begun && byId(id).open ? await load() : [];
      if (workspace === this.current) show(found);
    };
    const lists = [
      told("files-panel", () => listFiles(workspace.name), (files) => this.showFiles(workspace, files)),
      told("variables-panel", () => workspace.asked("variables"), (variables) => showVariables(byId("variables"), variables)),
      told("checkpoints-panel", () => this.whyNoTimeTravel() || workspace.loadCheckpoints(), () => this.showCheckpoints(workspace)),
    ];
    for (const ended of await Promise.allSettled(lists)) if (ended.reason) this.fail(ended.reason);
    if (workspace === this.current) this.showTools();
  }

  showFiles(workspace, files) {
    showFiles(byId("files"), workspace.name, files, { changed: () => this.refresh(), failed: (problem) => this.fail(problem) });
  }

  showCheckpoints(workspace) {
    const goBack = (id) => this.doing(() => workspace.rollBack(id));
    const drop = (id) => this.doing(() => workspace.drop(id));
    showCheckpoints(byId("checkpoints"), workspace.checkpoints, { whyNot: this.whyNoTimeTravel(), goBack, drop });
  }

  /** Enable each tool, or show why it cannot be used. */
  showTools() {
    const { cells, begun, checkpoints } = this.current;
    const noTravel = this.whyNoTimeTravel();
    const notBegun = begun ? "" : "The session begins with its first cell.";
    enable(byId("interrupt"), (this.offers("interrupt") ? "" : PLAIN) || (cells.length ? "" : "No cell runs."));
    enable(byId("reset"), notBegun);
    enable(byId("checkpoint"), noTravel || notBegun);
    enable(byId("undo"), noTravel || (checkpoints.length ? "" : "There is no checkpoint."));
    enable(byId("branch"), noTravel || notBegun);
    enable(byId("transactional"), noTravel);
    byId("limits").hidden = noTravel === "";
    const missing = this.offers("interrupt") ? "Checkpoint, Undo and Branch" : "Interrupt, Checkpoint, Undo and Branch";
    byId("limits").textContent = noTravel && `${missing} cannot be had here. ${noTravel}`;
  }

  whyNoTimeTravel() {
    if (!this.offers("checkpoint")) return PLAIN;
    return this.level === "no-namespaces" ? WITHOUT_NAMESPACES : "";
  }

  async learnIsolation() {
    const { level, full, missing } = await asked("GET", "isolation");
    this.level = level;
    byId("isolation").textContent = full ? "full isolation" : `isolation: ${level}`;
    byId("isolation").title = full ? "Every part was found by trying" : Object.entries(missing).map((part) => part.join(": ")).join("\n");
  }

  announce(text) {
    byId("announcement").textContent = text;
  }

  scrollDown() {
    const transcript = byId("transcript");
    transcript.scrollTop = transcript.scrollHeight;
  }
}

/** The same act, once at a time; who asks meanwhile has it done once more. */
function coalesced(act) {
  let [running, again] = [null, false];
  const loop = async () => {
    do {
      again = false;
      await act();
    } while (again);
    running = null;
  };
  return () => {
    again = true;
    return (running ??= loop());
  };
}
