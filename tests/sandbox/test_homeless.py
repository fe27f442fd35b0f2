"""Test a user without a home, as services and containers have: nothing is made in a folder named `~`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os, sys
from aca_sessions import Settings, open_pool
from aca_sessions.errors import ConfigurationError
from aca_sessions.sandbox import policy
from aca_sessions.sandbox.images import image_python, images
from aca_sessions.sandbox.packages import cache, environments, store

os.setgroups([])
os.setgid(54321)
os.setuid(54321)
for source in (policy.PackageSource(), policy.PackageSource(cache="~/packages")):
    print(repr(source.folder), cache.make_mount(source))
for find in (images._folder, environments._environments_folder):
    try:
        find()
    except ConfigurationError as error:
        print(str(error).rpartition(": ")[2])
try:
    cache.PackageCache(policy.PackageSource().folder, 1)
except cache.PackageError as error:
    print(str(error).rpartition(": ")[2])
print(os.listdir("."))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that the machine does not know")
def test_a_user_without_a_home_gets_no_folder_of_that_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    environment = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("XDG_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.splitlines() == [
        "'' {}",
        "'' {}",
        "set HOME or XDG_CACHE_HOME",
        "set HOME or XDG_DATA_HOME",
        "set HOME or XDG_CACHE_HOME, or name a folder in ACASessions:Packages:CacheFolder",
        "[]",
    ], done.stderr
