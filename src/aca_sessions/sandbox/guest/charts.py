"""Charts of plotly and altair as JSON and as one HTML document.

plotly's document contains its script (5 MB). altair's does if vl-convert is installed; otherwise it loads Vega from a public address, so
the reader needs a network. Neither is drawn as an image here.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PLOTLY = "application/vnd.plotly.v1+json"
_MOST_NAMED = 8


def forms(value: Any) -> dict[str, Any] | None:
    """Return the forms of a chart, or None for any other value."""
    if _is_a(value, "plotly.basedatatypes", "BaseFigure"):
        return completed({PLOTLY: json.loads(value.to_json())})
    if _is_a(value, "altair", "TopLevelMixin"):
        return _of_altair(value)
    return None


def completed(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a chart published by itself (`figure.show()`), with the forms that it left out."""
    if PLOTLY not in data or "text/html" in data or "plotly" not in sys.modules:
        return data
    figure = data[PLOTLY]
    try:
        plain = {key: part for key, part in figure.items() if key != "config"}
        html = sys.modules["plotly"].io.to_html(plain, config=figure.get("config"), include_plotlyjs=True, validate=False)
        return {"text/plain": _describe_plotly(figure)} | data | {"text/html": html}
    except Exception as error:
        print(f"{PLOTLY} could not be made HTML: {type(error).__name__}", file=sys.stderr)
        return data


def _of_altair(chart: Any) -> dict[str, Any]:
    altair = sys.modules["altair"]
    spec = chart.to_dict()
    version = str(altair.SCHEMA_VERSION).partition(".")[0]
    data = {"text/plain": _describe_altair(spec), f"application/vnd.vegalite.{version}+json": spec}
    try:
        return data | {"text/html": chart.to_html(inline=True)}
    except ImportError:
        return data | {"text/html": chart.to_html()}


def _is_a(value: Any, module: str, name: str) -> bool:
    known = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(known, type) and issubclass(type(value), known)


def _describe_plotly(figure: dict[str, Any]) -> str:
    """Return a description of a plotly figure for readers who do not see it."""
    title = figure.get("layout", {}).get("title", "")
    title = title.get("text", "") if isinstance(title, dict) else title
    traces = [" ".join(filter(None, (trace.get("type", "scatter"), trace.get("name")))) for trace in figure.get("data", [])]
    return f"plotly Figure {title} [{', '.join(traces[:_MOST_NAMED])}]".replace("  ", " ")


def _describe_altair(spec: dict[str, Any]) -> str:
    mark = spec.get("mark", "")
    mark = mark.get("type", "") if isinstance(mark, dict) else mark
    axes = {
        channel: part.get("field") or part.get("aggregate") for channel, part in spec.get("encoding", {}).items() if isinstance(part, dict)
    }
    drawn = ", ".join(f"{channel}: {field}" for channel, field in list(axes.items())[:_MOST_NAMED] if field)
    title = spec.get("title", "")
    return " ".join(filter(None, ("altair Chart", title if isinstance(title, str) else "", mark, f"({drawn})" if drawn else "")))
