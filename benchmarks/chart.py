"""Draws results.png: how long things take, on a logarithmic scale, and what a session takes of memory."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from report import names_in, number
from results import COLD, FRAME, INTERRUPT, MEMORY, OURS, RECOVER, VALUE, WARM, Results, Row

TIMES = {
    COLD: "new session\nto first reply",
    WARM: "ready session\nto first reply",
    VALUE: "cell\n1 + 1",
    FRAME: "cell\nDataFrame",
    INTERRUPT: "interrupt\nto next reply",
    RECOVER: "dead interpreter\nto next reply",
}
COLOURS = ("#1f5fa8", "#e08b3c", "#7a9e4f", "#9a7bb5", "#b0b0b0", "#8c6d5a")


def draw(results: Results, path: Path) -> None:
    names = names_in(results)
    figure, (times, memory) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(4, 1), layout="constrained")
    _grouped(times, results, names)
    _single(memory, results, names)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _grouped(axes: Axes, results: Results, names: list[str]) -> None:
    """One group of bars for each row."""
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        for group, row in enumerate(TIMES):
            place = group + (position - (len(names) - 1) / 2) * width
            _bar(axes, results, row, name, place, width, COLOURS[position])
        axes.bar(0, 0, color=COLOURS[position], label=name)
    axes.set_yscale("log")
    axes.set_xticks(range(len(TIMES)), TIMES.values())
    axes.set_title("milliseconds, logarithmic; less is better", fontsize=10, loc="left")
    axes.legend(frameon=False, ncols=len(names), fontsize=9, loc="upper left")
    axes.margins(y=0.2)
    _plain(axes)


def _single(axes: Axes, results: Results, names: list[str]) -> None:
    for position, name in enumerate(names):
        _bar(axes, results, MEMORY, name, position, 0.8, COLOURS[position])
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_title("MB of an idle session", fontsize=10, loc="left")
    _plain(axes)


def _bar(axes: Axes, results: Results, row: Row, name: str, place: float, width: float, colour: str) -> None:
    """A number that was not measured leaves its place empty."""
    median = results.median(row, name)
    if median is None:
        axes.annotate("–", (place, 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=7)
        return
    bar = axes.bar(place, median, width, color=colour)
    axes.bar_label(bar, [number(median)], fontsize=6.5, padding=1, rotation=0, weight="bold" if name == OURS else "normal")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
