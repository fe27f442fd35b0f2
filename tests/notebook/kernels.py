"""Kernels: one used as a notebook does it, and our Python as a kernel of programs that have another one."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_client.manager import start_new_kernel
from nbformat.v4 import output_from_msg

OUTPUTS = ("stream", "display_data", "update_display_data", "execute_result", "error")


@dataclass
class Cell:
    """What a notebook got of one cell: its outputs, the kernel's reply, and what the kernel asked."""

    reply: dict = field(default_factory=dict)
    outputs: list[dict] = field(default_factory=list)
    messages: list[dict] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    is_clearing: bool = False

    @property
    def text(self) -> str:
        return "".join(one.get("text", "") + one.get("data", {}).get("text/plain", "") for one in self.outputs)

    @property
    def html(self) -> str:
        (html,) = [one["data"]["text/html"] for one in self.outputs if "text/html" in one.get("data", {})]
        return html

    def stream(self, name: str) -> str:
        return "".join(one["text"] for one in self.outputs if one.get("name") == name)


class Notebook:
    """A kernel, used as a notebook does it."""

    def __init__(self, kernel: str = "python3") -> None:
        self.manager, self.client = start_new_kernel(kernel_name=kernel, startup_timeout=240)
        if kernel == "python3":
            self.run("%load_ext aca_sessions")

    def run(
        self,
        code: str,
        answers: tuple[str, ...] | None = None,
        *,
        first: tuple[str, ...] = (),
        on_output: Callable[[Cell], object] = lambda _: None,
        **options: object,
    ) -> Cell:
        """Run a cell. The answers are for its questions, and are given when the output has all of `first`.

        Without answers the notebook cannot be asked.
        """
        cell, left = Cell(), [*(answers or ())]

        def take(message: dict) -> None:
            cell.messages.append(message)
            if message["msg_type"] == "clear_output":
                cell.is_clearing = True
            if cell.is_clearing and (message["msg_type"] in OUTPUTS or not message["content"].get("wait", True)):
                cell.is_clearing = False
                cell.outputs.clear()
            if message["msg_type"] in OUTPUTS[:2] + OUTPUTS[3:]:
                cell.outputs.append(output_from_msg(message))
                on_output(cell)

        def asked(message: dict) -> None:
            cell.asked.append(message["content"])
            while not all(part in cell.text for part in first):
                take(self.client.get_iopub_msg(timeout=240))
            self.client.input(left.pop(0))

        sent = {"allow_stdin": answers is not None, "stdin_hook": asked, "output_hook": take, "timeout": 240, **options}
        cell.reply = self.client.execute_interactive(code, **sent)["content"]
        return cell

    def complete(self, code: str) -> list[str]:
        """Return the cell with each of the completions at its `|`."""
        content = self.client.complete(code.replace("|", ""), code.index("|"), reply=True, timeout=240)["content"]
        before, after = code[: content["cursor_start"]], code.replace("|", "")[content["cursor_end"] :]
        return [before + match + after for match in content["matches"]]

    def inspect(self, code: str) -> str | None:
        """Return what the front end shows about the name at the `|` of a cell."""
        content = self.client.inspect(code.replace("|", ""), code.index("|"), reply=True, timeout=240)["content"]
        return content["data"]["text/plain"] if content["found"] else None

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)


def kernel_environment(folder: Path) -> dict[str, str]:
    """Write a kernel named `python3`, which uses our Python, to a folder. Return the environment variables that make Jupyter find it."""
    kernel = folder / "share" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": start, "display_name": "Python 3", "language": "python"}))
    places = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    return {**places, "JUPYTER_PATH": str(folder / "share")}
