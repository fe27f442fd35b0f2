"""A session's steps as a notebook (.ipynb, nbformat 4.5) and as a script, and the steps that a notebook holds.

Code cells keep their source and outputs. Uploads, deletions, resets and packages are Markdown cells that describe the step. An uploaded
file is attached to its cell unless it is over 4 MB: then only its name, size and hash are kept. Files that cells wrote are left out, since
running the cells writes them again.
"""

import base64
import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..models import CodeExecutionResult, Display
from .arguments import checked_path, checked_requirements
from .history import Deleted, History, Installed, Ran, Reset, Step, Uploaded

_OURS = "aca_sessions"
_BINARY = "application/octet-stream"
_MOST_BYTES = 256 << 20
_MOST_CELLS = 10_000
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_MAGIC = re.compile(r"\s*([%!]|\?|[\w.]+\?{1,2}\s*$|\w[\w, ]*=\s*[%!])")

Output = Mapping[str, Any]


def to_notebook(history: History) -> dict[str, Any]:
    """Return the notebook as JSON values."""
    cells, count = [], 0
    for place, step in enumerate(history.steps):
        count += isinstance(step, Ran)
        cells.append({"id": f"step-{place}", **_cell(step, count)})
    metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}, _OURS: {"left_out": history.left_out}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def to_script(history: History) -> str:
    """Return the cells as Python in the percent format, without outputs. Lines that only IPython understands become comments."""
    parts = []
    for step in history.steps:
        match step:
            case Ran(rolled_back=True):
                continue
            case Ran(code):
                parts.append(f"# %%\n{_as_python(code)}")
            case _:
                parts.append(f"# %% [markdown]\n# {_said(step)}")
    return "\n\n".join(parts) + "\n"


def read_notebook(source: object) -> list[tuple[Step, list[Output]]]:
    """Return a notebook's steps, each with the outputs that it had. Raise InvalidArgumentError if `source` is not a notebook.

    `source` is a path, or the parsed JSON of a notebook.
    """
    notebook = _loaded(source)
    match notebook:
        case {"nbformat": 4, "cells": [*cells]} if len(cells) <= _MOST_CELLS:
            return [step for cell in cells if (step := _step(cell)) is not None]
    raise InvalidArgumentError(f"this is no notebook: nbformat 4 with up to {_MOST_CELLS} cells is")


def outputs_of(result: CodeExecutionResult, count: int = 1) -> list[dict[str, Any]]:
    """Return a result as a notebook's outputs. `count` is the number of its cell."""
    stderr = result.stderr
    if result.error is not None:
        # Our results have the traceback in stderr too; a notebook has it in an output of its own.
        stderr = stderr.removesuffix(result.error.traceback or str(result.error))
    streams = [("stdout", result.stdout), ("stderr", stderr)]
    outputs: list[dict[str, Any]] = [{"output_type": "stream", "name": name, "text": text} for name, text in streams if text.strip("\n")]
    displays = list(result.displays)
    if result.text is not None:
        # The last display holds the value in all its forms, if it has forms beside the text.
        has_forms = bool(displays) and displays[-1].data.get("text/plain") == result.text
        value = displays.pop() if has_forms else Display({"text/plain": result.text})
    outputs += [{"output_type": "display_data", "data": _bundle(display), "metadata": {}} for display in displays]
    if result.text is not None:
        outputs.append({"output_type": "execute_result", "data": _bundle(value), "metadata": {}, "execution_count": count})
    if (error := result.error) is not None:
        lines = (error.traceback or str(error)).split("\n")
        outputs.append({"output_type": "error", "ename": error.name, "evalue": error.message, "traceback": lines})
    return outputs


def _cell(step: Step, count: int) -> dict[str, Any]:
    match step:
        case Ran(code=code, result=result):
            noted: dict[str, object] = {"state": str(result.state)} if result is not None and result.state.kind != "kept" else {}
            noted |= {"rolled_back": True} if step.rolled_back else {}
            metadata = {_OURS: noted} if noted else {}
            outputs = outputs_of(result, count) if result is not None else []
            ran = count if result is not None else None
            return {"cell_type": "code", "execution_count": ran, "metadata": metadata, "outputs": outputs, "source": code}
        case Uploaded(path, size, sha256, content):
            told: dict[str, object] = {"upload": path, "size": size, "sha256": sha256}
            attached = {} if content is None else {"attachments": {path: {_BINARY: base64.b64encode(content).decode()}}}
            return {"cell_type": "markdown", "metadata": {_OURS: told}, "source": _said(step), **attached}
        case Deleted(path):
            return {"cell_type": "markdown", "metadata": {_OURS: {"delete": path}}, "source": _said(step)}
        case Reset():
            return {"cell_type": "markdown", "metadata": {_OURS: {"reset": True}}, "source": _said(step)}
        case Installed(requirements):
            return {"cell_type": "markdown", "metadata": {_OURS: {"install": list(requirements)}}, "source": _said(step)}


def _said(step: Step) -> str:
    match step:
        case Uploaded(path, size, _, content):
            return f"`{_inline(path)}` was uploaded: {size} bytes{'' if content is not None else ', not kept here'}."
        case Deleted(path):
            return f"`{_inline(path)}` was deleted."
        case Installed(requirements):
            return f"Installed: `{_inline(' '.join(requirements))}`."
    return "The variables were cleared."


def _inline(path: str) -> str:
    return path.replace("`", "'")


def _as_python(code: str) -> str:
    lines = code.strip("\n").split("\n")
    whole = lines[0].startswith("%%")
    return "\n".join(f"# {line}" if whole or _MAGIC.match(line) else line for line in lines)


def _bundle(display: Display) -> dict[str, Any]:
    return {mime: _parsed(mime, content) for mime, content in display.data.items()}


def _parsed(mime: str, content: object) -> Any:
    """Parse content of a JSON type: a notebook holds it as JSON and not as text."""
    if mime.endswith("json") and isinstance(content, str):
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return {"text": content}
    return content


def _loaded(source: object) -> object:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        raise InvalidArgumentError("a notebook is the path of an .ipynb file, or what such a file holds")
    path = Path(source)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidArgumentError(f"the notebook {path.name} is over {_MOST_BYTES >> 20} MB")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InvalidArgumentError(f"the notebook {path.name} cannot be read: {why}") from None


def _step(cell: object) -> tuple[Step, list[Output]] | None:
    """Return a cell's step and outputs, or None for Markdown and raw text that hold no step."""
    match cell:
        case {"cell_type": "code", "source": source, "outputs": [*outputs], **rest}:
            return Ran(_text(source), rolled_back=_was_rolled_back(rest)), [_output(one) for one in outputs]
        case {"cell_type": "markdown", "metadata": {"aca_sessions": told}, **rest}:
            return _step_of_ours(told, rest.get("attachments")), []
        case {"cell_type": "markdown" | "raw"}:
            return None
    raise InvalidArgumentError("a cell of this notebook is neither code with outputs, Markdown nor raw text")


def _was_rolled_back(cell: object) -> bool:
    match cell:
        case {"metadata": {"aca_sessions": {"rolled_back": True}}}:
            return True
    return False


def _step_of_ours(told: object, attachments: object) -> Step:
    match told:
        case {"upload": str(path), "size": int(size), "sha256": str(sha256)}:
            checked_path(path)
            return Uploaded(path, size, sha256, _attached(attachments, path))
        case {"delete": str(path)}:
            checked_path(path)
            return Deleted(path)
        case {"reset": True}:
            return Reset()
        case {"install": [*requirements]}:
            checked_requirements(tuple(requirements))
            return Installed(tuple(requirements))
    raise InvalidArgumentError("a cell of this notebook tells of something else than an upload, a deletion, a reset or packages")


def _attached(attachments: object, path: str) -> bytes | None:
    match attachments:
        case None:
            return None
        case {**files} if isinstance(content := files.get(path), Mapping) and isinstance(text := content.get(_BINARY), str):
            with contextlib.suppress(ValueError):
                return base64.b64decode(text, validate=True)
    raise InvalidArgumentError("a file that is attached to this notebook cannot be read: its content is no base64")


def _output(output: object) -> Output:
    match output:
        case {"output_type": "stream", "name": "stdout" | "stderr" as name, "text": text}:
            return {"output_type": "stream", "name": name, "text": _text(text)}
        case {"output_type": "display_data" | "execute_result" as kind, "data": {**data}}:
            return {"output_type": kind, "data": data}
        case {"output_type": "error", "ename": str(name), "evalue": str(value)}:
            return {"output_type": "error", "ename": name, "evalue": value}
    raise InvalidArgumentError("an output in this notebook has another shape than nbformat 4 gives it")


def _text(source: object) -> str:
    """Return a text, which nbformat also allows as a list of lines."""
    if isinstance(source, str):
        return source
    if isinstance(source, Iterable) and all(isinstance(line, str) for line in source):
        return "".join(source)
    raise InvalidArgumentError("a text in this notebook is neither a string nor a list of lines")
