/** The files of a session: listed, dropped here, downloaded, deleted. */

import { asked, request } from "./api.js";
import { button, element, randomName, showList, shownName, size } from "./dom.js";

const MOST = 300;

/** All files below the session's folder. */
export async function listFiles(session) {
  const { value } = await asked("GET", "files", { session, query: { recursive: "true" } });
  return value.filter((one) => one.type !== "directory").map((one) => ({ ...one, folder: one.directory === "." ? "" : (one.directory ?? "") }));
}

/** Writes a file into the session; `most` is how many bytes the server takes. */
export async function upload(session, file, most) {
  const named = `${shownName(file.name)} (${size(file.size)})`;
  if (file.size > most) throw new Error(`${named} is too large: this server takes files of up to ${size(most)}.`);
  await request("POST", "files", { session, ...formOf(file) }).catch((problem) => {
    problem.message = `${named}: ${problem.message}`;
    throw problem;
  });
}

/** A form with one file. Browsers would write `%22` for a quotation mark in its name, as if it were part of the name. */
function formOf(file) {
  const boundary = randomName("form-");
  const name = file.name.replace(/[\\"]/g, "\\$&").replace(/[\r\n]/g, encodeURIComponent);
  const head = `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="${name}"\r\nContent-Type: application/octet-stream\r\n\r\n`;
  const headers = { "content-type": `multipart/form-data; boundary=${boundary}` };
  return { headers, body: new Blob([head, file, `\r\n--${boundary}--\r\n`]) };
}

/** The list of files, each with what may be done to it by `doing`. */
export function showFiles(holder, session, files, doing) {
  if (!files.length) {
    holder.replaceChildren(element("p", { class: "empty" }, "No files yet. Drop some here."));
    return;
  }
  const rows = files.slice(0, MOST).map((file) => [JSON.stringify([session, file.folder, file.name, file.sizeInBytes]), () => fileRow(session, file, doing)]);
  const more = files.length - MOST;
  if (more > 0) rows.push([`${more}`, () => element("li", { class: "note" }, `and ${more} more`)]);
  showList(holder, rows);
}

/** Whatever is dropped onto an element is uploaded. */
export function takeDrops(target, take) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    target.classList.toggle("dropping", depth > 0);
  };
  target.addEventListener("dragenter", (event) => holdsFiles(event) && mark(1));
  target.addEventListener("dragleave", (event) => holdsFiles(event) && mark(-1));
  target.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  target.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(-depth);
    take([...event.dataTransfer.files]);
  });
}

function fileRow(session, file, doing) {
  const path = shownName(file.folder ? `${file.folder}/${file.name}` : file.name);
  const get = () => download(session, file);
  const remove = () => request("DELETE", `files/${encodeURIComponent(file.name)}`, at(session, file));
  return element(
    "li",
    { class: "row" },
    element("span", { class: "name", title: path }, path),
    element("span", { class: "facts" }, size(file.sizeInBytes)),
    button("Download", (made) => doing(get, made), { class: "quiet", "aria-label": `Download ${path}` }),
    button("Delete", (made) => doing(remove, made), { sure: "Delete it", class: "quiet", "aria-label": `Delete ${path}` }),
  );
}

const at = (session, file) => ({ session, query: file.folder ? { path: file.folder } : {} });

async function download(session, file) {
  const answer = await request("GET", `files/${encodeURIComponent(file.name)}/content`, at(session, file));
  save(await answer.blob(), file.name);
}

/** Hands a file to the reader's browser. */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
