/** Names of sessions, for people. An identifier is a secret, so it is never shown: a session without a name of its own has two words. */

import { randomName } from "./dom.js";

const KINDS = (
  "amber autumn bold brave bright brisk calm candid clear clever coral cosy crisp curious dapper deep eager early easy fair fast fine fresh gentle glad " +
  "golden good grand green happy honest humble jolly keen kind light little lively lucky merry mild mellow modest neat new noble patient plain polite " +
  "proud quick quiet ready round silent silver simple smart snowy soft solid sunny swift tidy"
).split(" ");
const THINGS = (
  "acorn alder anchor apple badger basil beacon beaver birch bridge brook canyon cedar cherry clover comet compass crane creek delta dune falcon fern " +
  "field finch fjord forest fox garden glacier grove harbor hazel heron hill island juniper lagoon lake lantern lark maple marten meadow moon mountain " +
  "oak orchard otter owl pebble pine plum pond raven reef river robin sparrow spruce stone swan tulip valley willow"
).split(" ");
const LONGEST = 64;
const UNSHOWN = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

/** The two words of a session without a name: the same in every tab. They do not lead back to the identifier. */
export function wordsOf(identifier) {
  let hash = 0x811c9dc5; // FNV-1a
  for (const letter of identifier) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193);
  hash ^= hash >>> 15;
  return `${KINDS[(hash >>> 8) % KINDS.length]} ${THINGS[(hash >>> 16) % THINGS.length]}`;
}

/** An identifier that cannot be guessed, whose words are not in use. */
export function newIdentifier(prefix, names) {
  for (let tries = 0; ; tries += 1) {
    const identifier = randomName(prefix);
    if (tries === 100 || !names.includes(wordsOf(identifier))) return identifier;
  }
}

/** Why a name cannot be given, as the server sees it, or nothing. */
export function whyNotNamed(name) {
  if ([...name].length > LONGEST) return `A name has at most ${LONGEST} characters, this one has ${[...name].length}.`;
  return UNSHOWN.test(name) ? "This name has characters that cannot be shown." : "";
}
