/** HTML that code made, written anew from what is known to be harmless.
 *
 * The frame that shows it runs no script, and the page's policy lets it load nothing. But no policy holds back `<link rel="preconnect">`
 * and `dns-prefetch`: a session without a network could send data out by way of its reader's browser, as names that are looked up.
 */

import { coloursOf } from "./colours.js";

const KEPT = words(
  "a abbr article aside b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em figcaption figure " +
    "font footer h1 h2 h3 h4 h5 h6 header hr i img ins kbd li main mark meter ol p pre progress q s samp section small span strike strong " +
    "sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr",
);
const DROPPED = words("script style template iframe frame frameset noframes noembed noscript object embed applet link meta base title math audio video");
const VOID = words("br col hr img wbr");
const ATTRIBUTES = words("align alt border class colspan dir height high lang low max min open optimum rowspan scope span start title valign value width");
const PICTURE = /^data:image\/(?:png|jpeg|gif|webp|svg\+xml)[;,]/i;
const FORMULA = /\ue000(\d{1,5})\ue001/g;
const DEEPEST = 300;

/** The same content, of known elements and attributes only; pictures are those that it brings itself.
 *
 * `formulas` is MathML that this page made. It goes in the place of its marks, in text and nowhere else, and each only once: code that
 * knows the marks could repeat a formula without end.
 */
export function cleaned(html, policy, formulas = []) {
  const parsed = new DOMParser().parseFromString(policy.createHTML(html), "text/html");
  return parsed.body ? content(parsed.body, 0, { formulas: [...formulas], colours: coloursOf(parsed) }) : "";
}

function content(node, depth, given) {
  if (depth > DEEPEST) return "";
  return [...node.childNodes].map((child) => written(child, depth + 1, given)).join("");
}

function written(node, depth, given) {
  const { formulas, colours } = given;
  if (node.nodeType === Node.TEXT_NODE) return escaped(node.data).replace(FORMULA, (_, place) => formulas.splice(place, 1, "")[0] ?? "");
  if (node.nodeType !== Node.ELEMENT_NODE) return "";
  const name = node.localName;
  if (name === "svg") return `<img alt="" src="${escaped(picture(node))}">`;
  if (DROPPED.has(name)) return "";
  if (!KEPT.has(name)) return content(node, depth, given);
  const { ground, text, bold } = (/^t[dh]$/.test(name) && colours.get(node.id)) || {};
  const opening = `<${name}${attributes(node)}${ground ? ` bgcolor="${ground}"` : ""}>`;
  if (VOID.has(name)) return opening;
  const inner = content(node, depth, given);
  const coloured = text ? `<font color="${text}">${inner}</font>` : inner;
  return `${opening}${bold ? `<b>${coloured}</b>` : coloured}</${name}>`;
}

function attributes(node) {
  const kept = [...node.attributes].filter(({ name, value }) => ATTRIBUTES.has(name) || (name === "src" && PICTURE.test(value)));
  return kept.map(({ name, value }) => ` ${name}="${escaped(value)}"`).join("");
}

/** As an image it runs nothing and loads nothing. */
const picture = (svg) => `data:image/svg+xml,${encodeURIComponent(wellFormed(new XMLSerializer().serializeToString(svg)))}`;

/** Without surrogates that have lost their other half, which cannot be written down. */
export const wellFormed = (text) => text.replace(/[\ud800-\udfff]/gu, "");

export const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/** The set of the words of a text. */
export function words(text) {
  return new Set(text.split(" "));
}
