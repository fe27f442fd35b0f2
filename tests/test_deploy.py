"""Test the files of deploy/ that need no container."""

import json
import runpy

from .conftest import ROOT


def test_the_seccomp_profile_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "deploy" / "make_seccomp.py"))
    assert json.loads((ROOT / "deploy" / "seccomp.json").read_text()) == script["profile"]()


def test_the_seccomp_profile_allows_no_loading_tracing_or_reboot() -> None:
    profile = json.loads((ROOT / "deploy" / "seccomp.json").read_text())
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert allowed.isdisjoint(
        {"bpf", "ptrace", "init_module", "finit_module", "kexec_load", "reboot", "keyctl", "io_uring_setup", "perf_event_open"}
    )
