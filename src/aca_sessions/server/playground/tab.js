/** What this tab remembers when it is loaded anew: the key, its session, its cells. Other tabs cannot read it, and closing the tab forgets it. */

const PLACE = `aca-sessions ${location.pathname}`;
const CELLS = `${PLACE} cells`; // apart, so that too many of them leave the rest as it is
let isForgotten = false;

/** What was remembered, or nothing where the browser keeps nothing. */
export const remembered = () => read(PLACE);

/** The cells that were kept, by their sessions. */
export const keptCells = () => read(CELLS);

/** Remembers some facts, beside the others. */
export const remember = (facts) => write(PLACE, { ...remembered(), ...facts });

/** Keeps cells in place of those of before, and returns whether there was room for them. */
export const keepCells = (cells) => write(CELLS, cells);

/** Forgets everything, and remembers nothing more until the page is loaded anew. */
export function forget() {
  isForgotten = true;
  try {
    [PLACE, CELLS].forEach((place) => sessionStorage.removeItem(place));
  } catch {
    // nothing was kept
  }
}

function read(place) {
  try {
    return JSON.parse(sessionStorage.getItem(place)) ?? {};
  } catch {
    return {};
  }
}

function write(place, value) {
  try {
    if (!isForgotten) sessionStorage.setItem(place, JSON.stringify(value));
    return true;
  } catch {
    return false; // the browser keeps nothing here, or not that much
  }
}
