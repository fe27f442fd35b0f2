/** The colours of table cells, as the Styler of pandas writes them: `#T_1_row0_col0 { background-color: …; color: … }`.
 *
 * They become attributes, because no policy has to permit those: a style of the session could load something, or cover the page.
 */

const MOST_STYLE = 1 << 20; // characters
const ID = /^#[\w-]+$/;
const COLOUR = /^#[0-9a-f]{6}$/;
const OTHER = /(?:^|[{;])\s*(?!(?:background-color|color|font-weight)\s*:)[\w-]+\s*:/;
const canvas = document.createElement("canvas").getContext("2d");

/** The style of cells by their ids: `{ ground, text, bold }`. */
export function coloursOf(root) {
  const found = new Map();
  for (const { textContent } of root.querySelectorAll("style")) {
    if (textContent.length > MOST_STYLE) continue;
    const sheet = new CSSStyleSheet(); // in no document, so it loads nothing
    sheet.replaceSync(textContent);
    for (const { selectorText = "", style } of sheet.cssRules) {
      const ids = selectorText.split(/,\s*/).filter((one) => ID.test(one));
      if (!ids.length || !style) continue;
      const ground = hexOf(style.backgroundColor);
      const made = { ground, text: hexOf(style.color) || (ground && readableOn(ground)), bold: /^(?:bold|[6-9]00)$/.test(style.fontWeight) };
      for (const id of ids) found.set(id.slice(1), { ...found.get(id.slice(1)), ...made });
    }
  }
  return found;
}

/** Whether styles have more than what `coloursOf` finds. */
export function hasOtherStyles(html) {
  const styles = [...html.slice(0, MOST_STYLE).matchAll(/<style(?! scoped)[^<>]*>([^<]*)/gi)].map(([, text]) => text);
  return styles.some((text) => OTHER.test(text));
}

/** A colour as `#rrggbb`, or nothing for one that is partly transparent or does not exist. */
function hexOf(colour) {
  if (!colour) return "";
  canvas.fillStyle = "#0000"; // stays, if the colour is not one
  canvas.fillStyle = colour;
  return COLOUR.test(canvas.fillStyle) ? canvas.fillStyle : "";
}

/** Black or white: a cell with a ground of its own is to be read in the light and in the dark. */
function readableOn(ground) {
  const [red, green, blue] = [1, 3, 5].map((place) => parseInt(ground.slice(place, place + 2), 16));
  return red * 0.299 + green * 0.587 + blue * 0.114 > 140 ? "#000000" : "#ffffff";
}
