"""Test that the state of an interpreter is written to the host, and restored in another one."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from aca_sessions import Policy
from aca_sessions.errors import SnapshotError
from aca_sessions.models import CodeExecutionResult
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.saved_state import SavedVariables, StateReader
from aca_sessions.sandbox.wire import RECORD

from ..conftest import mostly_long

pytestmark = pytest.mark.slow
SECONDS = 60


@pytest.fixture(params=["full", pytest.param("no namespaces", marks=pytest.mark.long)])
async def sandboxes(request: pytest.FixtureRequest) -> AsyncIterator[Sandboxes]:
    policy = Policy(preload=(), spares=0) if request.param == "full" else request.getfixturevalue("bare_policy")
    async with Sandboxes(policy) as opened:
        yield opened


async def run(sandbox: Sandbox, code: str) -> CodeExecutionResult:
    return await (await sandbox.interpreter()).run("cell", code, SECONDS)


async def save(sandbox: Sandbox, *, timeout: float = SECONDS) -> tuple[bytes, SavedVariables]:
    async def receive(reader: StateReader) -> tuple[bytes, SavedVariables]:
        pieces = [bytes(part) async for part in reader.parts()]
        return b"".join(pieces), reader.variables

    return await sandbox.save(receive, timeout=timeout)


async def restored(sandboxes: Sandboxes, state: bytes) -> tuple[Sandbox, dict[str, str]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(state), 100_000):
            yield state[start : start + 100_000]

    sandbox = await sandboxes.open()
    try:
        return sandbox, await sandbox.restore(chunks(), timeout=SECONDS)
    except BaseException:
        await sandbox.close()
        raise


async def moved(sandboxes: Sandboxes, code: str, look: str) -> tuple[str, SavedVariables, dict[str, str]]:
    """Run a cell, move the session's state to another sandbox, and return what `look` prints there, what was lost and what is missing."""
    first = await sandboxes.open()
    ran = await run(first, code)
    assert ran.error is None, ran.stderr
    state, variables = await save(first)
    await first.close()
    second, missing = await restored(sandboxes, state)
    looked = await run(second, look)
    await second.close()
    assert looked.error is None, looked.stderr
    return looked.stdout, variables, missing


KINDS = {
    "plain": ("x = [1, {'a': (2.5, None)}]; y = {1, 2}", "print(x, y)", "[1, {'a': (2.5, None)}] {1, 2}"),
    "shared": ("a = []; b = [a, a]; c = {'a': a}", "a.append(1); print(b, c, b[0] is a)", "[[1], [1]] {'a': [1]} True"),
    "recursive": ("a = []; a.append(a); b = a", "print(a[0] is a, b is a)", "True True"),
    "function": ("k = 2\ndef f(x, *, y=3): return x * y * k", "k = 5; print(f(1))", "15"),
    "recursive function": ("def f(n): return 1 if n < 2 else n * f(n - 1)", "print(f(5))", "120"),
    "closures": (
        "def make():\n n = 0\n def up():\n  nonlocal n; n += 1; return n\n return up, lambda: n\nup, get = make(); up()",
        "print(up(), get())",
        "2 2",
    ),
    "class": (
        "class A:\n def f(self): return k\nclass B(A):\n def f(self): return super().f() + 1\nk = 1; b = B(); all = [b]",
        "k = 2; print(b.f(), type(b) is B, isinstance(all[0], A), all[0] is b)",
        "3 True True True",
    ),
    "dataclass and enum": (
        "import dataclasses, enum\n@dataclasses.dataclass\nclass P: x: int\nclass E(enum.Enum): A = 1\np, e = P(2), E.A",
        "print(p == P(2), e is E.A)",
        "True True",
    ),
    "decorated": (
        "import functools\n@functools.lru_cache(maxsize=7)\ndef f(x): return x\npart = functools.partial(f, 3)",
        "print(f(2), f.cache_parameters()['maxsize'], part())",
        "2 7 3",
    ),
    "arrays": (
        "import numpy as np\na = np.arange(50_000); b = a.reshape(100, 500).T; c = np.float32(1.5)",
        "a[0] = 7; print(a.sum(), b.shape, c.dtype)",
        "1249975007 (500, 100) float32",
    ),
    "frame": (
        "import pandas as pd\ndf = pd.DataFrame({'a': range(30_000), 'b': pd.Categorical(['x', 'y'] * 15_000)}); s = df['a']",
        "df.loc[0, 'a'] = 5; print(df.shape, str(df.b.dtype), s.sum())",
        "(30000, 2) category 449985000",
    ),
    "outputs": ("'value'", "print(_1, Out[1], len(In))", "value value 3"),
    "folder and environment": (
        "import os, sys\nos.makedirs('deep/er'); os.chdir('deep'); os.environ['TOKEN'] = 'x'; sys.path.append('/mnt/data/deep/er')",
        "import os, sys; print(os.getcwd()[-5:], os.environ['TOKEN'], sys.path[-1][-7:])",
        "/deep x deep/er",
    ),
    "random numbers": (
        "import random, numpy as np; random.seed(1); np.random.seed(1); random.random(); np.random.rand()",
        "print(random.random(), np.random.rand())",
        "0.8474337369372327 0.7203244934421581",
    ),
    "files": (
        "import os\nos.makedirs('a/empty'); open('a/b c.bin', 'wb').write(bytes(range(256)) * 9000); os.chmod('a/b c.bin', 0o640)\n"
        "os.symlink('a/b c.bin', 'link'); os.utime('a/b c.bin', (5, 6)); open('é.txt', 'w').write('é')",
        "import os; s = os.stat('a/b c.bin'); print(oct(s.st_mode), s.st_mtime, s.st_size, os.readlink('link'), open('é.txt').read(), "
        "os.path.isdir('a/empty'))",
        "0o100640 6.0 2304000 a/b c.bin é True",
    ),
    "names with underscores": (
        "__version__, __secret__ = '1', [2]\ndef __getattr__(name): return name",
        "print(__version__, __secret__, __getattr__('x'))",
        "1 [2] x",
    ),
    "a folder that cannot be written": (
        "import os; os.mkdir('d'); open('d/f', 'w').write('content'); os.chmod('d', 0o555); os.utime('d', (5, 6))",
        "import os; s = os.stat('d'); print(open('d/f').read(), oct(s.st_mode), s.st_mtime)",
        "content 0o40555 6.0",
    ),
    "module of the workspace": (
        "open('own.py', 'w').write('class A: x = 1'); import own; a = own.A()",
        "print(type(a) is own.A, own.__file__[-7:])",
        "True /own.py",
    ),
    "warnings": ("import warnings; warnings.simplefilter('error')", "import warnings; print(warnings.filters[0][0])", "error"),
}


@pytest.mark.parametrize("kind", mostly_long(KINDS, every=2))
async def test_what_cells_made_is_the_same_in_another_sandbox(sandboxes: Sandboxes, kind: str) -> None:
    code, look, expected = KINDS[kind]
    if "numpy" in code + look or "pandas" in code:
        found = await sandboxes.environment()
        if "numpy" not in dict(found[1]):
            pytest.skip("the Python of these sessions has no numpy")
    printed, variables, missing = await moved(sandboxes, code, look)
    assert (printed.strip(), variables.lost, missing) == (expected, {}, {})


async def test_what_cannot_be_saved_costs_its_own_name_only(sandboxes: Sandboxes) -> None:
    code = (
        "import select, threading, os\n"
        "gen, lock, file, poll = (i for i in 'ab'), threading.Lock(), open('f.txt', 'w'), select.epoll()\n"
        "class Bad:\n def __reduce__(self): raise SystemExit('no')\n"
        "class Prints:\n def __reduce__(self): print('seen'); global x; x = 0; return int, ()\n"
        "bad, noisy, x, view = Bad(), Prints(), 1, memoryview(b'a'); thread = threading.Thread(); os.mkfifo('pipe')"
    )
    printed, variables, missing = await moved(
        sandboxes, code, "print(x, noisy, sorted(set('gen lock file poll bad'.split()) & {*globals()}))"
    )
    assert (printed, missing) == ("1 0 []\n", {})
    assert sorted(variables.lost) == ["bad", "file", "file pipe", "gen", "lock", "poll", "thread", "view"]
    assert variables.lost["bad"] == "SystemExit: no"
    assert variables.lost["file"] == "TypeError: cannot save an open file"


async def test_files_that_cannot_be_read_are_named(sandboxes: Sandboxes) -> None:
    code = "import os; os.makedirs('d/e'); open('d/e/f', 'w').close(); open('g', 'w').close(); os.chmod('g', 0); os.chmod('d', 0)"
    printed, variables, missing = await moved(sandboxes, f"{code}\nreadable = os.access('g', os.R_OK)", "print(readable)")
    if printed == "True\n":
        pytest.skip("this user can read all files")
    assert (variables.lost, missing) == ({"files in d": "Permission denied", "file g": "Permission denied"}, {})


async def test_a_variable_whose_name_is_too_long_costs_itself_only(sandboxes: Sandboxes) -> None:
    printed, variables, _ = await moved(sandboxes, "globals()['x' * 2_000_000] = 1; y = 2", "print(y)")
    assert (printed, variables.lost) == ("2\n", {"x" * 1000: "its name is too long"})


async def test_a_save_changes_nothing_in_the_session(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.open()
    await run(sandbox, "class Counts:\n def __reduce__(self): self.n = 5; open('f', 'w').close(); return int, ()\nc = Counts(); c.n = 1")
    position = sandbox.ledger.position
    await save(sandbox)
    result = await run(sandbox, "c.n")
    assert (result.text, result.stdout, result.processes, result.variables) == ("1", "", (), ())
    assert sandbox.ledger.position == position
    await sandbox.close()


async def test_what_cannot_be_loaded_is_named_and_the_rest_is_there(sandboxes: Sandboxes) -> None:
    code = (
        "import os\nopen('gone.py', 'w').write('class A: pass'); import gone; a = gone.A(); b = 1\n"
        "class Late:\n def __reduce__(self): return os.remove, ('/mnt/data/missing',)\nlate = Late(); os.remove('gone.py')"
    )
    printed, variables, missing = await moved(sandboxes, code, "print(b)")
    assert (printed, variables.lost, sorted(missing)) == ("1\n", {}, ["a", "gone", "late"])
    assert missing["a"].startswith("ModuleNotFoundError: No module named 'gone'")


async def test_a_save_that_does_not_end_is_ended_and_the_session_goes_on(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.open()
    await run(sandbox, "import time\nclass Hangs:\n def __reduce__(self): time.sleep(1000)\nh = Hangs(); x = 1")
    with pytest.raises(SnapshotError, match="could not be saved within 1 s"):
        await save(sandbox, timeout=1)
    result = await run(sandbox, "del h; x")
    assert (result.text, result.processes) == ("1", ())
    assert (await save(sandbox))[1].lost == {}
    await sandbox.close()


FORGED = {
    "no record": b"x",
    "a header that is no JSON": RECORD.pack(3, 0) + b"{]}",
    "a header that is too long": RECORD.pack(1 << 30, 0),
    "another kind": RECORD.pack(16, 0) + b'{"kind": "other"}'[:16],
    "no end": RECORD.pack(len(b'{"kind": "settings"}'), 0) + b'{"kind": "settings"}',
    "a payload without end": RECORD.pack(len(b'{"kind": "group"}'), 1 << 60) + b'{"kind": "group"}',
}


@pytest.mark.parametrize("forged", [*FORGED])
async def test_a_forged_state_is_refused(sandboxes: Sandboxes, forged: str) -> None:
    sandbox = await sandboxes.open()
    module = "aca_sessions.sandbox.guest.saves"
    await run(
        sandbox,
        f"import sys, os; sys.modules[{module!r}]._write = lambda pipe, *_: (os.write(pipe.fileno(), {FORGED[forged]!r}), os._exit(0))",
    )
    with pytest.raises(SnapshotError, match=r"cannot be read|ended before its state was complete"):
        await save(sandbox)
    assert (await run(sandbox, "6 * 7")).text == "42"
    await sandbox.close()


async def test_a_state_that_is_cut_off_is_refused(sandboxes: Sandboxes) -> None:
    first = await sandboxes.open()
    await run(first, "x = list(range(1000)); y = 1")
    state, _ = await save(first)
    await first.close()
    for length in (0, 5, RECORD.size, len(state) // 2, len(state) - 1):
        with pytest.raises(SnapshotError, match="it is damaged"):
            await restored(sandboxes, state[:length])


async def test_an_error_of_the_store_is_raised_in_its_own_words(sandboxes: Sandboxes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the store is gone")

    sandbox = await sandboxes.open()
    with pytest.raises(OSError, match="the store is gone"):
        await sandbox.restore(chunks(), timeout=SECONDS)
    await sandbox.close()


async def test_cells_run_while_a_state_is_written_which_has_nothing_of_them(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.open()
    await run(
        sandbox,
        "import time\nclass Slow:\n def __reduce__(self): time.sleep(2); return int, (5,)\n"
        "slow, x = Slow(), [1]; _ = open('f.txt', 'w').write('before')",
    )
    may_run = asyncio.Event()

    async def receive(reader: StateReader) -> bytes:
        return b"".join([part async for part in reader.parts()])

    saving = asyncio.ensure_future(sandbox.save(receive, timeout=SECONDS, on_forked=may_run.set))
    await may_run.wait()
    changed = await run(sandbox, "x.append(2); _ = open('f.txt', 'w').write('after'); import os; os.remove('f.txt')")
    assert (changed.error, changed.processes, saving.done()) == (None, (), False)
    state = await saving
    assert (await run(sandbox, "print(x)")).processes == ()
    await sandbox.close()
    second, missing = await restored(sandboxes, state)
    assert (await run(second, "print(x, slow, open('f.txt').read())")).stdout == "[1] 5 before\n"
    assert missing == {}
    await second.close()


@pytest.mark.parametrize("change", ["open('f.bin', 'r+b').write(b'1')", "import os; os.remove('f.bin')", "import time; time.sleep(0.3)"])
async def test_a_large_file_that_changes_while_a_state_is_written_is_noticed(sandboxes: Sandboxes, change: str) -> None:
    sandbox = await sandboxes.open()
    await run(
        sandbox,
        "import sys, time; saves = sys.modules['aca_sessions.sandbox.guest.saves']; saves._READ_AT_ONCE = 0\n"
        "known = saves._Files._content\n"
        "def slow(*a): time.sleep(0.2); return known(*a)\nsaves._Files._content = slow; _ = open('f.bin', 'wb').write(b'0' * 9)",
    )

    async def receive(reader: StateReader) -> bytes:
        await run(sandbox, change)
        return b"".join([part async for part in reader.parts()])

    if "sleep" in change:
        assert b"0" * 9 in await sandbox.save(receive, timeout=SECONDS, on_forked=lambda: None)
    else:
        with pytest.raises(SnapshotError, match=r"f\.bin changed while it was saved"):
            await sandbox.save(receive, timeout=SECONDS, on_forked=lambda: None)
    await sandbox.close()


async def test_a_fork_that_writes_beside_cells_ends_before_they_reach_the_memory_limit(
    sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aca_sessions.sandbox.sandbox._SAVED_BELOW", 0.0)
    sandbox = await sandboxes.open()
    await run(sandbox, "import time\nclass Slow:\n def __reduce__(self): time.sleep(1000)\nslow = Slow()")

    async def receive(reader: StateReader) -> object:
        return [part async for part in reader.parts()]

    with pytest.raises(SnapshotError, match="may have reached a limit"):
        await sandbox.save(receive, timeout=SECONDS, on_forked=lambda: None)
    assert (await run(sandbox, "print(slow is not None)")).stdout == "True\n"
    await sandbox.close()


async def test_a_save_that_is_cancelled_while_the_session_forks_costs_no_variable(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.open()
    await run(sandbox, "x = 1")
    interpreter = await sandbox.interpreter()
    saving = asyncio.ensure_future(save(sandbox))
    while interpreter._cell is None:  # until the session was asked to fork
        await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert (await run(sandbox, "print(x)")).stdout == "1\n"
    assert (await save(sandbox))[1].saved == 1
    await sandbox.close()
