/** The playground: takes the key, and joins sessions, cells and panels. */

import { offers, signIn, signOut, whenKeyRefused } from "./api.js";
import { Desk } from "./desk.js";
import { byId } from "./dom.js";
import { forget, remember, remembered } from "./tab.js";

/** A key behind `#key=` never reaches the server. It is taken, and leaves the address bar before anything else is done. */
function keyOfTheAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return found;
}

async function tryKey(key, refused) {
  const problem = byId("key-problem");
  problem.textContent = "";
  try {
    if (await signIn(key)) {
      remember({ key });
      return true;
    }
    if (kept) remember({ key: undefined });
    problem.textContent = refused;
  } catch (error) {
    problem.textContent = error.message;
  }
  return false;
}

/** Ask for the key, in the place of the page or over it. */
function knock() {
  byId("door").hidden = false;
  byId("key").value = desk ? "" : (remembered().key ?? ""); // where the server did not answer: to be tried again
  byId("key").focus();
}

/** Ask for the key again: the page with its cells stays below the form. */
function knockAgain() {
  if (!byId("door").hidden) return;
  byId("desk").inert = true;
  byId("problem").textContent = "";
  byId("key-problem").textContent = "The server does not take the key that this page had. It was probably started anew: enter the key that it has now. Cells and text stay.";
  knock();
}

function enter() {
  byId("key").value = "";
  byId("door").hidden = true;
  byId("desk").hidden = byId("desk").inert = false;
  byId("leave").hidden = false;
  if (desk) desk.goOn();
  else {
    desk = new Desk(offers);
    whenKeyRefused(knockAgain);
    desk.open();
  }
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (await tryKey(key, "The server does not take this key.")) enter();
  else byId("key").select();
});
byId("leave").addEventListener("click", () => {
  signOut();
  forget();
  location.reload();
});

let desk = null;
byId("place").textContent = location.host;
const given = keyOfTheAddress();
const kept = remembered().key;
const REFUSED = "The server does not take the key";
const refused = given !== null ? `${REFUSED} of this address.` : kept ? `${REFUSED} that this tab had.` : "";
if (await tryKey(given ?? kept ?? "", refused)) enter();
else knock();
