"""What was measured: rows, contenders, and the numbers of each round. Ratios are taken within a round, so that both met the same noise."""

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field

OURS = "aca-sessions"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `unit` is that of its numbers."""

    title: str
    unit: str

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"


COLD = Row("start to the first reply of `1 + 1`, cold", "ms")
IMPORTED = Row("cold start, then numpy, pandas and pyplot imported", "ms")
WARM = Row("start to the first reply of `1 + 1`, warm", "ms")
NO_VALUE = Row("cell without a value, `x = 1`", "ms")
VALUE = Row("cell with a value, `1 + 1`", "ms")
FRAME = Row("cell that shows a DataFrame, 20 × 5", "ms")
FIGURE = Row("cell that draws a figure", "ms")
INTERRUPT = Row("interrupt of `while True: pass` to the next reply", "ms")
RECOVER = Row("`os._exit(1)` to the next reply", "ms")
MEMORY = Row("memory of an idle session, libraries imported", "MB")
ONE = Row("cells a second, 1 session", "/s")
FOUR = Row("cells a second, 4 sessions", "/s")
TEN = Row("cells a second, 10 sessions", "/s")
HUNDRED = Row("cells a second, 100 sessions", "/s")
ROWS = (COLD, IMPORTED, WARM, NO_VALUE, VALUE, FRAME, FIGURE, INTERRUPT, RECOVER, MEMORY, ONE, FOUR, TEN, HUNDRED)


@dataclass(frozen=True, slots=True)
class Stage:
    """So many sessions alive at once: how fast the last of them came, how long a cell took in each, what one took from the host."""

    sessions: int
    answering: int
    starts_per_second: float
    cell_milliseconds: float
    host_megabytes: float


@dataclass
class Results:
    """Numbers by row and contender, or why there are none."""

    rounds: dict[Row, dict[str, dict[int, float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    lost: Counter[tuple[Row, str, str]] = field(default_factory=Counter)
    missing: dict[Row, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    not_run: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    load: float = 0.0
    opening_seconds: float = 0.0
    shared_megabytes: float = 0.0

    def median(self, row: Row, name: str) -> float | None:
        """None where there is no number."""
        values = self.rounds[row].get(name)
        return statistics.median(values.values()) if values else None

    def ratio(self, row: Row, name: str) -> float | None:
        """How many times better ours is: the median of what the rounds say."""
        ours, theirs = self.rounds[row].get(OURS, {}), self.rounds[row].get(name, {})
        both = ours.keys() & theirs.keys()
        if not both:
            return None
        better = statistics.median(theirs[round] / ours[round] for round in both)
        return 1 / better if row.more_is_better else better

    def note(self, name: str, round: int, row: Row, value: float | str) -> None:
        """Keeps a number of a round, or why there is none."""
        if isinstance(value, str):
            self.missing[row][name] = value
        else:
            self.rounds[row][name][round] = value

    def lose(self, rows: tuple[Row, ...], name: str, round: int, why: str) -> None:
        """Counts a round that came to no number, in the first of the rows where it has none."""
        row = next(row for row in rows if round not in self.rounds[row].get(name, {}))
        self.lost[row, name, why] += 1

    def lack(self, rows: tuple[Row, ...], name: str, why: str) -> None:
        """Says why a contender has no number in those of the rows where it has none."""
        for row in rows:
            if name not in self.rounds[row]:
                self.missing[row][name] = why
