/** The files of a session: listed, dropped here, downloaded, deleted. */

import { asked, request } from "./api.js";
import { button, element, shownName, size } from "./dom.js";

const MOST = 300;

/** All files below the session's folder. */
export async function listFiles(session) {
  const { value } = await asked("GET", "files", { session, query: { recursive: "true" } });
  return value.filter((one) => one.type !== "directory").map((one) => ({ ...one, folder: one.directory === "." ? "" : (one.directory ?? "") }));
}

/** Writes a file into the session. */
export async function upload(session, file) {
  const form = new FormData();
  form.append("file", file, file.name);
  await request("POST", "files", { session, body: form });
}

/** The list of files, each with what may be done to it. */
export function showFiles(holder, session, files, { changed, failed }) {
  if (!files.length) {
    holder.replaceChildren(element("p", { class: "empty" }, "No files yet. Drop some here."));
    return;
  }
  const rows = files.slice(0, MOST).map((file) => fileRow(session, file, changed, failed));
  if (files.length > MOST) rows.push(element("li", { class: "note" }, `and ${files.length - MOST} more`));
  holder.replaceChildren(element("ul", { class: "plain" }, ...rows));
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

function fileRow(session, file, changed, failed) {
  const path = shownName(file.folder ? `${file.folder}/${file.name}` : file.name);
  const get = () => download(session, file).catch(failed);
  const remove = () => request("DELETE", `files/${encodeURIComponent(file.name)}`, at(session, file)).then(changed, failed);
  return element(
    "li",
    { class: "row" },
    element("span", { class: "name", title: path }, path),
    element("span", { class: "facts" }, size(file.sizeInBytes)),
    button("Download", get, { class: "quiet", "aria-label": `Download ${path}` }),
    button("Delete", remove, { sure: "Delete it", class: "quiet", "aria-label": `Delete ${path}` }),
  );
}

const at = (session, file) => ({ session, query: file.folder ? { path: file.folder } : {} });

async function download(session, file) {
  const answer = await request("GET", `files/${encodeURIComponent(file.name)}/content`, at(session, file));
  const address = URL.createObjectURL(await answer.blob());
  element("a", { href: address, download: file.name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
