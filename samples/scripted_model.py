"""A local server that speaks OpenAI's chat API from a script: the real connectors run against it, without a network or a key.

Each step of the script answers one request: a list of tool calls, a text, or a function of the messages so far that returns either.
"""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ToolCall = tuple[str, dict[str, object] | str]
Answer = str | list[ToolCall]
Step = Answer | Callable[[list[dict]], Answer]


class ScriptedModel:
    """Answers by the script, and keeps what it was asked in `requests`."""

    def __init__(self, script: Sequence[Step]):
        self.requests: list[dict] = []
        self._script = list(script)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def tool_messages(self) -> list[str]:
        """What the tools answered, as the model read it."""
        return [message["content"] for message in self.requests[-1]["messages"] if message["role"] == "tool"]

    def __enter__(self) -> "ScriptedModel":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: dict) -> dict:
        self.requests.append(request)
        step = self._script[min(len(self.requests), len(self._script)) - 1]
        said = step(request["messages"]) if callable(step) else step
        if isinstance(said, str):
            return {"role": "assistant", "content": said}
        return {"role": "assistant", "content": None, "tool_calls": [self._call(*call) for call in enumerate(said)]}

    def _call(self, index: int, call: ToolCall) -> dict:
        name, arguments = call
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return {"id": f"call_{len(self.requests)}_{index}", "type": "function", "function": {"name": name, "arguments": text}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = _stream(model.answer(request)) if request.get("stream") else _whole(model.answer(request))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if request.get("stream") else "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


def _whole(message: dict) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": _reason(message)}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps(_frame("chat.completion", choice) | {"usage": usage}).encode()


def _stream(message: dict) -> bytes:
    for index, call in enumerate(message.get("tool_calls", [])):
        call["index"] = index
    deltas = [(message, None), ({}, _reason(message))]
    chunks = [_frame("chat.completion.chunk", {"index": 0, "delta": delta, "finish_reason": reason}) for delta, reason in deltas]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def _frame(kind: str, choice: dict) -> dict:
    return {"id": "scripted", "created": 1, "model": "scripted", "object": kind, "choices": [choice]}


def _reason(message: dict) -> str:
    return "tool_calls" if "tool_calls" in message else "stop"
