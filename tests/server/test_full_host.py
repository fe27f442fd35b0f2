"""Test a host whose own disk is full: the error of an upload names that disk, and the upload leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

SMALL_DISK = 'mount -t tmpfs -o size=300k none "$1" && TMPDIR="$1" exec "$2" -c "$3"'

PROGRAM = """
import asyncio, os
from aca_sessions import Policy, open_pool
from aca_sessions.errors import ServiceError

async def main():
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool, pool.session() as session:
        await session.upload_file("small.bin", b"x" * 100_000)
        before = os.listdir(os.environ["TMPDIR"])
        for _ in range(2):
            try:
                await session.upload_file("large.bin", b"x" * (3 << 20))
            except ServiceError as error:
                print(error)
        print([file.name for file in await session.list_files()], os.listdir(os.environ["TMPDIR"]) == before)
        print(os.statvfs(os.environ["TMPDIR"]).f_bfree > 0)

asyncio.run(main())
"""


@pytest.mark.long
def test_an_upload_reports_that_the_hosts_disk_is_full(tmp_path: Path) -> None:
    unshared = next((one for one in (["unshare", "-m"], ["unshare", "-rm"]) if subprocess.call([*one, "true"]) == 0), None)
    if unshared is None:
        pytest.skip("this host gives no mount namespaces")
    command = [*unshared, "sh", "-c", SMALL_DISK, "sh", str(tmp_path), sys.executable, PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    said = (
        "the service answered 507 HostStorageFull: the disk of the server's host is full, not the session's: its operator must free space\n"
    )
    assert done.stdout == f"{said}{said}['small.bin'] True\nTrue\n", done.stderr
