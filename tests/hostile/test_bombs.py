"""Exhaust every resource. Afterwards the session still runs cells, at the latest with its next interpreter, and so do others."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aca_sessions import Limits, Policy, SessionPool, open_pool
from aca_sessions.sandbox.policy import MB

from ..conftest import IMAGE, mostly_long
from .attempts import is_well

pytestmark = pytest.mark.slow
SMALL = replace(Limits(), memory=384 * MB, disk=16 * MB, temporary=8 * MB, files=500, processes=40, open_files=128, output=100_000)
UNTIL_REFUSED = (
    "kept = []\ntry:\n    for n in range(1_000_000):\n        {}\nexcept (OSError, MemoryError, RuntimeError) as e:\n    e = type(e)\ne"
)
BOMBS = {
    "processes": UNTIL_REFUSED.format("import os, time; os.fork() or time.sleep(30)"),
    "programs": UNTIL_REFUSED.format("import subprocess; kept.append(subprocess.Popen(['sleep', '30']))"),
    "threads": UNTIL_REFUSED.format(
        "import threading, time; kept.append(threading.Thread(target=time.sleep, args=(30,), daemon=True)); kept[-1].start()"
    ),
    "zombies": UNTIL_REFUSED.format("import os; os.fork() or os._exit(0)"),
    "a list": UNTIL_REFUSED.format("kept.append(bytes(1 << 20))") + "\ndel kept",
    "one great array": UNTIL_REFUSED.format("kept.append(bytearray(1 << 34))"),
    "a file": UNTIL_REFUSED.format("open('f', 'ab').write(bytes(1 << 20))"),
    "temporary files": UNTIL_REFUSED.format("open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))"),
    "shared memory": UNTIL_REFUSED.format("open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 20))"),
    "many files": UNTIL_REFUSED.format("open(f'f{n}', 'w').close()"),
    "many folders": UNTIL_REFUSED.format("import os; os.mkdir(f'd{n}')"),
    "folders in folders": UNTIL_REFUSED.format("import os; os.mkdir('d' * 200); os.chdir('d' * 200)") + "\nos.chdir('/mnt/data')",
    "descriptors": UNTIL_REFUSED.format("import os; kept.append(os.dup(0))") + "\n[os.close(k) for k in kept]",
    "pipes": UNTIL_REFUSED.format("import os; kept += os.pipe()") + "\n[os.close(k) for k in kept]",
    "terminals": UNTIL_REFUSED.format("import os; kept += os.openpty()") + "\n[os.close(k) for k in kept]",
    "output": "import os\nfor _ in range(300): os.write(1, b'x' * (1 << 20))",
    "errors": "import sys\nfor _ in range(300_000): print('x' * 99, file=sys.stderr)",
    "displays": "from IPython.display import display, HTML\nfor _ in range(3000): display(HTML('x' * 50_000))",
    "an endless loop": "while True: pass",
    "a loop that catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "a loop in C": "sum(range(10**12))",
    "signals shut off": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "a deep recursion": "def f(): f()\nf()",
    "a deeper one": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "a segmentation fault": "import ctypes; ctypes.string_at(0)",
    "an abort": "import os; os.abort()",
    "its own end": "import os; os._exit(7)",
    "a kill of all": "import os; os.kill(-1, 9)",
    "a regular expression": "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
    "a huge number": "10 ** 10 ** 10",
    "a huge text as the value": "'x' * (1 << 27)",
}
# These run until their time limit, or keep a processor busy for seconds.
LASTING = {
    *("folders in folders", "output", "errors", "displays", "a loop that catches everything", "a loop in C", "signals shut off"),
    *("a deeper one", "a regular expression", "a huge number", "a huge text as the value"),
}


@pytest.fixture
async def small() -> AsyncIterator[SessionPool]:
    async with open_pool(policy=Policy(image=IMAGE, limits=SMALL, preload=(), spares=0)) as pool:
        yield pool


@pytest.mark.parametrize("bomb", mostly_long(BOMBS, *BOMBS.keys() - LASTING))
async def test_a_bomb_ends_at_its_limit(small: SessionPool, bomb: str) -> None:
    """Whatever a session uses up ends at its limit: it answers afterwards, its files are kept, others notice nothing."""
    async with small.session() as session, small.session() as other:
        await other.run("x = 1")
        await session.upload_file("kept.txt", b"kept")
        result = await session.run(BOMBS[bomb], timeout=3)
        assert len(result.stdout) + len(result.stderr) < 300_000
        assert str((await other.run("x")).state) == "kept"
        if result.state.kind == "kept" and result.processes:
            await session.reset()
        again = await session.run("open('/mnt/data/kept.txt').read()")
        if again.state.kind == "lost":  # an interpreter that could not be kept, reported once
            again = await session.run("open('/mnt/data/kept.txt').read()")
        assert again.value == "kept"
        assert await is_well(session)
        assert await is_well(other)


ENDINGS = ["a segmentation fault", "an abort", "its own end", "signals shut off"]


@pytest.mark.parametrize("ending", mostly_long(ENDINGS, "a segmentation fault", "its own end"))
async def test_the_end_of_the_interpreter_is_reported(small: SessionPool, ending: str) -> None:
    """The result of a cell whose interpreter ended says that the variables are lost, and why, if there is no checkpoint."""
    async with small.session() as session:
        await session.run("x = 1")
        result = await session.run(BOMBS[ending], timeout=1 if ending == "signals shut off" else None)
        assert (result.success, result.state.kind) == (False, "lost")
        assert result.state.reason in ("crash", "exit", "killed")
        assert (await session.run("'x' in globals()")).value is False
