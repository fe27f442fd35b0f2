/** Markdown and LaTeX that code displayed, as HTML that is still to be cleaned. A formula is a mark in it, in whose place `cleaned` puts MathML. */

import { escaped } from "./clean.js";
import { formula } from "./formula.js";

const LONGEST = 16_000; // characters: the time for hostile Markdown grows with their square
const MOST_CELLS = 40_000; // of tables: a header makes cells in each row
const OWN = /[\ue000-\ue003]/g; // marks of this module
const DEEPEST = 12; // lists and quotations in each other
const FENCE = /^ {0,3}(`{3,}|~{3,})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])(?:( {1,4})(?=\S)|( +)|$)/;
const TABLE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const UNDER = /^ {0,3}(=+|-+)\s*$/;
const INTERRUPTS = [HEADING, FENCE, QUOTE, RULE, /^ {0,3}(?:[-+*]|1[.)]) +\S/];
const RAW = /^ {0,3}<(?:[a-z/!?])/i;
const DISPLAYED = [
  [/^ {0,3}\$\$/, /\$\$\s*$/],
  [/^ {0,3}\\begin\{/, /\\end\{[a-z]+\*?\}\s*$/],
];
const SPAN = new RegExp(
  [
    /\\(?<mark>[!-/:-@[-`{-~])/, // a mark that is only itself
    /(?<!`)(?<ticks>`+)(?!`)(?<code>[^]*?[^`])\k<ticks>(?!`)/,
    /\$\$(?<block>[^$]+)\$\$/,
    /(?<environment>\\begin\{(?<name>[a-z]+\*?)\}[^]+?\\end\{\k<name>\})/,
    /(?<!\d)\$(?<inline>[^\s$](?:[^$]*[^\s$\\])?)\$(?!\d)/,
    /<(?<address>https?:[^\s<>]+)>/,
    /(?<raw><[a-z/!][^<>]*>)/,
    /!\[(?<alternative>[^\]]{0,500})\]\((?<source>[^\s()]*)(?:\s[^()]*)?\)/,
    /\[(?<label>(?:[^\][]|\[[^\][]*\])*)\]\((?<target>(?:[^\s()]|\([^\s()]*\))*)(?:\s[^()]*)?\)/,
  ]
    .map(({ source }) => source)
    .join("|"),
  "gi",
);
const LATEX = /\$\$(.+?)\$\$|\\\[(.+?)\\\]|(\\begin\{([a-z]{1,20}\*?)\}.+?\\end\{\4\})|\$([^$]+)\$|\\\((.+?)\\\)/gs;

/** Return `{ html, formulas }` of Markdown, or null if it is too long to be laid out fast. */
export function markdown(text) {
  const source = text.replace(OWN, "");
  const lines = source.split(/\r?\n/);
  if (source.length > LONGEST || lines.length * Math.max(...lines.map((line) => line.split("|").length)) > MOST_CELLS) return null;
  const writer = new Writer();
  return { html: `<article>${writer.blocks(lines, 0)}</article>`, formulas: writer.formulas };
}

/** Return `{ html, formulas }` of LaTeX: its formulas, and the text between them. Return null if it has none or is too long. */
export function latex(text) {
  const source = text.replace(OWN, "");
  if (source.length > LONGEST) return null;
  const writer = new Writer();
  let [html, end] = ["", 0];
  for (const found of source.matchAll(LATEX)) {
    const block = found[1] ?? found[2] ?? found[3];
    html += escaped(source.slice(end, found.index)) + writer.formula(block ?? found[5] ?? found[6], block !== undefined);
    end = found.index + found[0].length;
  }
  return writer.formulas.length ? { html: html + escaped(source.slice(end)), formulas: writer.formulas } : null;
}

class Writer {
  constructor() {
    this.formulas = [];
  }

  formula(source, isBlock) {
    return `\ue000${this.formulas.push(formula(source, isBlock)) - 1}\ue001`;
  }

  /** The blocks of some lines; in a tight list, paragraphs are plain text. */
  blocks(lines, depth, isTight = false) {
    if (depth > DEEPEST) return escaped(lines.join("\n"));
    let html = "";
    for (let at = 0; at < lines.length; ) {
      const [made, end] = this.block(lines, at, depth, isTight);
      html += made;
      at = end;
    }
    return html;
  }

  /** One block and the place of the line behind it. */
  block(lines, at, depth, isTight) {
    const line = lines[at];
    if (!line.trim()) return ["", at + 1];
    const heading = line.match(HEADING);
    if (heading) return [`<h${heading[1].length}>${this.spans((heading[2] ?? "").replace(/(?:^|\s)#+\s*$/, ""))}</h${heading[1].length}>`, at + 1];
    if (FENCE.test(line)) return fenced(lines, at);
    if (RULE.test(line)) return ["<hr>", at + 1];
    if (QUOTE.test(line)) return this.quote(lines, at, depth);
    if (ITEM.test(line)) return this.list(lines, at, depth);
    if (/^(?: {4}|\t)/.test(line)) return indented(lines, at);
    if (isTable(lines, at)) return this.table(lines, at);
    const [, close] = DISPLAYED.find(([open]) => open.test(line)) ?? [];
    if (close) {
      const from = close.test(line.replace(/^\s*\$\$/, "")) ? at : lines.findIndex((other, place) => place > at && close.test(other));
      if (from >= 0) return [`<p>${this.spans(lines.slice(at, from + 1).join("\n"))}</p>`, from + 1];
    }
    if (RAW.test(line)) {
      const end = until(lines, at + 1, (other) => !other.trim());
      return [lines.slice(at, end).join("\n"), end];
    }
    return this.paragraph(lines, at, isTight);
  }

  paragraph(lines, at, isTight) {
    const end = until(lines, at + 1, (line, place) => !line.trim() || UNDER.test(line) || interrupts(line) || isTable(lines, place));
    const content = this.spans(lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd());
    const under = lines[end]?.match(UNDER);
    if (under) return [under[1][0] === "=" ? `<h1>${content}</h1>` : `<h2>${content}</h2>`, end + 1];
    return [isTight ? content : `<p>${content}</p>`, end];
  }

  quote(lines, at, depth) {
    const end = until(lines, at, (line) => !line.trim() || (!QUOTE.test(line) && interrupts(line)));
    return [`<blockquote>${this.blocks(lines.slice(at, end).map((line) => line.replace(QUOTE, "")), depth + 1)}</blockquote>`, end];
  }

  list(lines, at, depth) {
    const [, , first] = lines[at].match(ITEM);
    const isOrdered = /\d/.test(first);
    const items = [];
    let isLoose = false;
    for (;;) {
      const [whole, , mark] = lines[at]?.match(ITEM) ?? [];
      if (whole === undefined || mark.at(-1) !== first.at(-1) || RULE.test(lines[at])) break;
      const indent = whole.length + (whole.endsWith(mark) ? 1 : 0);
      const isInside = (line) => !line.trim() || line.search(/\S/) >= Math.min(indent, 4) || line.startsWith("\t");
      const isLazy = (line, before) => before.trim() && !ITEM.test(line) && !interrupts(line);
      const end = until(lines, at + 1, (line, place) => !isInside(line) && !isLazy(line, lines[place - 1]));
      const rest = lines.slice(at + 1, end).map((line) => line.replace(new RegExp(`^(?:\\t| {0,${indent}})`), ""));
      const item = [lines[at].slice(whole.length), ...rest];
      while (item.length > 1 && !item.at(-1).trim()) item.pop();
      items.push(item);
      isLoose ||= item.some((line, place) => !line.trim() && place > 0 && !FENCE.test(item[0]));
      if (!lines[end - 1].trim() && lines[end]?.match(ITEM)?.[2].at(-1) === first.at(-1)) isLoose = true;
      at = end;
    }
    const written = items.map((item) => {
      const [, box, text] = item[0].match(/^\[([ xX])\] (.*)$/) ?? [];
      if (box) item[0] = `${box === " " ? "☐" : "☑"} ${text}`;
      return `<li>${this.blocks(item, depth + 1, !isLoose)}</li>`;
    });
    return [isOrdered ? `<ol start="${parseInt(first, 10)}">${written.join("")}</ol>` : `<ul>${written.join("")}</ul>`, at];
  }

  table(lines, at) {
    const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((text) => text.trim().replaceAll("\\|", "|"));
    const sides = cells(lines[at + 1]).map((text) => (text.endsWith(":") ? (text.startsWith(":") ? "center" : "right") : "left"));
    const row = (line, tag) => {
      const texts = cells(line);
      return `<tr>${sides.map((side, place) => `<${tag} align="${side}">${this.spans(texts[place] ?? "")}</${tag}>`).join("")}</tr>`;
    };
    const end = until(lines, at + 2, (line) => !line.includes("|"));
    const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
    return [`<table><thead>${row(lines[at], "th")}</thead><tbody>${body.join("")}</tbody></table>`, end];
  }

  /** The text of a paragraph. What is finished stands behind marks while emphasis is found in the rest. */
  spans(source, depth = 0) {
    const kept = [];
    const keep = (html) => `\ue002${kept.push(html) - 1}\ue003`;
    let [text, end] = ["", 0];
    for (const found of source.matchAll(SPAN)) {
      text += source.slice(end, found.index) + keep(this.span(found.groups, depth));
      end = found.index + found[0].length;
    }
    text = entities(text + source.slice(end));
    text = text.replace(/(\*\*|__)(?=[^\s*_])([^]{0,2000}?[^\s])\1/g, "<strong>$2</strong>").replace(/~~(?=\S)([^]{0,2000}?\S)~~/g, "<s>$1</s>");
    text = text.replace(/\*(?=[^\s*])([^*]{0,2000}?[^\s*])\*/g, "<em>$1</em>").replace(/(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]{0,2000}?[^\s_])_(?![\p{L}\p{N}_])/gu, "<em>$1</em>");
    return text.replace(/ {2,}\n/g, "<br>\n").replace(/\ue002(\d+)\ue003/g, (_, place) => kept[place]);
  }

  span({ mark, code, block, environment, inline, address, raw, alternative, source, label, target }, depth) {
    if (mark !== undefined) return escaped(mark);
    if (code !== undefined) return `<code>${escaped(code.replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1"))}</code>`;
    if (block ?? environment) return this.formula(block ?? environment, true);
    if (inline !== undefined) return this.formula(inline, false);
    if (address !== undefined) return `<a title="${escaped(address)}">${escaped(address)}</a>`;
    if (raw !== undefined) return raw;
    if (source !== undefined) return `<img alt="${escaped(alternative)}" src="${escaped(source)}">`;
    return `<a title="${escaped(target)}">${depth < 3 ? this.spans(label, depth + 1) : escaped(label)}</a>`;
  }
}

function fenced(lines, at) {
  const [, mark] = lines[at].match(FENCE);
  const end = until(lines, at + 1, (line) => line.trim().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "");
  return [`<pre><code>${escaped(lines.slice(at + 1, end).join("\n"))}</code></pre>`, end + 1];
}

function indented(lines, at) {
  const end = until(lines, at, (line) => line.trim() && !/^(?: {4}|\t)/.test(line));
  return [`<pre><code>${escaped(lines.slice(at, end).map((line) => line.replace(/^(?: {4}|\t)/, "")).join("\n").trimEnd())}</code></pre>`, end];
}

const interrupts = (line) => INTERRUPTS.some((other) => other.test(line));

const isTable = (lines, at) => lines[at].includes("|") && TABLE.test(lines[at + 1] ?? "");

/** The place of the first line from `at` on for which `isEnd`, or the number of lines. */
function until(lines, at, isEnd) {
  while (at < lines.length && !isEnd(lines[at], at)) at += 1;
  return at;
}

/** Text in which references like `&amp;` stay. */
const entities = (text) => escaped(text).replace(/&amp;(#?\w{1,32};)/g, "&$1");
