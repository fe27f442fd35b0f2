/** The server's HTTP API. */

const VERSION = "2025-10-02-preview";
const HERE = new URL("./", location.href);
let key = "";
let offered = new Set();
let onKeyRefused = () => {};
const parts = new Map();
const lives = new Map(); // session → the mark of the life that was last seen of it

/** An answer that is not a success, or none at all (status 0). */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Set the key, and return whether the server accepts it. */
export async function signIn(given) {
  if (!/^[\x20-\x7e]*$/.test(given)) return false; // no header can hold it
  key = given;
  try {
    await request("GET", "listSessions");
    return true;
  } catch (problem) {
    key = "";
    if (problem.status === 401) return false;
    throw problem;
  }
}

/** Call `act` whenever the server refuses the key that this page has. */
export function whenKeyRefused(act) {
  onKeyRefused = act;
}

/** Forgets the key. */
export function signOut() {
  key = "";
}

/** Whether the server has something that goes beyond Azure's API, by name. */
export const offers = (extension) => offered.has(extension);

/** The answer to a request; a Problem for everything that is not a success. */
export async function request(method, path, { session, query = {}, headers = {}, json, body, signal } = {}) {
  const url = new URL(path, HERE);
  const named = { "api-version": VERSION, ...(session === undefined ? {} : { identifier: session }), ...query };
  for (const [name, value] of Object.entries(named)) url.searchParams.set(name, value);
  const content = json === undefined ? body : JSON.stringify(json);
  const answer = await sent(url, { method, headers: { ...ownHeaders(json), ...headers }, body: content, signal });
  const extensions = answer.headers.get("x-aca-sessions-extensions") ?? "";
  offered = new Set(extensions.split(",").map((word) => word.trim()).filter(Boolean));
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

/** The JSON of an answer. */
export async function asked(method, path, options) {
  const answer = await request(method, path, options);
  return answer.status === 204 ? null : answer.json();
}

/** Whether an answer is the first of another life of its session than the one that this page knew. */
export function beganAnew(session, answer) {
  const [known, now] = [lives.get(session), answer.headers.get("x-ms-session-guid")];
  if (now) lives.set(session, now);
  return Boolean(known && now && known !== now);
}

// Where each session's ledger was at the last result that this page showed. Cells of the page's own do not move it, so what they hear of
// is reported with the user's next cell.
const positions = new Map();

/** The header that names that position. */
export const since = (session) => (positions.has(session) ? { "x-aca-sessions-since": positions.get(session) } : {});

/** Moves the position of a session: to the end of a result that is shown, or to an entry that the user asked for. */
export function moveTo(session, ledger, position) {
  if (ledger) positions.set(session, `${ledger}:${position}`);
}

/** Forgets the life of a session that was ended on purpose. */
export const forgetLife = (session) => lives.delete(session);

/** Raise a Problem if the server cannot be reached: what is not sent then did certainly not run. */
export const reach = () => sent(HERE, { method: "HEAD" });

/** What a part of this page holds: no key is needed for it. It is loaded once, so that a cell of the page's own is sent at once. */
export function part(path) {
  if (!parts.has(path)) parts.set(path, sent(new URL(`playground/${path}`, HERE), { method: "GET" }).then((answer) => answer.text()));
  parts.get(path).catch(() => parts.delete(path));
  return parts.get(path);
}

function ownHeaders(json) {
  const type = json === undefined ? {} : { "content-type": "application/json" };
  return { "x-aca-sessions-rich": "1", ...(key ? { authorization: `Bearer ${key}` } : {}), ...type };
}

async function sent(url, options) {
  try {
    return await fetch(url, { ...options, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "Unreachable", "the server did not answer: check that it still runs");
  }
}

async function problemOf(answer) {
  if (answer.status === 401) {
    onKeyRefused();
    return new Problem(401, "Unauthorized", "the server does not take the key of this page: enter its key, and send this again");
  }
  const body = await answer.json().catch(() => ({}));
  const content = body.error ?? body;
  const [, count, most] = content.message?.match(/There are already '(\d+)' active sessions and the maximum active sessions count is '(\d+)'/) ?? [];
  if (most) content.message = `the server is full (${count} of ${most} sessions): end one that is not needed, or try again when one is idle`;
  return new Problem(answer.status, content.code ?? "Unknown", content.message ?? content.title ?? `the server answered ${answer.status}`);
}
