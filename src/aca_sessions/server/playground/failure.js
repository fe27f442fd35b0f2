/** An error as people look for it: its last line first, then where it happened. Frames of libraries are folded. */

import { element } from "./dom.js";
import { plain, shown } from "./terminal.js";

const FRAME = /^\s*(?:File |Cell In ?\[|<ipython-input)/;
const LIBRARY = /^\s*File .*(?:(?:site|dist)-packages|\/lib(?:64)?\/python\d|\/\.packages\/|\.py[xd]:|\.pxi:|<frozen |<string>)/;
const HEADING = /^-{10,}$|Traceback \(most recent call last\)/;
const [MOST, LONGEST_TITLE] = [100, 2000];

/** The element of an error; `title` is its name and message. */
export function failure({ title, traceback }) {
  const text = plain(traceback);
  const heading = (title || text.trimEnd().split("\n").at(-1)).slice(0, LONGEST_TITLE);
  const parts = partsOf(text);
  if (parts.at(-1)?.kind === "text" && heading.trim().startsWith(parts.at(-1).lines.join("\n").trim().replace(/:$/, ""))) parts.pop();
  return element("div", { class: "error" }, element("p", { class: "error-title" }, heading), ...folded(parts));
}

/** The lines of a traceback: its frames, and the text between them. */
function partsOf(text) {
  const parts = [];
  let open = null; // the frame whose lines follow
  for (const line of text.split("\n")) {
    const indented = /^\s/.test(line);
    if (FRAME.test(line) && parts.length < MOST) parts.push((open = { kind: LIBRARY.test(line) ? "library" : "own", indented, lines: [line] }));
    else if (open && line.trim() && (!open.indented || indented)) open.lines.push(line);
    else {
      open = null;
      if (parts.at(-1)?.kind !== "text") parts.push({ kind: "text", lines: [] });
      if (!HEADING.test(line)) parts.at(-1).lines.push(line);
    }
  }
  return parts.filter(({ lines }) => lines.some((line) => line.trim()));
}

function folded(parts) {
  const made = [];
  for (let place = 0; place < parts.length; ) {
    const { kind } = parts[place];
    const end = parts.findIndex((one, other) => other > place && one.kind !== kind);
    const run = parts.slice(place, end < 0 ? parts.length : end);
    const frames = shown(run.map(({ lines }) => lines.join("\n").replace(/^\n+|\n+$/g, "")).join("\n\n"), "frames");
    const count = run.length === 1 ? "1 frame of a library" : `${run.length} frames of libraries`;
    made.push(kind === "library" ? element("details", {}, element("summary", {}, count), frames) : frames);
    place += run.length;
  }
  return made;
}
