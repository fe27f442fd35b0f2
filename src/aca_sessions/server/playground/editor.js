/** The editor of cells: keys, history, colours. Tab completes a name and indents else; Escape gives the next Tab back to the browser. */

import { highlighted } from "./highlight.js";

const INDENT = "    ";

/** A text area with manners. */
export class Editor {
  constructor(area, mirror, completion, run) {
    this.area = area;
    this.mirror = mirror;
    this.completion = completion;
    this.run = run;
    this.history = [];
    this.place = 0;
    this.draft = "";
    this.leaves = false;
    area.addEventListener("keydown", (event) => this.onKey(event));
    area.addEventListener("input", () => this.paint());
    area.addEventListener("blur", () => (this.leaves = false));
    this.paint();
  }

  /** Hands the text on to be run, and begins an empty one. */
  submit() {
    const source = this.area.value;
    if (!source.trim()) return;
    if (this.history.at(-1) !== source) this.history.push(source);
    this.place = this.history.length;
    this.draft = "";
    this.replaceAll("");
    this.run(source);
  }

  /** Takes the sources of earlier cells for its history. */
  remember(sources) {
    const isAtEnd = this.place === this.history.length;
    const known = new Set(this.history);
    this.history.unshift(...sources.filter((source) => !known.has(source)));
    if (isAtEnd) this.place = this.history.length;
  }

  /** Another text in the place of this one. Undo brings this one back, if the editor has the focus. */
  replaceAll(text) {
    this.area.select();
    this.insert(text);
    this.area.setSelectionRange(text.length, text.length);
  }

  /** Puts a source into the editor, to be changed and run again. */
  edit(source) {
    this.area.focus();
    this.replaceAll(source);
  }

  onKey(event) {
    const completing = this.completion.isOpen;
    if (event.key === "Escape") this.completion.drop();
    const act = this.completion.actionOf(event) ?? this.actionOf(event);
    if (act) {
      event.preventDefault();
      act();
    }
    this.leaves = (event.key === "Escape" && !completing) || (this.leaves && event.key === "Shift");
  }

  actionOf(event) {
    if (event.isComposing) return null;
    const alone = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (event.key === "Enter" && (!alone || event.shiftKey)) return () => this.submit();
    if (event.key === "Enter" && alone) return () => this.breakLine();
    if (event.key === "Tab" && alone && !this.leaves) return () => (event.shiftKey ? this.unindent() : this.completeOrIndent());
    if (event.key === "/" && (event.ctrlKey || event.metaKey) && !event.altKey) return () => this.comment();
    const isArrow = alone && !event.shiftKey;
    if (event.key === "ArrowUp" && (event.altKey || (isArrow && this.isBrowsing(0)))) return () => this.recall(-1);
    if (event.key === "ArrowDown" && (event.altKey || (isArrow && this.isBrowsing(this.area.value.length)))) return () => this.recall(1);
    return null;
  }

  /** Whether an arrow has nowhere to go but to an earlier or later cell: at an end of a text that is empty or was recalled, and not changed. */
  isBrowsing(end) {
    const { selectionStart: from, selectionEnd: to, value } = this.area;
    const isRecalled = this.place < this.history.length && value === this.history[this.place];
    return from === to && !value.slice(Math.min(from, end), Math.max(from, end)).includes("\n") && (!value || isRecalled);
  }

  recall(step) {
    if (this.place === this.history.length) this.draft = this.area.value;
    this.place = Math.max(0, Math.min(this.history.length, this.place + step));
    this.replaceAll(this.history[this.place] ?? this.draft);
  }

  /** A new line, indented as the one before, or more after a colon. */
  breakLine() {
    const before = this.area.value.slice(0, this.area.selectionStart);
    const line = before.slice(before.lastIndexOf("\n") + 1);
    this.insert("\n" + line.match(/^\s*/)[0] + (/:\s*(#.*)?$/.test(line) ? INDENT : ""));
  }

  completeOrIndent() {
    const { selectionStart: start, selectionEnd: end, value } = this.area;
    if (start === end && /[\w.]$/.test(value.slice(0, start))) this.completion.open((text) => this.insert(text));
    else this.indent();
  }

  indent() {
    const { selectionStart: start, selectionEnd: end } = this.area;
    if (start === end) {
      const column = start - this.lineStart(start);
      this.insert(INDENT.slice(column % INDENT.length));
    } else this.changeLines((line) => (line ? INDENT + line : line));
  }

  /** Comment the selected lines out, or back in if all of them are comments. */
  comment() {
    const { selectionStart: start, selectionEnd: end, value } = this.area;
    const from = this.lineStart(start);
    const to = value.indexOf("\n", end) < 0 ? value.length : value.indexOf("\n", end);
    const isOut = value.slice(from, to).split("\n").every((line) => /^\s*(?:#|$)/.test(line));
    this.area.setSelectionRange(from, to);
    this.changeLines((line) => (isOut ? line.replace(/^(\s*)# ?/, "$1") : line.replace(/^(\s*)(?=\S)/, "$1# ")));
    const caret = Math.max(from, start + this.area.value.length - value.length);
    if (start === end) this.area.setSelectionRange(caret, caret);
  }

  unindent() {
    this.changeLines((line) => line.replace(/^ {1,4}/, ""));
  }

  changeLines(change) {
    const from = this.lineStart(this.area.selectionStart);
    const to = this.area.selectionEnd;
    const changed = this.area.value.slice(from, to).split("\n").map(change).join("\n");
    this.area.setSelectionRange(from, to);
    this.insert(changed);
    if (changed.includes("\n")) this.area.setSelectionRange(from, from + changed.length);
  }

  lineStart(position) {
    return this.area.value.lastIndexOf("\n", position - 1) + 1;
  }

  /** As if it were typed, so that it can be undone. */
  insert(text) {
    const hasFocus = document.activeElement === this.area; // execCommand would change whatever has it
    const done = hasFocus && (text ? document.execCommand("insertText", false, text) : document.execCommand("delete"));
    if (!done) this.area.setRangeText(text, this.area.selectionStart, this.area.selectionEnd, "end");
    this.paint();
  }

  paint() {
    this.mirror.replaceChildren(...highlighted(this.area.value), "\n");
  }
}
