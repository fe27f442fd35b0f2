"""Draw docs/pictures/trace-light.svg and trace-dark.svg: the spans of one call of `execute_python`, recorded here.

Semantic Kernel and aca-sessions record spans of their own. This program adds those of the HTTP request, the server and the cell.
"""

import asyncio
import json
import tempfile
from functools import partial
from pathlib import Path

import httpx
import uvicorn
from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from semantic_kernel import Kernel
from starlette.types import ASGIApp, Receive, Scope, Send

from aca_sessions import PythonCodeInterpreterPlugin, SessionPool, open_server
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.client.interpreter import CodeInterpreter

CELL = "from time import time_ns\nstart = time_ns()\nsum(n * n for n in range(50_000))\nprint([start, time_ns()])"
CALLS = 200
LAYERS = ("plugin", "client", "HTTP", "server", "cell")
THEMES = {  # background, text, muted text, lines, and a colour for each layer
    "light": ("#ffffff", "#24262b", "#5f6368", "#dcdfe4", ("#8e63b0", "#1f5fa8", "#b8600f", "#4d7a26", "#c2334d")),
    "dark": ("#1e2129", "#e6e8ee", "#a3a8b4", "#3a3f4b", ("#c29ae2", "#64a8f5", "#f0a455", "#9cc970", "#f5808f")),
}
WIDTH, NAMES, BARS, ROW, TOP = 760, 322, 350, 30, 46  # pixels: BARS is the width of the longest bar, and rows start at TOP
FOLDER = Path(__file__).parent / "pictures"
tracer = trace.get_tracer("picture_trace")


class TracedTransport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with tracer.start_as_current_span(f"{request.method} {request.url.path}", attributes={"layer": "HTTP"}):
            inject(request.headers)
            response = await super().handle_async_request(request)
            await response.aread()
        return response


async def respond(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    with tracer.start_as_current_span(f"{scope['method']} {scope['path']}", extract(headers), attributes={"layer": "server"}):
        await app(scope, receive, send)


async def record(exporter: InMemorySpanExporter, socket: str) -> list[ReadableSpan]:
    """Call `execute_python` several times in one session, and return the spans of the fastest call."""
    calls, kernel = [], Kernel()
    http = SessionsHttpClient(httpx.AsyncClient(transport=TracedTransport(uds=socket), base_url="http://localhost"))
    async with open_server() as service:
        app = partial(respond, service)
        server = uvicorn.Server(uvicorn.Config(app, uds=socket, interface="asgi3", lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve())  # the client retries until it listens
        async with CodeInterpreter(http) as client, SessionPool(client) as pool, PythonCodeInterpreterPlugin(pool=pool) as plugin:
            kernel.add_plugin(plugin, "python")
            for _ in range(CALLS):
                exporter.clear()
                result = await kernel.invoke(plugin_name="python", function_name="execute_python", code=CELL)
                outer = next(span.context for span in exporter.get_finished_spans() if span.attributes.get("layer") == "server")
                context, (start, end) = trace.set_span_in_context(trace.NonRecordingSpan(outer)), json.loads(result.value.stdout)
                tracer.start_span("", context, attributes={"layer": "cell"}, start_time=start).end(end)
                calls.append(sorted(exporter.get_finished_spans(), key=lambda span: span.start_time))
        server.should_exit = True
        await serving
    return min(calls, key=lambda spans: spans[0].end_time - spans[0].start_time)


def draw(spans: list[ReadableSpan], background: str, text: str, muted: str, line: str, colours: tuple[str, ...]) -> str:
    first, depths, height = spans[0], {0: -1}, TOP + ROW * len(spans) + 44
    scale = BARS / (first.end_time - first.start_time)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="{background}"/>',
        f'<text x="18" y="{height - 16}" fill="{muted}">The fastest of {CALLS} calls in one session. '
        "Dashed: added by docs/picture_trace.py, not recorded by aca-sessions.</text>",
    ]
    step = next(one for one in (1, 2, 5, 10, 20, 50, 100) if one * 1e6 * scale > 50)
    for tick in range(0, int(BARS / scale / 1e6) + 1, step):
        x = NAMES + tick * 1e6 * scale
        parts.append(f'<path d="M{x:.1f} {TOP - 8}V{height - 40}" stroke="{line}"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP - 14}" fill="{muted}" text-anchor="middle">{tick} ms</text>')
    for row, span in enumerate(spans):
        depth = depths[span.context.span_id] = depths[span.parent.span_id if span.parent else 0] + 1
        layer = span.attributes.get("layer") or ("client" if span.name.startswith("aca_sessions.") else "plugin")
        colour, y, took = colours[LAYERS.index(layer)], TOP + ROW * row, span.end_time - span.start_time
        x, width = NAMES + (span.start_time - first.start_time) * scale, max(2, took * scale)
        look = f'fill="{colour}"' + ' fill-opacity="0.3" stroke-dasharray="4 2"' * ("layer" in span.attributes)
        name = f'<tspan fill="{colour}" font-weight="600">{layer}</tspan> {span.name}'
        parts.append(f'<text x="{18 + 14 * depth}" y="{y + 19}" fill="{text}">{name}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 6}" width="{width:.1f}" height="{ROW - 12}" rx="2" stroke="{colour}" {look}/>')
        parts.append(f'<text x="{x + width + 6:.1f}" y="{y + 19}" fill="{text}">{took / 1e6:.2f} ms</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    provider, finished = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(finished))
    trace.set_tracer_provider(provider)
    with tempfile.TemporaryDirectory() as folder:
        recorded = asyncio.run(record(finished, f"{folder}/socket"))
    for name, theme in THEMES.items():
        (FOLDER / f"trace-{name}.svg").write_text(draw(recorded, *theme))
