"""Draw docs/pictures/benchmarks-light.svg and benchmarks-dark.svg from the numbers in results.md, without measuring anew."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from results import COLD, FRAME, INTERRUPT, MEMORY, OURS, RECOVER, VALUE, WARM, Row

TIMES = {
    COLD: "new session\nto first reply",
    WARM: "ready session\nto first reply",
    VALUE: "cell\n1 + 1",
    FRAME: "cell that shows\na DataFrame",
    INTERRUPT: "interrupt\nto next reply",
    RECOVER: "dead interpreter\nto next reply",
}
REPORT = Path(__file__).with_name("results.md")
FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
# The background and text of each theme of the site, and a colour for each contender.
THEMES = {
    "light": ("#ffffff", "#24262b", "#5f6368", ("#1f5fa8", "#d9822b", "#6a9440", "#8e63b0", "#8a8d93")),
    "dark": ("#1e2129", "#e6e8ee", "#a3a8b4", ("#64a8f5", "#f0a455", "#9cc970", "#c29ae2", "#a7abb3")),
}
Numbers = dict[str, dict[str, str]]


def draw() -> None:
    numbers = read_numbers(REPORT.read_text(encoding="utf-8"))
    for theme, (background, text, muted, colours) in THEMES.items():
        style = {
            "svg.fonttype": "path",  # other fonts are wider, and labels would overlap
            "svg.hashsalt": "benchmarks",  # equal numbers give an equal file
            "font.size": 9,
            "figure.facecolor": background,
            "axes.facecolor": background,
            "axes.edgecolor": muted,
            "text.color": text,
            "axes.labelcolor": text,
            "ytick.labelcolor": text,
            "xtick.labelcolor": muted,
            "xtick.color": muted,
            "ytick.color": muted,
        }
        with plt.rc_context(style):
            figure = _figure(numbers, colours, muted)
            figure.savefig(FOLDER / f"benchmarks-{theme}.svg", metadata={"Date": None, "Title": "Time and memory of a session"})
            plt.close(figure)


def read_numbers(report: str) -> Numbers:
    """Return the table of the section "Side by side": a dict from the row to each contender's number, as it is printed there."""
    table = report.partition("\n## Side by side\n")[2].partition("\n|")[2].partition("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return {row[0]: {name: cell.partition(" (")[0] for name, cell in zip(head[1:], row[1:], strict=True)} for row in rows}


def _figure(numbers: Numbers, colours: tuple[str, ...], muted: str) -> plt.Figure:
    figure, (times, memory) = plt.subplots(2, 1, figsize=(7.2, 8.2), height_ratios=(len(TIMES), 1.15), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # inches
    _bars(times, numbers, TIMES, colours)
    times.set_xscale("log")
    times.set_xlim(0.2, 15_000)
    times.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    times.set_title("Milliseconds on a logarithmic scale; less is better", fontsize=10, loc="left", pad=28)
    times.legend(frameon=False, ncols=len(colours), loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderpad=0, handlelength=1.2)
    _bars(memory, numbers, {MEMORY: "idle session,\nlibraries\nimported"}, colours)
    memory.margins(x=0.12)
    memory.set_title("Megabytes; less is better", fontsize=10, loc="left")
    figure.supxlabel("–: no number; the reasons are below", fontsize=8.5, color=muted, x=0.99, ha="right")
    return figure


def _bars(axes: Axes, numbers: Numbers, rows: dict[Row, str], colours: tuple[str, ...]) -> None:
    """Draw a group of bars for each row, with its number behind each bar. A number that was not measured leaves its place empty."""
    height = 0.84 / len(colours)
    for group, row in enumerate(rows):
        for position, (name, printed) in enumerate(numbers[f"{row.title}, {row.unit}"].items()):
            place = group + (position - (len(colours) - 1) / 2) * height
            value = None if printed == "–" else float(printed.replace(",", ""))
            bar = axes.barh(place, value or 0, 0.9 * height, color=colours[position], label=name if group == 0 else None)
            if value is None:
                where = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
                axes.annotate(printed, (0, place), va="center", color=colours[position], weight="bold", **where)
            else:
                axes.bar_label(bar, [printed], fontsize=8.5, padding=3, weight="bold" if name == OURS else "normal")
    axes.set_yticks(range(len(rows)), rows.values())
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    draw()
