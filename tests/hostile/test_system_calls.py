"""Test the filter of system calls from inside: a call outside the list is refused, whichever way it is made."""

import os
import signal

import pytest

from aca_sessions import Session

from ..conftest import mostly_long
from .attempts import PRELUDE, is_well, outcome
from .system_calls import REFUSED, refusal

pytestmark = pytest.mark.slow
PERSONALITIES = {"addresses that are not random": 0x0040000, "data that is code": 0x0400000, "another Linux": 0x0020000, "32 bits": 8}
CONTROLS = {"a filter of its own": (22, 2, 0), "another map of its memory": (35, 1, 4096)}
# Machine code for a function: the system call getpid, made as a program of another kind makes it.
OTHER_KINDS = {
    "32-bit gate": "b8 14 00 00 00 cd 80 c3",  # mov eax, 20; int 0x80; ret
    "x32 number": "b8 27 00 00 40 0f 05 c3",  # mov eax, 0x40000027; syscall; ret
    "far call into 32-bit code": "b8 14 00 00 00 0f 34 c3",  # mov eax, 20; sysenter; ret
    "return probe": "b8 4f 01 00 00 0f 05 c3",  # mov eax, 335; syscall; ret
    "probe": "b8 50 01 00 00 0f 05 c3",  # mov eax, 336; syscall; ret
}
ON_THIS_MACHINE = OTHER_KINDS if os.uname().machine == "x86_64" else {"no instruction": "00 00 00 00"}


@pytest.mark.parametrize("name", mostly_long(REFUSED, every=8))
async def test_a_call_outside_the_list_is_refused(session: Session, name: str) -> None:
    """Calls that trace, load, mount, share rings, handles, keys or queues with the kernel are refused by the filter."""
    number = REFUSED[name]
    assert await outcome(session, f"call({number}, 0, 0, 0, 0, 0, 0)", prelude=PRELUDE) == refusal(number)
    assert await outcome(session, f"call({number | 7 << 32}, -1, -1, -1, -1, -1, -1)", prelude=PRELUDE) == refusal(number)


@pytest.mark.parametrize("kind", ON_THIS_MACHINE)
async def test_calls_of_another_kind_do_not_bypass_the_filter(session: Session, kind: str) -> None:
    """Calls by the numbers of another instruction set (32-bit, x32) and by a probe's instructions end the process or do not exist."""
    ran = f"""
    import mmap
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("{ON_THIS_MACHINE[kind]}"))
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    def go():
        answer = run()
        os._exit(99 if answer > 0 else 1)
    status = alone(go)
    os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
    """
    ended = await outcome(session, ran, prelude=PRELUDE)
    killed = {f"got: {int(number)}" for number in (signal.SIGSYS, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP)}
    assert ended in killed | {"got: -1"}
    assert await is_well(session)


@pytest.mark.parametrize("personality", PERSONALITIES)
async def test_a_process_cannot_set_a_weaker_personality(session: Session, personality: str) -> None:
    """A session gives its processes no personality with weaker protections."""
    number = {"x86_64": 135}.get(os.uname().machine, 92)
    for low in (PERSONALITIES[personality], PERSONALITIES[personality] | 1 << 32):
        assert await outcome(session, f"call({number}, {low})", prelude=PRELUDE) == "EPERM"


@pytest.mark.parametrize("control", CONTROLS)
async def test_a_process_can_change_neither_its_filter_nor_its_memory_map(session: Session, control: str) -> None:
    """A session changes neither its filter nor what the kernel knows of its memory."""
    assert await outcome(session, f"checked(libc.prctl{CONTROLS[control] + (0, 0)})", prelude=PRELUDE) == "EPERM"
