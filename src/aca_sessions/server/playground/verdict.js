/** Describe in words how a cell ended and what happened to the session's state. */

import { element, shownName, size, span } from "./dom.js";

const MOST_NAMED = 8;

/** The line below a cell. `failed` names what failed in a cell that went on. */
export function verdict(result, { failed = "" } = {}) {
  const { kind } = result.state;
  const mood = kind === "lost" || kind === "unknown" ? "bad" : kind === "rolled_back" || result.error || failed ? "warn" : "good";
  const outcome = wasRun(result) ? `${outcomeOf(result)} ${span(result.seconds)}${failed && `, but ${failed}`}` : "Not run";
  const variables = result.variables.filter(({ type }) => !/^(type|module)$/.test(type ?? "")); // imports are no news
  const changes = [...variables.map(variable), ...result.files.map(file), ...result.processes.map(process)];
  const more = changes.length > MOST_NAMED ? [`and ${changes.length - MOST_NAMED} more`] : [];
  return element(
    "div",
    { class: `verdict ${mood}`, "data-state": stateText(result.state) },
    element("p", {}, element("span", { class: "outcome" }, `${outcome}.`), " ", element("span", { class: "state" }, told(result.state))),
    changes.length ? element("ul", { class: "changes" }, ...[...changes.slice(0, MOST_NAMED), ...more].map((text) => element("li", {}, text))) : "",
  );
}

/** The server measures the seconds of a cell that it runs, and they are never 0. */
export const wasRun = ({ error, seconds }) => seconds > 0 || !/^(NotRun|KeyboardInterrupt|SnapshotError)$/.test(error?.name ?? "");

function outcomeOf({ error, isInterrupted }) {
  if (!error) return "Done in";
  return isInterrupted && error.name === "KeyboardInterrupt" ? "Interrupted after" : "Failed in";
}

/** The state as results write it: `lost: memory`. */
export const stateText = (state) => (state.reason ? `${state.kind}: ${state.reason}` : state.kind);

/** The state and its consequence, which the server sends because models read it, too. */
export function told(state) {
  const follows = state.consequence;
  if (state.kind === "kept") return state.processes === "ended" ? "State kept; background processes were ended." : "State kept.";
  if (state.reason === "expired") return `State lost: the server had no such session any more. It expired, or the server was restarted: ${follows}.`;
  const kind = state.kind === "untold" ? "not told" : state.kind.replace("_", " ");
  return `State ${kind}${state.reason ? ` (${state.reason})` : ""}: ${follows}.`;
}

function variable({ name, kind, type, shape, size: bytes }) {
  if (kind === "deleted") return `${shownName(name)} deleted`;
  return [`${shownName(name)} ${kind}:`, type, shape?.length ? shape.join("×") : "", bytes > 100_000 ? size(bytes) : ""].filter(Boolean).join(" ");
}

const file = ({ path, kind, size: bytes }) => `${shownName(path)} ${kind}${kind === "deleted" ? "" : ` (${size(bytes)})`}`;
const process = ({ pid, name }) => `${shownName(name)} (${pid}) goes on`;
