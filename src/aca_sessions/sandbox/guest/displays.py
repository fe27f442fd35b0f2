"""How IPython shows values in a session: the last value as the cell's value, everything else as displays."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import DisplayFormatter, PlainTextFormatter

from . import charts, tables

PLAIN_TYPES = (int, float, bool, str)

Bundle = tuple[dict[str, Any], dict[str, Any]]


class Hook(DisplayHook):
    """Collects a cell's last value instead of printing it."""

    def start_displayhook(self) -> None: ...
    def write_output_prompt(self) -> None: ...
    def finish_displayhook(self) -> None: ...

    stock: ClassVar[dict[type, Any]] = {}  # the printers of plain types in an unchanged shell

    def __call__(self, result: Any = None) -> None:
        """Take the last value of a cell.

        Note a value that is None: a notebook shows nothing, but Azure distinguishes `x` from `print(x)` and `x = None`.
        """
        if result is None:
            self.shell.collected.value_is_none = not (self.shell.ends_with_call or self.quiet())
        super().__call__(result)

    def quiet(self) -> bool:
        """Return whether the cell ends with a semicolon. Parse the cell only if it contains one."""
        parsed = self.shell.history_manager.input_hist_parsed
        return bool(parsed) and ";" in parsed[-1] and bool(super().quiet())

    def compute_format_data(self, result: Any) -> Bundle:
        """Return the forms of a value. A plain value has one form; no formatter is called for it unless the user changed one of them."""
        kind = type(result)
        if kind not in PLAIN_TYPES or self._is_shown_in_another_way(kind):
            return super().compute_format_data(result)  # type: ignore[no-any-return]
        return {"text/plain": repr(result)}, {}

    def _is_shown_in_another_way(self, kind: type) -> bool:
        display = self.shell.display_formatter
        plain = display.formatters["text/plain"]
        taught = any(kind in one.type_printers or object in one.type_printers for one in display.formatters.values() if one is not plain)
        own_way = plain.type_printers.get(kind) is not self.stock.get(kind) or plain.float_format != "%r" or not plain.pprint
        return bool(taught or own_way or display.ipython_display_formatter.type_printers)

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shell.collected.take_value(self.shell.displayhook.exec_result, format_dict)

    def cull_cache(self) -> None:
        """Remove the oldest values from `Out` to make room, without IPython's warning."""
        values = self.shell.user_ns["_oh"]
        for number in list(values)[: len(values) - self.cache_size + 1]:
            del values[number]
            self.shell.user_ns.pop(f"_{number}", None)


class Publisher(DisplayPublisher):
    """Collects what a cell displays."""

    def publish(self, data: dict[str, Any], metadata: object = None, **options: Any) -> None:
        name = (options.get("transient") or {}).get("display_id")
        bundle = charts.completed(data)
        self.shell.collected.take_display(bundle, None if name is None else str(name), update=bool(options.get("update")))

    def clear_output(self, wait: bool = False) -> None:
        self.shell.collected.clear(wait)


class Formatter(DisplayFormatter):
    """Returns all forms of a value, including those that this package adds. Errors of a form are printed on stderr."""

    def format(self, obj: Any, include: object = None, exclude: object = None) -> Bundle:
        with self.parent.showing():
            if (chart := self._chart(obj)) is not None:
                return chart, {}
            data, metadata = super().format(obj, include, exclude)
            if data and include is None:
                data |= tables.forms(obj)
            if "image/png" in data and "image/jpeg" in data:
                del data["image/jpeg"]  # the same picture, with losses
        return data, metadata

    def _chart(self, obj: Any) -> dict[str, Any] | None:
        try:
            return charts.forms(obj)
        except Exception:
            self.parent.showtraceback()
            return None


class PlainText(PlainTextFormatter):
    """Formats numpy's numbers as numbers, and figures in words.

    A printer that is registered for figures would not do: the inline backend removes it.
    """

    def __call__(self, value: Any) -> str | None:
        if type(value) not in self.type_printers:
            if type(value).__module__ == "numpy" and isinstance(value, (sys.modules["numpy"].number, sys.modules["numpy"].bool_)):
                return str(value)
            if type(value).__module__ == "matplotlib.figure" and hasattr(value, "get_axes"):
                return _describe_figure(value)
        with self.parent.parent.showing(False):  # fail the cell: without its text a value has nothing to show
            return super().__call__(value)  # type: ignore[no-any-return]


def _describe_figure(figure: Any) -> str:
    """Return a description of a figure for readers who do not see it: its title, and what is drawn along its axes."""
    parts = [figure.get_suptitle()] if hasattr(figure, "get_suptitle") else []
    for axes in figure.get_axes()[:4]:
        labels = " by ".join(label for label in (axes.get_ylabel(), axes.get_xlabel()) if label)
        legend = axes.get_legend()
        lines = ", ".join(text.get_text() for text in legend.get_texts()[:8]) if legend else ""
        parts.append(" ".join(part for part in (axes.get_title(), f"({labels})" if labels else "", f"[{lines}]" if lines else "") if part))
    described = "; ".join(part for part in parts if part)
    return f"Figure {described}" if described else f"Figure with {len(figure.get_axes())} axes"
