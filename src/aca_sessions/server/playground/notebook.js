/** The cells of a session as a Jupyter notebook (nbformat 4). What code displayed is made safe: readers may trust the file. */

import { chartOf, safeChart } from "./chart.js";
import { wellFormed } from "./clean.js";
import { isBlank, layoutOf, needsScripts, safeHtml } from "./frame.js";
import { stateText } from "./verdict.js";

const IMAGES = ["image/png", "image/jpeg", "image/gif"];
const BASE64 = /^[A-Za-z0-9+/=\s]+$/;
const KERNEL = { display_name: "Python 3", language: "python", name: "python3" };

/** A notebook, as values. `leftOut` counts cells that are no longer kept. */
export function notebook(cells, leftOut) {
  const metadata = { kernelspec: KERNEL, language_info: { name: "python" }, aca_sessions: { left_out: leftOut } };
  return { cells: cells.flatMap(withNote), metadata, nbformat: 4, nbformat_minor: 5 };
}

/** The best name of a file for a session. */
export const fileName = (name) => `${name.replace(/[^\p{L}\p{N} ._-]/gu, "_").replace(/^\.+/, "_")}.ipynb`;

/** A cell; with a line before the first one that a rollback undid, because running all of the notebook does not lead to the same state. */
function withNote(cell, place, cells) {
  const isFirst = cell.isUndone && !cells[place - 1]?.isUndone;
  const note = { cell_type: "markdown", id: `note-${place + 1}`, metadata: {}, source: `*${cell.isUndone}: leave out the cells that are marked \`rolled_back\`.*` };
  return isFirst ? [note, codeCell(cell, place)] : [codeCell(cell, place)];
}

function codeCell({ source, result, output, isUndone }, place) {
  const state = result && result.state.kind !== "kept" ? { state: stateText(result.state) } : {};
  const facts = { ...state, ...(isUndone ? { rolled_back: true } : {}) };
  const noted = Object.keys(facts).length ? { aca_sessions: facts } : {};
  const count = result?.count ?? null; // as tracebacks name it
  const outputs = output.parts.map((part) => outputOf(part, count)).filter(Boolean);
  return { cell_type: "code", execution_count: count, id: `cell-${place + 1}`, metadata: noted, outputs, source: wellFormed(source) };
}

function outputOf(part, count) {
  if (part.kind === "stdout" || part.kind === "stderr") return { output_type: "stream", name: part.kind, text: readable(part.text) };
  if (part.kind === "skipped") return { output_type: "stream", name: "stderr", text: `[${part.text}]\n` };
  if (part.kind === "display") return { output_type: "display_data", data: bundle(part.data), metadata: {} };
  if (part.kind === "value") return { output_type: "execute_result", data: { "text/plain": readable(part.text) }, metadata: {}, execution_count: count };
  const { name, message, traceback } = part.error;
  return { output_type: "error", ename: readable(name), evalue: readable(message), traceback: readable(traceback).split("\n") };
}

/** Colours stay; what else a terminal would obey goes. */
const readable = (text) => wellFormed(text).replace(/\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]/g, "");

/** The forms of a display that run and load nothing. Without any, its text in whatever form it has. */
function bundle(data) {
  const kept = {};
  const text = (type) => (typeof data[type] === "string" ? data[type] : "");
  for (const type of IMAGES) if (BASE64.test(text(type))) kept[type] = text(type);
  const drawing = text("image/svg+xml"); // becomes an image, which runs no scripts
  const { html, formulas } = (!text("text/html") && drawing ? null : layoutOf(data)) ?? { html: drawing };
  const chart = safeChart(data);
  if (chart) kept["application/vnd.plotly.v1+json"] = chart;
  const clean = html && !chartOf(data) && safeHtml(html, formulas);
  if (clean && !isBlank(clean)) kept["text/html"] = wellFormed(clean);
  const fallback = Object.keys(kept).length ? "" : (Object.values(data).find((one) => typeof one === "string") ?? "");
  const missing = !chart && !kept["text/html"] && (chartOf(data) || needsScripts(html ?? "")) ? "[An interactive output, which needs scripts, is not in this file. Run the cell to draw it.]\n" : "";
  const written = missing + (text("text/plain") || fallback);
  if (written) kept["text/plain"] = readable(written);
  return kept;
}
