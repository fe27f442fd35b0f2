"""Test that 200 sessions with all kinds of content go on after their server was killed, and that each thing that is missing is named."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from aca_sessions import Session, SessionPool, Settings, open_pool

from ..cli.test_cli import Server

pytestmark = [pytest.mark.slow, pytest.mark.long]
SESSIONS, AT_ONCE = 200, 4
# Every session has these, as most of its variables are plain values. So what cannot be saved is about one variable in 25.
COMMON: tuple[str, dict[str, str | None]] = (
    "import json, math\nnumbers = [math.sqrt(i) for i in range({n})]; total = sum(numbers); text = 'ä' * {n}\n"
    "settings = {{'n': {n}, 'names': {{'a', 'b'}}}}; pairs = [(i, str(i)) for i in range(9)]; data = bytes(range(256)) * {n}\n"
    "def mean(values): return sum(values) / len(values)",
    {
        "numbers": "numbers == [math.sqrt(i) for i in range({n})]",
        "total": "total == sum(numbers)",
        "text": "text == 'ä' * {n}",
        "settings": "settings == {{'n': {n}, 'names': {{'a', 'b'}}}}",
        "pairs": "pairs[8] == (8, '8')",
        "data": "data == bytes(range(256)) * {n}",
        "mean": "mean(numbers) == total / {n}",
    },
)
# What a session makes, and for each of its variables an expression that is true as long as it is the same. None: it cannot be saved.
KINDS: list[tuple[str, dict[str, str | None]]] = [
    (
        "import numpy as np; a = np.arange({n} * 1000).reshape(-1, 10); b = a[::2].T\n"
        "c = np.random.default_rng({n}); d = c.bit_generator.state",
        {"a": "a.sum() == sum(range({n} * 1000))", "b": "b.shape == (10, {n} * 50)", "c": "c.bit_generator.state == d", "np": "np.pi > 3"},
    ),
    (
        "import pandas as pd; df = pd.DataFrame({{'a': range({n}), 'b': ['x'] * {n}}}); s = df.a; g = df.groupby('b'); df.attrs['k'] = {n}",
        {"df": "df.shape == ({n}, 2) and df.attrs == {{'k': {n}}}", "s": "s.sum() == sum(range({n}))", "g": "g.a.sum()['x'] == s.sum()"},
    ),
    (
        "from sklearn.linear_model import LinearRegression; import numpy as np\n"
        "X = np.arange({n})[:, None]; model = LinearRegression().fit(X, X[:, 0] * 2)",
        {"model": "abs(model.predict([[{n}]])[0] - 2 * {n}) < 1e-6", "X": "X.shape == ({n}, 1)", "LinearRegression": "True"},
    ),
    (
        "def outer(k):\n def inner(x):\n  nonlocal k; k += x; return k\n return inner\n"
        "f = outer({n}); f(1); fact = lambda i: 1 if i < 2 else i * fact(i - 1)",
        {"f": "f(0) == {n} + 1", "fact": "fact(5) == 120", "outer": "outer(1)(1) == 2"},
    ),
    (
        "class Account:\n total = {n}\n def __init__(self): self.log = []\n def add(self, x): self.log.append(x); return self\n"
        "mine = Account().add({n}); same = mine; both = [mine, mine.log]",
        {"mine": "mine.log == [{n}] and Account.total == {n}", "same": "same is mine", "both": "both[1] is mine.log", "Account": "True"},
    ),
    (
        "import dataclasses, enum\n@dataclasses.dataclass(frozen=True)\nclass P:\n x: int\nclass C(enum.Enum):\n R = {n}\n"
        "p, q = P({n}), {{C.R: P(1)}}",
        {"p": "p == P({n})", "q": "q[C.R] == P(1)", "P": "True", "C": "C({n}) is C.R"},
    ),
    (
        "gen = (i for i in range({n})); f = open('open.txt', 'w'); kept = list(range({n}))",
        {"gen": None, "f": None, "kept": "kept == list(range({n}))"},
    ),
    (
        "import matplotlib.pyplot as plt; fig, ax = plt.subplots(); _ = ax.plot([1, {n}]); plt.close(fig)\n"
        "size = fig.get_size_inches().tolist()",
        {"fig": "fig.get_size_inches().tolist() == size", "ax": "ax.lines[0].get_ydata().tolist() == [1, {n}]", "size": "True"},
    ),
    (
        "import threading; stop = threading.Event(); thread = threading.Thread(target=stop.wait, daemon=True); thread.start(); n = {n}",
        {"stop": None, "thread": None, "n": "n == {n}"},
    ),
    (
        "import collections, decimal, datetime, re, pathlib\nx = collections.OrderedDict(a={n}); y = decimal.Decimal('{n}.5')\n"
        "z = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC); p = re.compile('a{n}')\n"
        "q = pathlib.Path('/mnt/data/{n}'); l = [x]; l.append(l)",
        {
            "x": "x['a'] == {n}",
            "y": "y * 2 == 2 * {n} + 1",
            "z": "z.year == 2026",
            "p": "p.match('a{n}')",
            "q": "q.name == '{n}'",
            "l": "l[1] is l",
        },
    ),
]
LARGE = ("import numpy as np; big = np.arange(40_000_000)", {"big": "big.nbytes > 3e8 and big[-1] == len(big) - 1"})


def content(number: int) -> tuple[str, dict[str, str | None]]:
    """Return the code of a session and the checks of its variables."""
    parts = [COMMON, LARGE if number in (50, 150) else KINDS[number % len(KINDS)]]
    n = 100 + number
    return "\n".join(code for code, _ in parts).format(n=n), {
        name: check and check.format(n=n) for _, checks in parts for name, check in checks.items()
    }


async def in_parallel(pool: SessionPool, work) -> list:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int):
        async with turns, pool.session(f"session-{number}") as session:
            return await work(session, number)

    async with asyncio.TaskGroup() as group:  # ends the others if one fails
        tasks = [group.create_task(one(number)) for number in range(SESSIONS)]
    return [task.result() for task in tasks]


async def begin(session: Session, number: int) -> None:
    result = await session.run(content(number)[0])
    assert result.error is None, result.stderr
    await session.save()


async def look(session: Session, number: int) -> tuple[int, int, int]:
    """Return how many variables are equal, how many are named as missing, and how many there were."""
    checks = {name: check for name, check in content(number)[1].items() if check}
    code = f"import json\nprint(json.dumps([_n for _n, _c in {checks!r}.items() if _n in globals() and eval(_c)]))"
    result = await session.run(code)
    assert result.error is None, (number, result.stderr)
    equal, missing = json.loads(result.stdout), set(result.state.missing)
    assert (str(result.state), result.state.files) == ("restored: restart", "restored")
    expected = content(number)[1]
    assert {*expected} - {*equal} <= missing, (number, expected, equal, missing)
    assert not missing & {*equal}
    assert str((await session.run("1")).state) == "kept"
    return len(equal), len({*expected} & missing), len(expected)


async def test_of_200_sessions_all_is_there_again_after_a_kill_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Durable__Store", f"file://{tmp_path}/store")
    monkeypatch.setenv("ACASessions__Durable__Save", "never")
    monkeypatch.delenv("ACASessions__Sandbox__Preload")  # most sessions use these libraries
    arguments = ("--api-key", "key", "--max-sessions", "300")
    with Server("--port", "0", *arguments) as server:
        settings = Settings(
            Endpoint=server.endpoint, ApiKey="key", MaxConcurrentSessions=AT_ONCE, SessionsHttpClient={"PatienceSeconds": 60}
        )
        async with open_pool(settings) as pool:
            await in_parallel(pool, begin)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            with Server("--port", server.endpoint.rpartition(":")[2], *arguments):
                counts = await in_parallel(pool, look)
    equal, named, all_of_them = map(sum, zip(*counts, strict=True))
    print(f"of {all_of_them} variables in {SESSIONS} sessions, {equal} are equal ({equal / all_of_them:.1%}), {named} are named as missing")
    assert equal >= 0.95 * all_of_them
    assert equal + named == all_of_them
