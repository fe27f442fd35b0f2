"""Use any file name on a real session's files."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import MB, Limits
from aca_sessions.sandbox.session.files import Files, UnusableNameError

from ..conftest import uncharged

pytestmark = pytest.mark.slow
PARTS = st.sampled_from(["a", "b", "..", ".", "", "/", "/etc", "/mnt/data", "passwd", "link", "\0", "x" * 300, "é", "\ud800", "%2e%2e"])
NAMES = st.text(max_size=12) | PARTS | st.lists(PARTS, max_size=5).map("/".join)
ACTS = st.sampled_from(["write", "read", "describe", "delete", "listing"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(ACTS, NAMES, NAMES), min_size=1, max_size=30))
def test_no_name_leads_out_of_a_sessions_files(fork_server: ForkServer, acts: list[tuple[str, str, str]]) -> None:
    """Whatever a file is called, the host reads and writes below /mnt/data only, or refuses."""
    workspace = fork_server.make_workspace(Limits(disk=MB, files=200))
    files = Files(workspace)
    try:
        for act, name, folder in acts:
            try:
                if act == "write":
                    files.write(name, [b"own"], folder, uncharged)
                elif act == "read":
                    with contextlib.closing(files.open(name, folder)) as reading:
                        assert reading.chunk(0, 10) == b"own"
                elif act == "listing":
                    assert all(file.size in (0, 3) or file.is_directory for file in files.listing(folder, recursive=True))
                else:
                    getattr(files, act)(name, folder)
            except (UnusableNameError, OSError):
                continue
    finally:
        files.close()
        fork_server.drop_workspace(workspace)
