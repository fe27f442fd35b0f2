/** Cells of a session: start each once, follow it while it runs, and return its result. A cell that may have run is never sent again. */

import { Problem, asked, beganAnew, moveTo, offers, part, reach, request, since } from "./api.js";
import { randomName } from "./dom.js";

const LONGEST_POLL = 25; // seconds
const [FIRST_POLL, WAITING_POLL] = [0.2, 1]; // seconds, until a cell has begun: the server sends no event then
const UNWATCHED_POLL = 1000; // milliseconds; browsers have six connections to a server, and one that waits takes one
const OUTPUT_LIMIT = 1 << 20;
const TIMEOUT = 3600; // seconds of a cell that a person watches and can interrupt
const PATIENCE = [200, 500, 1000, 2000]; // milliseconds between repeated requests
const OWN = "page-own-"; // begins the ids of cells that no user wrote
const UNTOLD = { kind: "untold", reason: null, consequence: "this endpoint does not say what happened to the variables" };
const NO_REPLY = { kind: "unknown", reason: "no reply", consequence: "variables and files may have changed: look at one before you rely on it" };
const CRASH = { kind: "lost", reason: "crash", consequence: "variables from before are gone, files are kept" };
const EXPIRED = { kind: "lost", reason: "expired", consequence: "variables and files from before are gone" };

/** Run a cell and return its result. `reader` gets its events, `onStarted` its id, and `onNumbered` its place in the session's history. */
export async function run(session, code, { transactional, reader, onStarted, onNumbered }) {
  const id = randomName("page-");
  onStarted(id);
  const headers = { "operation-id": id, "x-aca-sessions-answered": "input, network", ...since(session) };
  headers["x-aca-sessions-after-success"] = "1";
  if (transactional) headers["x-aca-sessions-transactional"] = "1";
  let lost = null;
  await reach();
  try {
    const answer = await request("POST", "executions", { session, headers, json: { ...call(code, "Asynchronous"), ...(offers("events") ? { timeoutInSeconds: TIMEOUT } : {}) } });
    onNumbered(Number(answer.headers.get("x-aca-sessions-number")));
    lost = beganAnew(session, answer) ? EXPIRED : null;
  } catch (problem) {
    if (problem.status !== 0) throw problem; // refused: it did not run
    onNumbered(0);
  }
  const result = await follow(session, id, reader);
  moveTo(session, result.ledger?.id, result.ledger?.end);
  return lost && result.state.kind === "untold" ? { ...result, state: lost } : result;
}

/** Return the result of a cell that was started, here or elsewhere. `reader` gets its events, and knows whether the page is looked at. */
export async function follow(session, id, reader) {
  try {
    return offers("events") ? await followed(session, id, reader) : await polled(session, id, reader);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    return { ...NOTHING, error: hostError(`Whether the cell ran is not known: ${problem.message}`), state: NO_REPLY };
  }
}

/** Answer a question of a cell; null refuses. An answer that comes too late is ignored. */
export async function reply(session, id, number, text) {
  try {
    await request("POST", `executions/${id}/replies`, { session, json: { number, text } });
  } catch (problem) {
    if (problem.status !== 409) throw problem;
  }
}

/** Interrupt a cell. Its result shows what that did. Code that does not react is killed after some seconds, unless this is `gentle`. */
export const interrupt = (session, id, { gentle = false } = {}) =>
  request("POST", `executions/${id}/interrupt`, { session, headers: gentle ? { "x-aca-sessions-gentle": "1" } : {} });

/** Return an id for a cell of the page's own. */
export const ownId = () => randomName(OWN);

/** Run a cell of the page's own and return `[answer, result]`. The answer is a line of JSON, which code of the session can forge. */
export async function ownCell(session, id, name, ...values) {
  const source = await part(`snippets/${name}.py`);
  const code = `(lambda scope: (exec(${JSON.stringify(source)}, scope), scope[${JSON.stringify(name)}](globals(), *${JSON.stringify(values)}))[1])({})`;
  const headers = { "operation-id": id, "x-aca-sessions-gentle": "1", ...since(session) };
  const result = resultOf(await asked("POST", "executions", { session, headers, json: call(code, "Synchronous") }));
  return [parsed(result.stdout), result];
}

function parsed(stdout) {
  try {
    return JSON.parse(stdout.trimEnd().split("\n").at(-1));
  } catch {
    return null;
  }
}

function call(code, executionType) {
  return { codeInputType: "Inline", executionType, code, outputStreamsMaxLength: OUTPUT_LIMIT };
}

async function followed(session, id, reader) {
  for (let [after, longest] = [0, FIRST_POLL]; ; ) {
    const query = { after, wait: reader.looks() ? longest : 0 };
    const page = await patiently(() => asked("GET", `executions/${id}/events`, { session, query, headers: since(session) }));
    page.events.forEach((event) => reader.hear(event));
    if (page.execution) return resultOf(page.execution, page.interrupted);
    after = page.after;
    longest = page.elapsed === null ? WAITING_POLL : LONGEST_POLL;
    if (page.elapsed !== null) reader.begin(page.elapsed);
    if (query.wait === 0) await pause(UNWATCHED_POLL);
  }
}

async function polled(session, id, reader) {
  for (let wait = 60; ; wait = Math.min(wait * 1.5, 2000)) {
    const record = await patiently(() => asked("GET", `executions/${id}`, { session, headers: since(session) }));
    if (record.result || record.acaSessions) return resultOf(record);
    if (record.status === "Running") reader.begin(0);
    await pause(wait);
  }
}

/** Repeat a read that got no response. */
async function patiently(read) {
  for (const wait of PATIENCE) {
    try {
      return await read();
    } catch (problem) {
      if (![0, 502, 503, 504].includes(problem.status)) throw problem;
    }
    await pause(wait);
  }
  return read();
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const NOTHING = { seconds: 0, count: null, stdout: "", text: null, displays: [], error: null, files: [], variables: [], processes: [], state: UNTOLD };

/** An error without a traceback. */
const hostError = (message) => ({ name: "", message, title: message, traceback: message });

/** The result of an execution that has ended, from the server's answer; and whether it was interrupted. */
export function resultOf(record, isInterrupted = false) {
  const rich = record.acaSessions;
  if (!rich) return { ...NOTHING, seconds: (record.result.executionTimeInMilliseconds ?? 0) / 1000, ...plainResult(record) };
  const error = rich.error && errorOf(rich.error);
  const { duration: seconds, executionCount: count, stdout, text, displays, files, variables, processes, state, ledger } = rich;
  return { seconds, count, stdout, text, displays, files, variables, processes, state, ledger, error, isInterrupted };
}

function errorOf({ name, message, traceback }) {
  const title = [name, message].filter(Boolean).join(": ");
  return { name, message, title, traceback: traceback || title };
}

/** Decode Azure's own body. Only its texts for a time-out or a crash show what happened to the variables. */
function plainResult({ status, result }) {
  const value = result.executionResult;
  const image = value?.type === "image" ? [{ [`image/${value.format}`]: value.base64_data }] : [];
  const text = image.length || value === "" || value === null || value === undefined ? null : String(value);
  const failed = status === "Succeeded" ? "" : result.stderr || "The cell failed";
  const [, name, message] = failed.trimEnd().split("\n").at(-1).match(/^([\w.]+)(?:: (.*))?$/) ?? [null, "Error", failed];
  const error = failed ? { name, message: message ?? "", title: "", traceback: failed } : null;
  return { stdout: result.stdout ?? "", warnings: failed ? "" : result.stderr, text, displays: image, error, state: plainState(failed) };
}

function plainState(stderr) {
  if (stderr.startsWith("Request timed out")) return NO_REPLY;
  if (stderr.startsWith("Execution aborted") || stderr.includes("Kernel restarted")) return CRASH;
  return UNTOLD;
}
