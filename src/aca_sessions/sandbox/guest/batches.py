"""Host calls of a session that are decided together: `with tools.batch() as batch:`."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .calls import ToolError, call

if TYPE_CHECKING:
    from typing import Self


class Later:
    """The value that a call in a batch will have after the batch was allowed and carried out."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._outcome: dict[str, Any] | None = None

    @property
    def value(self) -> Any:
        """Return the value of the call. Raise ToolError if the call was refused or failed, or if the batch is still open."""
        if self._outcome is None:
            raise ToolError("the batch was not carried out yet: read .value after the 'with' block")
        if "error" in self._outcome:
            raise ToolError(self._outcome["error"])
        return self._outcome["value"]

    def settle(self, outcome: dict[str, Any]) -> None:
        """Take the outcome of the call: `value` or `error`."""
        self._outcome = outcome

    def __repr__(self) -> str:
        return f"<later: {self._description}>"


class Batch:
    """Calls that are decided together at the end of a `with` block. Calls that only read are made at once."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, dict[str, Any], Later]] = []

    @property
    def results(self) -> list[Any]:
        """Return the values of the calls, in their order. Raise ToolError at the first call that has none."""
        return [later.value for _, _, later in self._calls]

    def add(self, name: str, arguments: dict[str, Any]) -> Later:
        """Keep a call until the end of the block."""
        self._calls.append((name, arguments, Later(name)))
        return self._calls[-1][2]

    def __enter__(self) -> Self:
        _open.batches = [*open_here(), self]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _open.batches = open_here()[:-1]
        if kind is None and self._calls:
            outcomes = call("tools.batch", calls=[{"name": name, "arguments": arguments} for name, arguments, _ in self._calls])
            for (_, _, later), outcome in zip(self._calls, outcomes):
                later.settle(outcome)


_open = threading.local()


def open_here() -> list[Batch]:
    """Return the batches that this thread has open, the innermost last."""
    return getattr(_open, "batches", [])
