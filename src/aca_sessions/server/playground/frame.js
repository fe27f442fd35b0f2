/** HTML that code of a session made: cleaned, and in a frame without scripts, whose origin is its own. The one place where text becomes HTML. */

import { part } from "./api.js";
import { cleaned } from "./clean.js";
import { element } from "./dom.js";
import { shown } from "./terminal.js";

const policy = globalThis.trustedTypes?.createPolicy("sandboxed-frame", { createHTML: (html) => html }) ?? { createHTML: (html) => html };
// The style is written into the frame: its origin is `null`, which the server refuses. The page's policy permits this very text, by its hash.
const STYLE = await part("frame.css");
const HEAD = `<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>${STYLE}</style>`;

/** HTML that runs and loads nothing, as text. */
export const safeHtml = (html) => cleaned(html, policy);

const [ROW, LINE, PICTURE, LEAST, MOST] = [29, 24, 220, 44, 380]; // pixels

/** A frame that shows some HTML, whose height can be dragged; or the text in its place, where scripts would have made all of it. */
export function framed(html, text) {
  const clean = safeHtml(html);
  const note = /<script\b/i.test(html) ? element("p", { class: "note" }, "Scripts of this output do not run here.") : "";
  if (!/<img /.test(clean) && !clean.replace(/<[^>]*>/g, "").trim()) return element("div", {}, shown(text, "value"), note);
  const frame = element("iframe", { sandbox: "", referrerpolicy: "no-referrer", title: "HTML that the cell displayed" });
  frame.srcdoc = policy.createHTML(HEAD + clean);
  const holder = element("div", { class: "framed" }, frame);
  holder.style.height = `${guessedHeight(clean)}px`;
  return element("div", {}, holder, note);
}

/** The page cannot look into the frame, so its height is guessed from its content. */
function guessedHeight(clean) {
  const count = (pattern) => clean.match(pattern)?.length ?? 0;
  const rows = count(/<tr\b/g);
  const lines = rows ? 0 : count(/<(?:p|li|h\d|br|pre|div)\b/g) + clean.replace(/<[^>]*>/g, "").length / 90;
  const guess = rows * ROW + lines * LINE + count(/<img\b/g) * PICTURE;
  return Math.round(Math.min(MOST, Math.max(LEAST, guess + 20)));
}
