/** Python, coloured: for the eye only. */

import { element } from "./dom.js";

const TEXT = String.raw`[rbfu]{0,2}(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)`;
const TOKEN = new RegExp(`(?<comment>#.*)|(?<text>${TEXT})|(?<number>\\b\\d[\\w.]*)|(?<word>[^\\W\\d]\\w*)`, "gi");
const KEYWORDS = new Set(
  ("False None True and as assert async await break case class continue def del elif else except finally for from global if import in is " +
    "lambda match nonlocal not or pass raise return try while with yield").split(" "),
);
const MOST = 50_000; // characters; longer source is shown as it is

/** The source as text and spans. */
export function highlighted(source) {
  if (source.length > MOST) return [source];
  const parts = [];
  let from = 0;
  for (const token of source.matchAll(TOKEN)) {
    const kind = kindOf(token.groups, source[token.index + token[0].length]);
    if (!kind) continue;
    parts.push(source.slice(from, token.index), element("span", { class: `py-${kind}` }, token[0]));
    from = token.index + token[0].length;
  }
  return [...parts, source.slice(from)];
}

function kindOf({ comment, text, number, word }, next) {
  if (comment !== undefined) return "comment";
  if (text !== undefined) return "text";
  if (number !== undefined) return "number";
  if (KEYWORDS.has(word)) return "keyword";
  return next === "(" ? "call" : "";
}
