/** What a cell writes, as a terminal shows it: colours, and lines that are written over. */

import { element } from "./dom.js";

const CODES = /\x1b(?:\[([0-9;]*)m|\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])/g;
const UNSHOWN = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;
const MOST = 400_000; // characters of one stream that stay on the page; the oldest go first
const LONGEST_LINE = 20_000; // that may still be written over: all of it is laid out anew with each piece
const LONGEST_CODE = 100;
const NEAR_THE_END = 20; // pixels
const MOST_COLOURED = 4000; // elements of one stream; what is behind them has no colour

/** A stream's text, piece by piece. */
export class Terminal {
  constructor(kind) {
    this.kind = kind;
    this.element = element("pre", { class: `stream ${kind}` });
    this.line = element("span");
    this.element.append(this.line);
    this.unfinished = "";
    this.style = [];
    this.pieces = [];
    this.length = 0;
    this.coloured = 0;
    this.isFollowing = true; // whether a reader is at the end of what is too high to be shown at once
    this.scrolledTo = 0;
    this.isScrolling = false;
    this.element.addEventListener("scroll", () => this.onScroll());
  }

  /** Only an upward scroll leaves the end: the event of a scroll by the page may arrive when there is more text again. */
  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    if (scrollHeight - scrollTop - clientHeight < NEAR_THE_END) this.isFollowing = true;
    else if (scrollTop < this.scrolledTo) this.isFollowing = false;
    this.scrolledTo = scrollTop;
  }

  /** Show the end, once for all that is written until the next frame: the layout of long text takes time. */
  scrollDown() {
    if (this.isScrolling) return;
    this.isScrolling = true;
    requestAnimationFrame(() => {
      this.isScrolling = false;
      if (!this.isFollowing) return;
      this.element.scrollTop = this.element.scrollHeight;
      this.scrolledTo = this.element.scrollTop;
    });
  }

  /** Adds a piece: lines that are complete stay, the last one may still be written over. */
  write(text) {
    const lines = (this.unfinished + text).replaceAll("\r\n", "\n").split("\n");
    const all = lines.map(overwritten).join("\n");
    const end = Math.max(all.lastIndexOf("\n") + 1, beforeCode(all, all.length - LONGEST_LINE));
    if (end) this.keep(all.slice(0, end));
    this.unfinished = all.slice(end);
    this.line.replaceChildren(...this.laidOut(this.unfinished, [...this.style]));
  }

  keep(text) {
    const piece = element("span", {}, ...this.laidOut(text.slice(beforeCode(text, text.length - MOST)), this.style));
    this.line.before(piece);
    this.pieces.push([piece, text.length]);
    this.length += text.length;
    this.coloured += piece.childElementCount;
    while (this.length > MOST && this.pieces.length > 1) this.dropOldest();
  }

  dropOldest() {
    const [piece, length] = this.pieces.shift();
    piece.remove();
    this.scrolledTo = 0; // this moves the view upwards, too
    this.length -= length;
    this.coloured -= piece.childElementCount;
    this.note ??= element("span", { class: "note" }, "[earlier output is not shown here]\n");
    this.element.prepend(this.note);
  }

  /** Text and coloured spans, no more than there is room for; `style` goes on from piece to piece. */
  laidOut(text, style) {
    const parts = [];
    let [run, from, room] = ["", 0, MOST_COLOURED - this.coloured];
    const end = () => {
      const clean = run.replace(UNSHOWN, "");
      run = "";
      if (!clean) return;
      const isColoured = style.length > 0 && room > 0;
      if (isColoured) room -= 1;
      parts.push(isColoured ? element("span", { class: style.join(" ") }, clean) : clean);
    };
    for (const code of text.matchAll(CODES)) {
      run += text.slice(from, code.index);
      from = code.index + code[0].length;
      if (code[1] === undefined) continue;
      const next = applied(code[1], style);
      if (next.join() === style.join()) continue;
      if (room > 0) end(); // else all that follows is one text
      style.splice(0, style.length, ...next);
    }
    run += text.slice(from);
    end();
    return parts;
  }
}

/** A text without colours and other codes. */
export const plain = (text) => text.replace(CODES, "");

/** A text of a traceback or the like, all at once. */
export function shown(text, kind) {
  const terminal = new Terminal(kind);
  terminal.write(text);
  return terminal.element;
}

/** A place in a text, or the beginning of the code that it would cut in two. */
function beforeCode(text, place) {
  const code = place > 0 ? text.lastIndexOf("\x1b", place) : -1;
  return code >= 0 && place - code < LONGEST_CODE ? code : Math.max(0, place);
}

/** What is left of a line after its last return to the beginning; one at its very end has overwritten nothing yet. */
function overwritten(line) {
  let end = line.length;
  while (end > 0 && line[end - 1] === "\r") end -= 1;
  return line.slice(end > 0 ? line.lastIndexOf("\r", end - 1) + 1 : 0);
}

/** The names of a style after some codes: each once, and one colour at most. */
function applied(codes, style) {
  let next = style;
  for (const code of codes.split(";").map(Number)) {
    const without = (other) => next.filter((name) => !name.startsWith(other));
    if (code === 0) next = [];
    else if (code === 1) next = [...without("bold"), "bold"];
    else if (code === 4) next = [...without("underlined"), "underlined"];
    else if (code === 39) next = without("ansi");
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) next = [...without("ansi"), `ansi-${code % 10}`];
  }
  return next;
}
