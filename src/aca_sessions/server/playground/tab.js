/** What this tab remembers when it is loaded anew: the key and its session. Other tabs cannot read it, and closing the tab forgets it. */

const PLACE = `aca-sessions ${location.pathname}`;

/** What was remembered, or nothing where the browser keeps nothing. */
export function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(PLACE)) ?? {};
  } catch {
    return {};
  }
}

/** Remembers some facts, beside the others. */
export function remember(facts) {
  try {
    sessionStorage.setItem(PLACE, JSON.stringify({ ...remembered(), ...facts }));
  } catch {
    // The browser keeps nothing here: a reload asks for the key.
  }
}

/** Forgets everything. */
export function forget() {
  try {
    sessionStorage.removeItem(PLACE);
  } catch {
    // nothing was kept
  }
}
