/** HTML that code of a session made: cleaned, and in a frame without scripts, whose origin is its own. The one place where text becomes HTML. */

import { part } from "./api.js";
import { chartOf } from "./chart.js";
import { cleaned } from "./clean.js";
import { hasOtherStyles } from "./colours.js";
import { button, element } from "./dom.js";
import { save } from "./files.js";
import { latex, markdown } from "./markdown.js";
import { shown } from "./terminal.js";

const policy = globalThis.trustedTypes?.createPolicy("sandboxed-frame", { createHTML: (html) => html }) ?? { createHTML: (html) => html };
// The style is written into the frame: its origin is `null`, which the server refuses. The page's policy permits this very text, by its hash.
const STYLE = await part("frame.css");
const HEAD = `<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>${STYLE}</style>`;

/** What a display has to be laid out: `{ html, formulas, text, chart }`, from HTML, a chart of plotly, Markdown or LaTeX; or nothing. */
export function layoutOf(data) {
  const text = (type) => (typeof data[type] === "string" ? data[type] : "");
  const chart = chartOf(data);
  if (chart || text("text/html")) return { html: text("text/html"), text: text("text/plain"), chart };
  for (const [type, read] of [["text/markdown", markdown], ["text/latex", latex]]) {
    const made = text(type) && read(text(type));
    if (made) return { ...made, text: text(type) };
  }
  return null;
}

/** Whether HTML shows nothing, as after scripts were removed that would have drawn all of it. */
export const isBlank = (clean) => !/<img /.test(clean) && !clean.replace(/<[^>]*>/g, "").trim();

/** HTML that runs and loads nothing, as text. */
export const safeHtml = (html, formulas) => cleaned(html, policy, formulas);

/** Whether HTML has scripts, which may draw all of it. */
export const needsScripts = (html) => /<script\b/i.test(html);

const FROM_NETWORK = /<script[^>]*\ssrc\s*=(?!\s*["']?\s*data:)/i;
const ELSEWHERE = /<(?:iframe|audio|video|object|embed)\b/i;
// Enough for the twelve rows that pandas shows of a long table. What is higher scrolls, and then the frame can be dragged.
const mostHeight = () => Math.max(440, 0.6 * innerHeight);
const MOST_MEASURED = 50_000; // characters: a larger text gets the greatest height, because its layout would hold up the page
const SHEET = new CSSStyleSheet();
SHEET.replaceSync(STYLE);

/** A frame that shows a layout as high as it is, or whose height can be dragged if it is too high; or the text in its place, where scripts would have made all of it. */
export function framed({ html, formulas, text, chart }, charts) {
  const clean = chart ? "" : safeHtml(html, formulas);
  const made = element("div", {});
  const note = noteOn({ html, chart, charts }, (...shown) => made.replaceChildren(...shown));
  if (isBlank(clean)) {
    made.append(shown(text, "value"), note);
    return made;
  }
  const frame = element("iframe", { sandbox: "", referrerpolicy: "no-referrer", title: "HTML that the cell displayed" });
  frame.srcdoc = policy.createHTML(HEAD + clean);
  const holder = element("div", { class: "framed clipped" }, frame);
  if (clean.length > MOST_MEASURED) holder.style.height = `${mostHeight()}px`;
  else measure(clean, holder);
  made.append(holder, note);
  return made;
}

/** Says what of an output is not shown, and offers what may be done about it; `show` puts something in the output's place. */
function noteOn({ html, chart, charts }, show) {
  const note = element("p", { class: "note" });
  const said = (...parts) => (note.append(...parts), note);
  const page = async () => html || charts.page(chart); // a chart's page may have to be made, with the session's script of plotly
  const failed = ({ message }) => said(element("span", { class: "bad" }, ` The chart cannot be drawn: ${message}.`));
  const saving = () => page().then((text) => save(new Blob([text], { type: "text/html" }), "output.html"), failed);
  const saves = button("Save as HTML", saving, { class: "quiet", title: "In the saved file scripts run with your network: for code that you trust" });
  if (chart || (needsScripts(html) && !FROM_NETWORK.test(html))) {
    const draw = () => page().then((text) => show(drawn(text), element("p", { class: "note" }, charts.offerAll(), saves)), failed);
    const title = "They cannot reach this page, but may tell your network what they know: for code that you trust";
    return said("Scripts of this output do not run by themselves. ", charts.offer(button("Run scripts", draw, { class: "quiet", title })), saves);
  }
  if (FROM_NETWORK.test(html)) return said("This output needs scripts from the network. (Altair brings its own if vl-convert-python is installed.) ", saves);
  if (ELSEWHERE.test(html)) return said("This page shows no frames, sound or video.");
  return hasOtherStyles(html) ? said("This page shows no styles of outputs but colours of cells. ", saves) : "";
}

/** A frame in which scripts run. Its origin is its own, and the policies of its document and of this page refuse what it loads and opens.
 *
 * Two ways out stay in Chromium: the name of a frame or link is looked up before it is refused, and WebRTC. So a person has to ask for it.
 */
function drawn(html) {
  const frame = element("iframe", { sandbox: "allow-scripts", referrerpolicy: "no-referrer", title: "Output with scripts", src: new URL("drawing.html", import.meta.url).href });
  // A frame begins anew in another window each time that its session is shown again. Its own scripts can cause `load` in the same window.
  let drawnIn = null;
  frame.addEventListener("load", () => {
    if (frame.contentWindow !== drawnIn) (drawnIn = frame.contentWindow).postMessage(html, "*"); // `*`: its origin has no name
  });
  return element("div", { class: "framed clipped drawn" }, frame);
}

/** Give the holder of a frame the height of its content.
 *
 * The page cannot look into the frame. So it lays out the same clean HTML unseen, in a shadow tree with the frame's style. This is safe
 * because clean HTML has no elements, attributes or addresses that run or load anything: its only pictures are `data:`.
 */
function measure(clean, holder) {
  const copy = element("div", { class: "measure", inert: true, "aria-hidden": "true" });
  const tree = copy.attachShadow({ mode: "open" });
  tree.adoptedStyleSheets = [SHEET];
  tree.innerHTML = policy.createHTML(clean);
  // The copy is as high as its content and, if it is too wide, a scroll bar. It changes when pictures are decoded and the page gets wider.
  new ResizeObserver(() => {
    const height = Math.ceil(copy.getBoundingClientRect().height);
    holder.classList.toggle("wide", copy.scrollWidth > copy.clientWidth);
    holder.classList.toggle("clipped", height > mostHeight());
    if (height) holder.style.height = `${Math.min(height, mostHeight())}px`; // 0: in a session that is not shown
  }).observe(copy);
  holder.append(copy);
}
