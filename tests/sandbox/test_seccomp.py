"""The filter program, run by a small interpreter of classic BPF, for both architectures."""

import errno
import re
import struct
from pathlib import Path

import pytest

from aca_sessions.sandbox.guest import seccomp

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
GENERIC_SPELLING = {"newfstatat": ("fstatat", "newfstatat")}


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None, walls: seccomp.Walls = seccomp.NAMESPACES) -> int:
    """What the kernel would do with a call."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", seccomp.program(False, machine, walls=walls)))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case _:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                position += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_every_allowed_call_is_allowed_and_no_other(machine: str) -> None:
    allowed = seccomp.allowed(machine)
    depends_on_arguments = {
        allowed.get(name) for name in ("clone", "socket", "socketpair", "ioctl", "prctl", "personality", "mknodat", "mknod")
    }
    memfd = allowed["memfd_create"]
    for number in range(600):
        if number in depends_on_arguments:
            continue
        expected = ALLOW if number in allowed.values() and number != memfd else None
        if expected is None:
            expected = ERRNO | (errno.ENOSYS if number >= 424 else errno.EPERM)
        assert verdict(machine, number) == expected, number


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_a_foreign_instruction_set_is_killed(machine: str) -> None:
    assert verdict(machine, 0, architecture=0x40000003) == KILL


def test_x32_calls_are_refused() -> None:
    assert verdict("x86_64", 0x40000000) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_clone_makes_a_namespace(machine: str, flag: int) -> None:
    clone = seccomp.allowed(machine)["clone"]
    assert verdict(machine, clone, 17) == ALLOW
    assert verdict(machine, clone, flag | 17) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("family", "protocol", "expected"),
    [
        (1, 0, 0),
        (2, 6, 0),
        (10, 17, 0),
        (2, 1, errno.EPROTONOSUPPORT),
        (16, 0, errno.EAFNOSUPPORT),
        (17, 0, errno.EAFNOSUPPORT),
        (40, 0, errno.EAFNOSUPPORT),
    ],
)
def test_only_plain_sockets_can_be_made(machine: str, family: int, protocol: int, expected: int) -> None:
    answer = verdict(machine, seccomp.allowed(machine)["socket"], family, 1, protocol)
    assert answer == (ERRNO | expected if expected else ALLOW)


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("kind", "allowed"), [(1, True), (2, True), (1 | 0o2004000, True), (3, False), (5, False), (6, False), (10, False)]
)
def test_only_streams_and_datagrams_go_by_the_internet_families(machine: str, kind: int, allowed: bool) -> None:
    for family in (2, 10):
        answer = verdict(machine, seccomp.allowed(machine)["socket"], family, kind, 0)
        assert answer == (ALLOW if allowed else ERRNO | errno.ESOCKTNOSUPPORT)


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_pairs_are_made_of_unix_sockets_only(machine: str) -> None:
    pair = seccomp.allowed(machine)["socketpair"]
    assert verdict(machine, pair, 1, 1) == ALLOW
    for family in range(2, 50):
        assert verdict(machine, pair, family, 1) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_no_device_can_be_made(machine: str) -> None:
    mknodat = seccomp.allowed(machine)["mknodat"]
    assert verdict(machine, mknodat, 0, 0, 0o010644) == ALLOW
    assert verdict(machine, mknodat, 0, 0, 0o020644) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers on this machine")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", HEADERS[machine].read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    for name, number in seccomp.allowed(machine).items():
        known = [numbers[spelling] for spelling in GENERIC_SPELLING.get(name, (name,)) if spelling in numbers]
        assert not known or known[0] == number, name


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_without_namespaces_a_call_names_no_other_process(machine: str) -> None:
    numbers, walls = seccomp.allowed(machine), seccomp.Walls()
    for name in ("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr"):
        assert verdict(machine, numbers[name], 0, 1, walls=walls) == ALLOW
        assert verdict(machine, numbers[name], 1, 0, walls=walls) == ERRNO | errno.EPERM
    for name, itself in (("setpriority", 0), ("ioprio_set", 1)):
        assert verdict(machine, numbers[name], itself, 0, 5, walls=walls) == ALLOW
        for which, who in ((itself, 7), (itself + 1, 0), (itself + 2, 0)):
            assert verdict(machine, numbers[name], which, who, 5, walls=walls) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("walls", "name", "allowed"),
    [
        (seccomp.Walls(), "fchmodat", False),
        (seccomp.Walls(own_user=True), "fchmodat", True),
        (seccomp.Walls(), "kill", False),
        (seccomp.Walls(own_signals=True), "kill", True),
        (seccomp.Walls(own_user=True, own_signals=True), "connect", False),
        (seccomp.Walls(network=True), "connect", True),
        (seccomp.Walls(own_user=True, own_signals=True, network=True), "inotify_add_watch", False),
        (seccomp.NAMESPACES, "inotify_add_watch", True),
    ],
)
def test_a_wall_that_is_missing_costs_the_calls_that_it_would_hold(machine: str, walls: seccomp.Walls, name: str, allowed: bool) -> None:
    assert (verdict(machine, seccomp.allowed(machine)[name], walls=walls) == ALLOW) is allowed


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_without_namespaces_pairs_are_connected_streams(machine: str) -> None:
    pair, walls = seccomp.allowed(machine)["socketpair"], seccomp.Walls(network=True)
    assert verdict(machine, pair, 1, 1 | 0o2000000, walls=walls) == ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (16, 3)):
        assert verdict(machine, pair, family, kind, walls=walls) != ALLOW
    assert verdict(machine, seccomp.allowed(machine)["socket"], 1, 1, walls=walls) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_without_a_scope_of_signals_no_descriptor_sends_any(machine: str) -> None:
    fcntl = seccomp.allowed(machine)["fcntl"]
    for command in (8, 10, 15):
        assert verdict(machine, fcntl, 3, command, walls=seccomp.Walls()) == ERRNO | errno.EPERM
    assert verdict(machine, fcntl, 3, 3, walls=seccomp.Walls()) == ALLOW
