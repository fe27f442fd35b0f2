/** What a cell writes, as a terminal shows it: colours, and lines that are written over. */

import { element } from "./dom.js";

const CODES = /\x1b(?:\[([0-9;]*)m|\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])/g;
const UNSHOWN = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;
const MOST = 400_000; // characters of one stream that stay on the page; the oldest go first

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
  }

  /** Adds a piece: lines that are complete stay, the last one may still be written over. */
  write(text) {
    const lines = (this.unfinished + text).replaceAll("\r\n", "\n").split("\n");
    const all = lines.map(overwritten).join("\n");
    const end = all.lastIndexOf("\n") + 1;
    if (end) this.keep(all.slice(0, end));
    this.unfinished = all.slice(end).slice(-MOST);
    this.line.replaceChildren(...this.coloured(this.unfinished, [...this.style]));
  }

  keep(text) {
    const piece = element("span", {}, ...this.coloured(text.slice(-MOST), this.style));
    this.line.before(piece);
    this.pieces.push([piece, text.length]);
    this.length += text.length;
    while (this.length > MOST && this.pieces.length > 1) this.dropOldest();
  }

  dropOldest() {
    const [piece, length] = this.pieces.shift();
    piece.remove();
    this.length -= length;
    this.note ??= element("span", { class: "note" }, "[earlier output is not shown here]\n");
    this.element.prepend(this.note);
  }

  /** Text and coloured spans; `style` goes on from piece to piece. */
  coloured(text, style) {
    const parts = [];
    let from = 0;
    for (const code of text.matchAll(CODES)) {
      parts.push(styled(text.slice(from, code.index), style));
      from = code.index + code[0].length;
      if (code[1] !== undefined) apply(code[1], style);
    }
    return [...parts, styled(text.slice(from), style)];
  }
}

/** A text of a traceback or the like, all at once. */
export function shown(text, kind) {
  const terminal = new Terminal(kind);
  terminal.write(text);
  return terminal.element;
}

/** What is left of a line after its last return to the beginning; one at its very end has overwritten nothing yet. */
function overwritten(line) {
  let end = line.length;
  while (end > 0 && line[end - 1] === "\r") end -= 1;
  return line.slice(end > 0 ? line.lastIndexOf("\r", end - 1) + 1 : 0);
}

function styled(text, style) {
  const clean = text.replace(UNSHOWN, "");
  return style.length && clean ? element("span", { class: style.join(" ") }, clean) : clean;
}

function apply(codes, style) {
  for (const code of codes.split(";").map(Number)) {
    if (code === 0) style.length = 0;
    else if (code === 1 || code === 4) style.push(code === 1 ? "bold" : "underlined");
    else if (code === 39) style.splice(0, style.length, ...style.filter((name) => !name.startsWith("ansi")));
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) {
      style.splice(0, style.length, ...style.filter((name) => !name.startsWith("ansi")), `ansi-${code % 10}`);
    }
  }
}
