"""The contenders: ours and other people's ways to run cells with state, each behind the same few verbs.

A peer that has no way to do something says so with NotMeasured, and never answers with a number of something else.
"""

import asyncio
import base64
import contextlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from aca_sessions import Session, SessionPool

LIBRARIES = "import numpy, pandas, matplotlib.pyplot"
KILL = "import os; os._exit(1)"
_PATIENCE = 60.0


class NotMeasured(Exception):
    """Why a peer has no number in a row."""


class WrongAnswer(Exception):
    """What a cell gave that it should not have given."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a cell gave: its text, and how many pictures."""

    text: str
    pictures: int = 0


class Peer(Protocol):
    """One session with state. `prepare` is what can be done before anybody asks for it, `open` what cannot."""

    async def prepare(self) -> None: ...
    async def open(self) -> None: ...
    async def run(self, code: str) -> Reply: ...
    async def interrupt(self, running: "asyncio.Task[Reply]") -> None: ...
    async def kill(self) -> None: ...
    async def processes(self) -> list[psutil.Process]: ...
    async def close(self) -> None: ...


class Ours:
    """A session of a pool over the embedded sandbox."""

    def __init__(self, pool: SessionPool) -> None:
        self._pool = pool
        self._session: Session | None = None

    async def prepare(self) -> None:
        """The pool keeps spares by itself, if it does."""

    async def open(self) -> None:
        self._session = await self._pool.get_or_create()

    async def run(self, code: str) -> Reply:
        result = await self._session.run(code)
        return Reply(result.text or "", len(result.images))

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        running.cancel()
        await asyncio.wait({running})

    async def kill(self) -> None:
        await self._session.run(KILL)

    async def processes(self) -> list[psutil.Process]:
        """All that are in the session's pid namespace: its init and its interpreter."""
        space = (await self.run("import os; os.readlink('/proc/self/ns/pid')")).text.strip("'")
        return [process for process in psutil.Process().children(recursive=True) if _pid_namespace(process) == space]

    async def close(self) -> None:
        await self._pool.release(self._session.session_id)


class Ipykernel:
    """A stock ipykernel, spoken to with jupyter_client."""

    async def prepare(self) -> None:
        from jupyter_client import AsyncKernelManager

        self._kernel = AsyncKernelManager(kernel_name="python3")
        await self._kernel.start_kernel()
        await self._connect()

    async def open(self) -> None:
        """It was started for this one user."""

    async def run(self, code: str) -> Reply:
        messages: list[dict] = []
        await self._client.execute_interactive(code, output_hook=messages.append, allow_stdin=False, timeout=_PATIENCE)
        shown = [message["content"]["data"] for message in messages if message["msg_type"] in ("execute_result", "display_data")]
        pictures = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
        return Reply("".join(data.get("text/plain", "") for data in shown), len(pictures))

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        await self._kernel.interrupt_kernel()
        await running

    async def kill(self) -> None:
        """Nothing tells the client: it looks at the process, and has it started again."""
        self._client.execute(KILL)
        while await self._kernel.is_alive():  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.001)
        self._client.stop_channels()
        await self._kernel.restart_kernel(now=True)
        await self._connect()

    async def processes(self) -> list[psutil.Process]:
        return [await _interpreter(self)]

    async def close(self) -> None:
        self._client.stop_channels()
        await self._kernel.shutdown_kernel(now=True)

    async def _connect(self) -> None:
        self._client = self._kernel.client()
        self._client.start_channels()
        await self._client.wait_for_ready(timeout=_PATIENCE)


class AutoGen:
    """AutoGen's JupyterCodeExecutor."""

    async def prepare(self) -> None:
        from autogen_ext.code_executors.jupyter import JupyterCodeExecutor

        self._folder = tempfile.TemporaryDirectory()
        self._executor = JupyterCodeExecutor(output_dir=self._folder.name)
        await self._executor.start()

    async def open(self) -> None:
        """It was started for this one user."""

    async def run(self, code: str) -> Reply:
        from autogen_core import CancellationToken
        from autogen_core.code_executor import CodeBlock

        self._token = CancellationToken()
        result = await self._executor.execute_code_blocks([CodeBlock(code=code, language="python")], self._token)
        return Reply(result.output, sum(path.suffix == ".png" for path in result.output_files))

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        self._token.cancel()
        await asyncio.wait({running})

    async def kill(self) -> None:
        from nbclient.exceptions import DeadKernelError

        with contextlib.suppress(DeadKernelError):
            await self.run(KILL)
        await self._executor.restart()

    async def processes(self) -> list[psutil.Process]:
        return [await _interpreter(self)]

    async def close(self) -> None:
        await self._executor.stop()
        self._folder.cleanup()


class Smolagents:
    """smolagents' LocalPythonExecutor: an interpreter of syntax trees in the caller's own process, without isolation."""

    async def prepare(self) -> None:
        """Nothing has to be started."""

    async def open(self) -> None:
        from smolagents import LocalPythonExecutor

        self._executor = LocalPythonExecutor(additional_authorized_imports=["numpy.*", "pandas.*", "matplotlib.*"])
        self._executor.send_tools({})

    async def run(self, code: str) -> Reply:
        return Reply(str(self._executor(code).output))

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        raise NotMeasured("it cannot be interrupted")

    async def kill(self) -> None:
        raise NotMeasured("it runs in the caller's process, and dies with it")

    async def processes(self) -> list[psutil.Process]:
        raise NotMeasured("it has no process of its own")

    async def close(self) -> None:
        """Nothing was started."""


class Ipybox:
    """ipybox's CodeExecutor without its sandbox: an ipykernel behind a Kernel Gateway of its own."""

    async def prepare(self) -> None:
        from ipybox import CodeExecutor

        self._folder = tempfile.TemporaryDirectory()
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._executor = CodeExecutor(images_dir=Path(self._folder.name), kernel_env=threads, kernel_init_timeout=_PATIENCE)
        await self._executor.start()

    async def open(self) -> None:
        """It was started for this one user."""

    async def run(self, code: str) -> Reply:
        result = await self._executor.execute(code)
        return Reply(result.text or "", len(result.images))

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        self._executor.cancel()
        await running

    async def kill(self) -> None:
        """Nothing tells the caller either, so a time limit does."""
        with contextlib.suppress(TimeoutError):
            await self._executor.execute(KILL, timeout=0.2)
        await self._executor.reset()

    async def processes(self) -> list[psutil.Process]:
        kernel = await _interpreter(self)
        return [kernel, kernel.parent()]

    async def close(self) -> None:
        await self._executor.stop()
        self._folder.cleanup()


class LlmSandbox:
    """llm-sandbox's InteractiveSandboxSession: IPython in a container."""

    async def prepare(self) -> None:
        if not await asyncio.to_thread(docker_answers):
            raise NotMeasured("it needs Docker, and no Docker daemon answers here")
        from llm_sandbox import InteractiveSandboxSession

        self._session = InteractiveSandboxSession()
        await asyncio.to_thread(self._session.open)

    async def open(self) -> None:
        """It was started for this one user."""

    async def run(self, code: str) -> Reply:
        return Reply((await asyncio.to_thread(self._session.run, code)).stdout)

    async def interrupt(self, running: "asyncio.Task[Reply]") -> None:
        raise NotMeasured("it has no call for it")

    async def kill(self) -> None:
        raise NotMeasured("it does not notice that its interpreter died")

    async def processes(self) -> list[psutil.Process]:
        raise NotMeasured("its processes belong to the Docker daemon")

    async def close(self) -> None:
        await asyncio.to_thread(self._session.close)


def private_megabytes(processes: list[psutil.Process]) -> float:
    """What would become free if these ended: pages that they share with nobody."""
    lines = [line for process in processes for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))) / 1024


def docker_answers() -> bool:
    """Whether there is a Docker daemon, and not only its command."""
    return shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0


async def _interpreter(session: Peer) -> psutil.Process:
    """Of a session that shares our pid namespace."""
    reply = await session.run("import os; os.getpid()")
    if not reply.text.isdigit():
        raise WrongAnswer(f"`os.getpid()` gave {reply.text!r}")
    return psutil.Process(int(reply.text))


def _pid_namespace(process: psutil.Process) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{process.pid}/ns/pid").readlink())
    return ""
