/** Charts of plotly: their data is JSON, and the script that draws them comes from the session, once. */

import { wellFormed } from "./clean.js";
import { button } from "./dom.js";

const PLOTLY = "application/vnd.plotly.v1+json";
const MAP = /geo$|choropleth|(?:scatter|density)map/; // types of traces

/** The data of a chart as text, or an empty text if a display does not have one. */
export const chartOf = (data) => (typeof data[PLOTLY] === "string" ? data[PLOTLY] : "");

/** A display without the page of a chart, which repeats its data beside the script of plotly (5 MB). */
export function slim(data) {
  const { "text/html": page, ...others } = data;
  return chartOf(data) && page ? others : data;
}

/** What a notebook gets of a chart: its data; or nothing if drawing it loads something, as maps do, and charts that name addresses. */
export function safeChart(data) {
  try {
    const { data: traces = [], layout = {} } = JSON.parse(chartOf(data), (_, one) => (typeof one === "string" ? wellFormed(one) : one));
    const isMap = traces.some(({ type }) => MAP.test(type)) || Object.keys(layout).some((name) => /^(?:map|geo)/.test(name));
    return isMap || namesAddress({ traces, layout }) ? null : { data: traces, layout };
  } catch {
    return null;
  }
}

/** Whether a text in a value may be an address. Packed numbers and pictures in base64 are none. */
function namesAddress(value, name = "") {
  if (typeof value === "string") return name !== "bdata" && !/^data:image\/[\w.+-]+;base64,/.test(value) && /[\/\\]{2}|:[\/\\]|https?:|ftp:/i.test(value.replace(/[\t\r\n]/g, ""));
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([key, one]) => namesAddress(one, key));
}

/** The charts of one session. Its scripts draw nothing of another one. */
export class Charts {
  /** `fetched` returns the script of plotly that the session has. */
  constructor(fetched) {
    this.fetched = fetched;
    this.script = null;
    this.areAllowed = false; // whether the scripts of all outputs run
    [this.offered, this.offeredAll] = [[], []]; // buttons on the page, and some that were
  }

  /** A page that draws a chart. Raise an Error if the session has no plotly. */
  async page(chart) {
    const { data = [], layout = {}, config = {} } = JSON.parse(chart);
    const values = [data, layout, { responsive: true, ...config }].map((one) => JSON.stringify(one).replace(/</g, "\\u003c"));
    this.script ??= this.fetched();
    try {
      return `<!doctype html><meta charset="utf-8"><div id="chart"></div><script>${await this.script}</script><script>Plotly.newPlot("chart", ${values.join()})</script>`;
    } catch (problem) {
      this.script = null;
      throw problem;
    }
  }

  /** Return the button `runs`, which runs the scripts of one output. It is pressed at once if those of all outputs may run. */
  offer(runs) {
    if (this.areAllowed) queueMicrotask(() => runs.click());
    else this.offered.push(runs);
    return runs;
  }

  /** Return a button that runs the scripts of all outputs of this session, now and later; or nothing if they run. */
  offerAll() {
    if (this.areAllowed) return "";
    const title = "Of this session, now and later, until this page is loaded anew: for code that you trust";
    const all = button("Run the scripts of all outputs", () => this.allowAll(), { class: "quiet", title });
    this.offeredAll.push(all);
    return all;
  }

  allowAll() {
    this.areAllowed = true;
    this.offeredAll.splice(0).forEach((all) => all.remove());
    for (const runs of this.offered.splice(0)) if (runs.isConnected) runs.click();
  }
}
