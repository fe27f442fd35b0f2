/** What lies open once the key is known: one session at a time, its cells, its tools and its panels. */

import { asked, forgetLife } from "./api.js";
import { learnNetwork } from "./cell.js";
import { Completion } from "./completion.js";
import { byId, button, element, enable, forgetRefusal, refuse, shownName } from "./dom.js";
import { Editor } from "./editor.js";
import { listFiles, save, showFiles, takeDrops, upload } from "./files.js";
import { newIdentifier, whyNotNamed } from "./names.js";
import { fileName, notebook } from "./notebook.js";
import { SessionList, endSession, forgetSaved, listPackages, listRefused, listSaved, listSessions, showCheckpoints, showPackages, showRefused, showSaved, showVariables } from "./panels.js";
import { keepCells, keptCells, remember, remembered } from "./tab.js";
import { stateText } from "./verdict.js";
import { Workspace } from "./workspace.js";

const LOOK_EVERY = 4000; // milliseconds
const SAVED_EVERY = 60_000; // milliseconds between lists of saved sessions …
const SAVING = 20_000; // … except for so long after something happened to one
const KEPT_UNSEEN = 3_600_000; // milliseconds for which a tab in the background keeps its session from expiring
const KEPT_OUTPUTS = [1 << 20, 1 << 16, 0]; // characters of a cell that are kept in the tab: the most for which all cells have room
const READER_ACTS = 700; // milliseconds after a wheel or key, in which the view moves by it
const NEAR_THE_END = 60; // pixels: a reader there sees what is added
const WITHOUT_CLASSES = 0;
const FENCED = /^\s*```(?:python|py)?[ \t]*\n([\s\S]*?)\n?```\s*$/i;
const PLAIN = "This server has Azure's API and nothing more (serve --plain).";
const WITHOUT_NAMESPACES = "Sessions without namespaces cannot be kept and gone back to.";

/** The page behind the door. */
export class Desk {
  constructor(offers) {
    this.offers = offers;
    this.level = "";
    this.isCutOff = false; // whether the server did not answer, or refused the key
    this.listed = [];
    this.lookedAt = Date.now(); // when the tab was last seen to be visible
    [this.turn, this.shownTurn] = [0, 0]; // of requests for the list
    this.saved = new Map(); // sessions in the server's store
    this.savedAt = this.savingAt = -Infinity; // when they were listed, and when one may have changed
    [this.actedAt, this.heightSeen] = [-Infinity, 0]; // when the reader last did something, and how high the cells were then
    this.shownPanels = null; // the session whose panels are shown
    this.workspaces = new Map();
    const drop = (id, made) => this.doing(() => this.drop(id), made);
    const end = (id, made) => this.doing(() => this.end(id), made);
    this.sessions = new SessionList(byId("sessions"), { select: (id) => this.select(id), end, drop });
    const completion = new Completion(byId("source"), byId("completions"), {
      ask: (text, cursor) => this.completed(text, cursor),
      giveUp: () => this.current.dropCompletion(),
    });
    this.editor = new Editor(byId("source"), byId("mirror"), completion, (source) => this.run(source));
  }

  /** Shows the sessions: the one that this tab had, or a new one to begin with. */
  async open() {
    this.connectTools();
    this.connectName();
    this.connectFiles();
    this.followTheEnd();
    const { session, given = null, ended = false, draft = "" } = remembered();
    for (const [id, { cells, ...known }] of Object.entries(keptCells())) this.workspaces.set(id, this.made(id, { ...known, ended: true, kept: cells }));
    this.editor.edit(draft); // which takes the focus now: later, the page would take it from a field in which a user types already
    for (const leaving of ["pagehide", "visibilitychange"]) window.addEventListener(leaving, () => this.keep(), true);
    await this.select(session ?? this.newIdentifier("page-"), { given, ended });
    setInterval(() => {
      if (!document.hidden) this.lookedAt = Date.now();
      if (Date.now() - this.lookedAt < KEPT_UNSEEN) this.refreshSessions();
    }, LOOK_EVERY);
    if (this.offers("isolation")) await this.doing(() => this.learnIsolation());
  }

  /** Keep in the tab what a reload would lose: outputs if there is room for them. */
  keep() {
    remember({ draft: this.editor.area.value });
    const written = [...this.workspaces.values()].filter(({ all, kept, parent }) => all.length || kept.length || parent);
    const fits = (most) => keepCells(Object.fromEntries(written.map((one) => [one.id, one.keep(most)])));
    KEPT_OUTPUTS.some(fits);
  }

  /** Continues after the key was asked for again. */
  async goOn() {
    this.editor.area.focus();
    await this.refresh();
  }

  connectTools() {
    const tools = {
      interrupt: () => this.interrupt(),
      checkpoint: () => this.current.checkpoint(),
      save: () => this.save(),
      branch: () => this.branch(),
      export: () => this.export(),
    };
    for (const [id, act] of Object.entries(tools)) byId(id).addEventListener("click", () => this.doing(act, byId(id)));
    this.confirm("reset", "Really reset", () => this.current.reset(this.offers("reset")));
    this.confirm("undo", "Really go back", () => this.current.rollBack(null, { usedUp: true }));
    document.addEventListener("keydown", (event) => {
      if (!isInterruptKey(event) || byId("interrupt").disabled || byId("desk").inert) return;
      event.preventDefault();
      this.doing(() => this.interrupt(), byId("interrupt"));
    });
    byId("run").addEventListener("click", () => this.editor.submit());
    byId("new-session").addEventListener("submit", (event) => {
      event.preventDefault();
      this.doing(() => this.begin(byId("new-name").value.trim()), byId("new-name"));
    });
    byId("packages-panel").hidden = !this.offers("packages");
    byId("save").hidden = byId("saved-panel").hidden = !this.offers("save");
    byId("install").addEventListener("submit", (event) => {
      event.preventDefault();
      const requirements = byId("requirement").value.trim().split(/\s+/).filter(Boolean);
      if (requirements.length) this.doing(() => this.install(requirements), byId("requirement"));
    });
    for (const id of ["files-panel", "variables-panel", "packages-panel", "checkpoints-panel"]) byId(id).addEventListener("toggle", () => this.refreshPanels());
  }

  /** Makes a button ask once more before it acts. */
  confirm(id, sure, act) {
    const asking = button(byId(id).textContent, (made) => this.doing(act, made), { id, sure });
    asking.dataset.title = byId(id).dataset.title;
    byId(id).replaceWith(asking);
  }

  async interrupt() {
    this.editor.area.focus({ preventScroll: true }); // the button is disabled as soon as no cell runs
    await this.current.cells[0]?.interrupt();
  }

  connectName() {
    byId("rename").addEventListener("click", () => this.openName());
    byId("rename-cancel").addEventListener("click", () => this.closeName());
    byId("rename-form").addEventListener("keydown", (event) => event.key === "Escape" && this.closeName());
    byId("rename-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.doing(() => this.rename(byId("rename-to").value.trim()), byId("rename-to"));
    });
  }

  connectFiles() {
    const take = (files) => this.doing(() => this.upload(files), byId("upload"));
    takeDrops(document.body, take); // wherever: else the browser would leave the page for the file
    byId("upload").addEventListener("change", async (event) => {
      await take([...event.target.files]);
      event.target.value = "";
    });
  }

  /** Keeps the end of the transcript in view while it grows, for a reader who is there. */
  followTheEnd() {
    const transcript = byId("transcript");
    const look = () => {
      // Only a scroll away from the end leaves it. The event of a scroll by this page may arrive when the content has grown again.
      const [below, before, height] = [distanceToEnd(), this.scrolledTo, byId("transcript").scrollHeight];
      const isByContent = height !== this.heightSeen && performance.now() - this.actedAt > READER_ACTS;
      this.heightSeen = height;
      if (isByContent && this.isFollowing) {
        this.scrollDown(); // the browser moves the view, too, where cells get smaller or change places
        return;
      }
      this.scrolledTo = scrollPosition();
      if (Math.abs(below) < NEAR_THE_END) this.isFollowing = true;
      else if (below < 0 ? this.scrolledTo > before : this.scrolledTo < before) this.isFollowing = false;
    };
    for (const scroller of [transcript, document]) scroller.addEventListener("scroll", look);
    const acts = ({ target }) => target.closest?.("textarea, input, button") || (this.actedAt = performance.now());
    for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) document.addEventListener(act, acts, { capture: true, passive: true });
    transcript.addEventListener("click", (event) => event.target.closest("summary") && (this.isFollowing = false)); // what is unfolded stays in view
    this.growth = new ResizeObserver(() => this.isFollowing && this.scrollDown());
  }

  /** Do something that may be refused, and show why beside `made`, which caused it. Then update the panels. Return whether it was done. */
  async doing(act, made = null) {
    byId("problem").textContent = "";
    forgetRefusal();
    let problem = null;
    try {
      await act();
    } catch (caught) {
      problem = caught;
    }
    await this.refresh();
    if (!problem) return true;
    this.fail(problem, made);
    if (made) this.refreshPanels().then(() => made.isConnected || this.fail(problem)); // a file that is gone takes its button with it
    return false;
  }

  fail(problem, made = null) {
    if (problem.status === 401) return; // the form for the key has opened, and says so
    if (!refuse(made, problem.message)) byId("problem").textContent = problem.message;
  }

  async run(written) {
    byId("problem").textContent = "";
    forgetRefusal();
    const [, source = written] = written.match(FENCED) ?? []; // as it is copied from a chat
    const result = await this.current.run(source, byId("transactional").checked && !byId("transactional").disabled);
    if (!result && !this.editor.area.value) this.editor.replaceAll(source); // a refused cell is in no history: a reload would lose it
  }

  /** Return nothing while a cell runs, because the session cannot answer then. */
  async completed(text, cursor) {
    if (this.current.cells.length) return null;
    return this.current.complete(text, cursor).catch((problem) => this.fail(problem));
  }

  /** Turns to a new session of this name, or to the live one with that identifier. */
  async begin(name) {
    const known = this.listed.find(({ id }) => id === name);
    const whyNot = whyNotNamed(name);
    if (whyNot && !known) throw new Error(whyNot);
    byId("new-name").value = "";
    this.editor.area.focus();
    await this.select(known?.id ?? this.newIdentifier("page-"), { given: known ? null : name || null });
  }

  async branch() {
    const [from, id] = [this.current, this.newIdentifier("branch-")];
    await from.branch(id);
    const cells = [...from.past, ...from.all].filter(({ result }) => result).map((cell) => cell.keep(Infinity));
    const branch = this.made(id, { parent: { id: from.id, name: from.name, cells }, hidden: from.hidden });
    this.workspaces.set(id, branch);
    from.tell("Branched here to ", "plain", button(branch.name, () => this.openSession(id), { class: "link" }));
    await this.select(id);
  }

  async save() {
    await this.current.save();
    this.savingAt = performance.now();
  }

  async forgetSaved(id) {
    await forgetSaved(id);
    this.savingAt = performance.now();
  }

  /** Turn to a session that a line between cells names, if this page still knows it. */
  async openSession(id) {
    if (this.workspaces.has(id) || this.listed.some((one) => one.id === id)) await this.select(id);
    else byId("problem").textContent = "This session has ended, and its cells were dropped.";
  }

  newIdentifier(prefix) {
    const names = this.listed.map(({ name }) => name);
    return newIdentifier(prefix, names);
  }

  async upload(files) {
    this.announce(`Uploading ${files.length === 1 ? files[0].name : `${files.length} files`}`);
    const { id } = this.current;
    const before = new Set(this.current.live ? (await listFiles(id)).filter(({ folder }) => !folder).map(({ name }) => name) : []);
    const [label] = byId("upload").labels;
    label.textContent = "Uploading …";
    try {
      for (const file of files) await upload(id, file, Number(byId("upload").dataset.most));
    } finally {
      label.textContent = "Upload …";
    }
    const replaced = [...files].map(({ name }) => name).filter((name) => before.has(name));
    if (replaced.length) this.current.tell(`Replaced: ${replaced.map(shownName).join(", ")}.`);
    this.announce("Uploaded");
  }

  async install(requirements) {
    const [workspace, made] = [this.current, byId("install").querySelector("button")];
    [made.disabled, made.textContent] = [true, "Installing …"];
    try {
      await workspace.install(requirements);
      byId("requirement").value = "";
    } finally {
      [made.disabled, made.textContent] = [false, "Install"];
    }
    this.announce("Installed");
  }

  export() {
    const { all, past, gone, name } = this.current;
    const text = JSON.stringify(notebook([...past, ...all], gone), null, 1);
    save(new Blob([text], { type: "application/x-ipynb+json" }), fileName(name));
    this.announce("The notebook was downloaded");
  }

  openName() {
    byId("rename-form").hidden = false;
    byId("rename").hidden = byId("session-name").hidden = true;
    byId("rename-to").value = this.current.name;
    byId("rename-to").select();
  }

  closeName() {
    if (byId("rename-form").hidden) return;
    forgetRefusal();
    const hadFocus = byId("rename-form").contains(document.activeElement);
    byId("rename-form").hidden = true;
    byId("rename").hidden = byId("session-name").hidden = false;
    if (hadFocus) byId("rename").focus();
  }

  async rename(name) {
    const whyNot = whyNotNamed(name);
    if (whyNot) throw new Error(whyNot);
    await this.current.rename(name);
    this.closeName();
    this.announce(`The session is called ${this.current.name}`);
  }

  /** Turns to a session, whether the server has it already or not. */
  async select(id, { given = null, ended = false } = {}) {
    if (!this.workspaces.has(id)) this.workspaces.set(id, this.made(id, { given, ended }));
    this.closeName();
    forgetRefusal();
    this.current = this.workspaces.get(id);
    byId("transcript").replaceChildren(this.current.element);
    this.growth.disconnect();
    this.growth.observe(this.current.element);
    this.growth.observe(byId("transcript")); // which a refusal above it makes smaller
    this.scrollDown();
    await this.refresh();
    this.current.element.querySelector(".ask input")?.focus();
  }

  made(id, known) {
    const acts = {
      edit: (source) => this.editor.edit(source),
      run: (source) => this.run(source),
      install: (requirements, made) => this.doing(() => this.current.install(requirements), made),
      open: (other) => this.openSession(other),
    };
    const made = new Workspace(id, { acts, ...known, onChange: (workspace, result) => this.changed(workspace, result) });
    made.refreshPanels = coalesced(() => this.loadPanels(made));
    return made;
  }

  async changed(workspace, result) {
    if (result) this.announce(`The cell has ${result.error ? "failed" : "ended"}. State ${stateText(result.state)}.`);
    if (workspace !== this.current) return;
    if (!result) this.scrollDown(); // a cell began
    await this.refresh();
  }

  /** Ends a session. Its cells stay on the page; without any, another session takes its place. */
  async end(id) {
    const ending = this.workspaces.get(id) ?? this.made(id);
    ending.isEnding = true; // its end is no news
    try {
      await endSession(id);
      forgetLife(id);
      ending.update(null);
      if (ending.all.length) ending.tell("You ended this session, with its variables and files. Its cells stay here until you drop them.", "warn");
      else await this.drop(id);
    } finally {
      ending.isEnding = false;
    }
  }

  /** Lets go of the cells of a session that has ended. */
  async drop(id) {
    this.workspaces.delete(id);
    if (this.current.id === id) await this.select(this.newIdentifier("page-"));
  }

  async refresh() {
    this.showTools();
    await this.refreshSessions();
    this.refreshPanels(); // which may wait for a cell to end
    this.showTools();
  }

  async refreshSessions() {
    const workspace = this.current;
    const turn = (this.turn += 1);
    const sessions = await listSessions().catch((problem) => {
      this.showCutOff(true);
      this.fail(problem);
    });
    if (!sessions || turn < this.shownTurn) return; // a later list is shown already
    this.shownTurn = turn;
    if (this.isCutOff) this.showCutOff(false);
    this.listed = sessions;
    const live = new Map(sessions.map((one) => [one.id, one]));
    if ([...this.workspaces.values()].some((one) => one.live && !live.has(one.id))) this.savingAt = performance.now();
    if (this.offers("save")) await this.refreshSaved();
    for (const one of this.workspaces.values()) {
      const wasLive = one.live !== null;
      one.saved = this.saved.get(one.id) ?? null;
      one.update(live.get(one.id) ?? null);
      if (wasLive && !one.live && !one.isEnding) this.tellEnd(one);
    }
    for (const one of this.workspaces.values()) {
      await one.giveName().catch((problem) => one === this.current && this.fail(problem, byId("rename")));
      await one.keepUp(one === this.current).catch(() => {}); // if it has ended, the next list shows it
    }
    if (workspace !== this.current) return;
    this.showSessions();
    await workspace.catchUp().catch((problem) => this.fail(problem));
    this.editor.remember([...workspace.past, ...workspace.all].map(({ source }) => source));
    if (workspace === this.current) this.showSessions();
  }

  /** The store may be slow, and have many: so it is asked now and then only. A session that has ended is saved meanwhile. */
  async refreshSaved() {
    const now = performance.now();
    if (now - this.savedAt > SAVED_EVERY || now - this.savingAt < SAVING) {
      this.savedAt = now;
      this.saved = await listSaved().catch(() => this.saved);
    }
    const absent = [...this.saved.values()].filter(({ session_id: id }) => !this.listed.some((one) => one.id === id)).reverse();
    showSaved(byId("saved"), absent, { open: (id) => this.select(id), forget: (id, made) => this.doing(() => this.forgetSaved(id), made) });
  }

  tellEnd(workspace) {
    const gone = this.offers("save") ? "If it was saved, its next cell goes on from there." : "Its variables and files are gone.";
    const why = `is not there any more: it expired, gave way to a new one, or was ended elsewhere. ${gone}`;
    for (const one of new Set([workspace, this.current])) one.tell(`The session ${workspace.name} ${why}`, "warn");
    if (workspace === this.current) this.refreshPanels();
  }

  /** What the page shows of the server is not known while it cannot be reached, and may be another's afterwards. */
  showCutOff(isCutOff) {
    this.isCutOff = isCutOff;
    document.body.classList.toggle("cut-off", isCutOff);
    if (isCutOff) byId("isolation").textContent = byId("isolation").title = byId("network").textContent = "";
    else {
      byId("problem").textContent = "";
      if (this.offers("isolation")) this.learnIsolation().catch((problem) => this.fail(problem));
    }
  }

  showSessions() {
    const { id, name, given } = this.current;
    const ended = [...this.workspaces.values()].filter((one) => one.ended && one.all.length);
    this.sessions.show(this.listed.map((one) => (one.id === id ? { ...one, name } : one)), this.current, ended);
    byId("session-name").textContent = name;
    remember({ session: id, given, ended: this.current.ended || this.current.begun });
    this.showTools();
  }

  /** Asks nothing of a session that has not begun, and so begins none; of one at work, it waits for the end of the cell. */
  async refreshPanels() {
    const workspace = this.current;
    if (workspace.cells.length === 0) await workspace.refreshPanels();
    else if (this.shownPanels !== workspace) {
      const later = () => element("p", { class: "empty" }, "Shown when the cell has ended.");
      for (const id of ["files", "variables", "packages", "checkpoints"]) byId(id).replaceChildren(later());
    }
  }

  async loadPanels(workspace) {
    if (workspace === this.current) this.shownPanels = workspace;
    const told = async (id, load, show) => {
      const found = workspace.begun && byId(id).open ? await load() : [];
      if (workspace === this.current) show(found);
    };
    const lists = [
      told("files-panel", () => listFiles(workspace.id), (files) => this.showFiles(workspace, files)),
      told("variables-panel", () => workspace.asked("variables", WITHOUT_CLASSES), (variables) => showVariables(byId("variables"), variables, workspace.hidden)),
      told("packages-panel", () => (this.offers("packages") ? listPackages(workspace.id) : []), (found) => showPackages(byId("packages"), found)),
      told("network-panel", () => (this.offers("network") ? listRefused(workspace.id) : []), (found) => showRefused(byId("network-panel"), byId("refused"), found)),
      told("checkpoints-panel", () => this.whyNoTimeTravel() || workspace.loadCheckpoints(), () => this.showCheckpoints(workspace)),
    ];
    for (const ended of await Promise.allSettled(lists)) if (ended.reason) this.fail(ended.reason);
    if (workspace === this.current) this.showTools();
  }

  showFiles(workspace, files) {
    showFiles(byId("files"), workspace.id, files, (act, made) => this.doing(act, made));
  }

  showCheckpoints(workspace) {
    const goBack = (id, made) => this.doing(() => workspace.rollBack(id), made);
    const drop = (id, made) => this.doing(() => workspace.drop(id), made);
    showCheckpoints(byId("checkpoints"), workspace.id, workspace.checkpoints, { whyNot: this.whyNoTimeTravel(), goBack, drop });
  }

  /** Enable each tool, or show why it cannot be used. */
  showTools() {
    const { all, past, cells, begun, live, checkpoints } = this.current;
    const noTravel = this.whyNoTimeTravel();
    const notBegun = begun ? "" : "The session begins with its first cell.";
    enable(byId("interrupt"), (this.offers("interrupt") ? "" : PLAIN) || (cells.length ? "" : "No cell runs."));
    enable(byId("reset"), notBegun);
    enable(byId("checkpoint"), noTravel || notBegun);
    enable(byId("save"), notBegun);
    enable(byId("undo"), noTravel || (checkpoints.length ? "" : "There is no checkpoint."));
    enable(byId("branch"), noTravel || notBegun);
    enable(byId("rename"), live && !this.offers("names") ? PLAIN : "");
    enable(byId("export"), all.length + past.length ? "" : "There is no cell yet.");
    enable(byId("transactional"), noTravel);
    byId("limits").hidden = noTravel === "";
    const missing = this.offers("interrupt") ? "Checkpoints and branches" : "Interrupts, checkpoints and branches";
    byId("limits").textContent = noTravel && `${missing} cannot be had here. ${noTravel}`;
  }

  whyNoTimeTravel() {
    if (!this.offers("checkpoint")) return PLAIN;
    return this.level === "no-namespaces" ? WITHOUT_NAMESPACES : "";
  }

  async learnIsolation() {
    const { level, full, missing, network } = await asked("GET", "isolation");
    this.level = level;
    byId("network").textContent = learnNetwork(network);
    byId("isolation").textContent = full ? "full isolation" : `isolation: ${level}`;
    byId("isolation").title = full ? "Every part was found by trying" : Object.entries(missing).map((part) => part.join(": ")).join("\n");
  }

  announce(text) {
    byId("announcement").textContent = text;
  }

  scrollDown() {
    const transcript = byId("transcript");
    this.isFollowing = true;
    transcript.scrollTop = transcript.scrollHeight;
    if (doesDocumentScroll()) byId("editor").scrollIntoView({ block: "end" });
    this.scrolledTo = scrollPosition();
  }
}

/** Return whether the document scrolls in place of the transcript: in the narrow layout, where the panels are below the editor. */
const doesDocumentScroll = () => getComputedStyle(byId("transcript")).overflowY === "visible";

const scrollPosition = () => (doesDocumentScroll() ? document.scrollingElement : byId("transcript")).scrollTop;

/** Return how many pixels of the cells, or of the editor after them, are below the view. Negative: how far the view is below the editor. */
function distanceToEnd() {
  const { scrollHeight, scrollTop, clientHeight } = byId("transcript");
  return doesDocumentScroll() ? byId("editor").getBoundingClientRect().bottom - innerHeight : scrollHeight - scrollTop - clientHeight;
}

/** Ctrl C, unless it copies something. */
function isInterruptKey({ key, ctrlKey, shiftKey, altKey, metaKey }) {
  const { selectionStart, selectionEnd } = document.activeElement;
  return key === "c" && ctrlKey && !shiftKey && !altKey && !metaKey && selectionStart === selectionEnd && getSelection().toString() === "";
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
