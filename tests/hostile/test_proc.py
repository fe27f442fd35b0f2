"""Attack the process table: a session may only read its own part of it."""

import os
from pathlib import Path

import pytest

from aca_sessions import Session, SessionPool

from ..conftest import mostly_long
from .attempts import PRELUDE, outcome

pytestmark = pytest.mark.slow
OF_THE_FIRST_PROCESS = {
    "environment": "open('/proc/1/environ').read()",
    "memory": "open('/proc/1/mem', 'rb').read(1)",
    "map of memory": "open('/proc/1/maps').read()",
    "memory's totals": "open('/proc/1/smaps_rollup').read()",
    "auxiliary vector": "open('/proc/1/auxv', 'rb').read()",
    "stack": "open('/proc/1/stack').read()",
    "system call": "open('/proc/1/syscall').read()",
    "input and output": "open('/proc/1/io').read()",
    "page table": "open('/proc/1/pagemap', 'rb').read(8)",
    "root": "os.readlink('/proc/1/root')",
    "working folder": "os.listdir('/proc/1/cwd')",
    "program": "os.readlink('/proc/1/exe')",
    "descriptors": "os.readlink('/proc/1/fd/2')",
    "standard error": "open('/proc/1/fd/2', 'w')",
    "descriptors' states": "open('/proc/1/fdinfo/0').read()",
    "namespaces": "os.readlink('/proc/1/ns/mnt')",
    "mapped files": "os.listdir('/proc/1/map_files')",
    "threads' memory": "open('/proc/1/task/1/mem', 'rb').read(1)",
    "security label, to write": "open('/proc/1/attr/current', 'w')",
}
WRITES = {
    "the handler of core dumps": "/proc/sys/kernel/core_pattern",
    "the loader of modules": "/proc/sys/kernel/modprobe",
    "the helper of hot-plugged devices": "/proc/sys/kernel/hotplug",
    "the emergency keys": "/proc/sysrq-trigger",
    "the caches": "/proc/sys/vm/drop_caches",
    "the overcommit of memory": "/proc/sys/vm/overcommit_memory",
    "the restriction of pointers": "/proc/sys/kernel/kptr_restrict",
    "the randomness of addresses": "/proc/sys/kernel/randomize_va_space",
    "the host's name": "/proc/sys/kernel/hostname",
    "the largest pid": "/proc/sys/kernel/pid_max",
    "formats of programs": "/proc/sys/fs/binfmt_misc/register",
    "forwarding of packets": "/proc/sys/net/ipv4/ip_forward",
    "sizes of sockets' buffers": "/proc/sys/net/ipv4/tcp_rmem",
    "the number of user namespaces": "/proc/sys/user/max_user_namespaces",
    "interrupts": "/proc/irq/default_smp_affinity",
    "its score before the out-of-memory killer": "/proc/self/oom_score_adj",
    "its first process's score": "/proc/1/oom_score_adj",
    "its map of users": "/proc/self/uid_map",
    "its map of groups": "/proc/self/gid_map",
    "its right to set groups": "/proc/self/setgroups",
    "its own memory": "/proc/self/mem",
    "its login": "/proc/self/loginuid",
    "its core dumps": "/proc/self/coredump_filter",
    "its page table's marks": "/proc/self/clear_refs",
    "its name": "/proc/self/comm",
    "its time namespace": "/proc/self/timens_offsets",
}
OF_THE_KERNEL = {
    "physical memory": "open('/proc/kcore', 'rb').read(1)",
    "messages": "os.read(os.open('/proc/kmsg', os.O_RDONLY), 1)",
    "pages' counts": "open('/proc/kpagecount', 'rb').read(8)",
    "pages' flags": "open('/proc/kpageflags', 'rb').read(8)",
    "objects": "open('/proc/slabinfo').read()",
    "virtual memory": "open('/proc/vmallocinfo').read()",
    "memory by its device": "open('/dev/mem', 'rb')",
    "ports by their device": "open('/dev/port', 'rb')",
    "messages by their device": "open('/dev/kmsg')",
}


async def test_a_session_sees_only_its_own_processes(session: Session) -> None:
    """A session sees its own processes and none of the host's or of other sessions'."""
    assert await outcome(session, "import os; sorted(int(pid) for pid in os.listdir('/proc') if pid.isdecimal())") == "got: [1, 2]"
    assert await outcome(session, f"import os; os.listdir('/proc/{os.getpid()}')") == "ENOENT"


@pytest.mark.parametrize("thing", mostly_long(OF_THE_FIRST_PROCESS, every=3))
async def test_nothing_can_be_read_from_the_first_process(session: Session, thing: str) -> None:
    """Of its first process, which holds the host's standard error, a session reads no memory, link, descriptor or namespace."""
    assert await outcome(session, OF_THE_FIRST_PROCESS[thing], prelude=PRELUDE) in ("EACCES", "EPERM")


@pytest.mark.parametrize("file", mostly_long(WRITES, every=4))
async def test_nothing_below_proc_can_be_written(session: Session, file: str) -> None:
    """A session writes to no file below /proc, neither the kernel's settings nor its own process's."""
    path = Path(WRITES[file])
    of_the_host = "self" not in path.parts and "1" not in path.parts and path.exists() and os.access(path, os.R_OK)
    before = path.read_text() if of_the_host else ""
    for attempt in (
        f"open({str(path)!r}, 'w')",
        f"os.truncate({str(path)!r}, 0)",
        f"os.chmod({str(path)!r}, 0o777); open({str(path)!r}, 'w')",
    ):
        assert await outcome(session, attempt, prelude=PRELUDE) in ("EACCES", "EPERM", "ENOENT", "EROFS")
    assert (path.read_text() if of_the_host else "") == before


@pytest.mark.parametrize("thing", mostly_long(OF_THE_KERNEL, every=3))
async def test_the_kernels_memory_is_not_visible(session: Session, thing: str) -> None:
    """A session reads neither the kernel's memory nor its messages."""
    nothing = ("EACCES", "EPERM", "ENOENT", "got: b''", "got: ''", "got: ")
    assert await outcome(session, OF_THE_KERNEL[thing], prelude=PRELUDE) in nothing


SHOWN = {
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "self",
    "stat",
    "sys",
    "thread-self",
    "uptime",
    "version",
    "vmstat",
}
TELLING_SETTINGS = ("fs/dentry-state", "fs/file-nr", "fs/inode-nr", "fs/inode-state", "kernel/random/boot_id")


async def test_groups_and_hardware_of_the_host_are_not_visible(pool: SessionPool) -> None:
    """Besides its processes and settings a session reads below /proc how large and busy the machine is, and nothing else: no device, lock,
    key, boot option, boot id or control group of the host.
    """
    async with pool.session() as beside, pool.session() as session:
        await beside.run("1")
        for process in ("self", "1"):
            groups = (await session.run(f"open('/proc/{process}/cgroup').read()")).value
            assert [line for line in groups.splitlines() if line.split(":", 2)[2] != "/"] == []
        names = [name for name in os.listdir("/proc") if not name.isdecimal() and name not in SHOWN]
        names += [f"sys/{name}" for name in TELLING_SETTINGS]
        code = "[os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1) for path in paths if os.path.exists(path)]"
        told = await session.run(f"import os; paths = [f'/proc/{{name}}' for name in {names}]; any({code})")
        assert told.value is False


async def test_frames_of_physical_memory_are_not_visible(session: Session) -> None:
    """A session does not learn which physical memory it has, nor where the machine's devices lie."""
    own_frames = """
    import ctypes, os, struct
    page = ctypes.create_string_buffer(b"x" * 8192)
    with open("/proc/self/pagemap", "rb", buffering=0) as map:
        map.seek(ctypes.addressof(page) // 4096 * 8)
        struct.unpack("Q", map.read(8))[0] & (1 << 55) - 1
    """
    assert await outcome(session, own_frames) in ("got: ", "got: 0", "EPERM", "EACCES")
    devices = "{line.split()[0] for line in open('/proc/iomem')} <= {'00000000-00000000'}"
    assert await outcome(session, devices) == "got: True"
