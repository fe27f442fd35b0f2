"""Share a model or dataset with all sessions, read-only.

A mount shows a folder of this host in every session, below /mnt. Nothing is copied,
so a model of many gigabytes costs a session no memory until it reads it, and the
files do not count against the session's disk. Sessions can read everything in the
folder: keep secrets out of it. As root, each session has a uid of its own, which
must be able to read the files. In settings: `"Sandbox": {"Mounts": [{"Host":
"/srv/models", "Guest": "/mnt/models"}]}`.
"""

import os
import tempfile
from pathlib import Path

from aca_sessions import InteractiveSession, Mount, Policy

with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)  # readable for the users of sessions
    Path(folder, "weights.txt").write_text("0.5 1.5 2.0")
    policy = Policy(mounts=(Mount(folder, "/mnt/models"),))
    with InteractiveSession(policy=policy) as session:
        print(session.run("open('/mnt/models/weights.txt').read().split()"))
        print(session.run("open('/mnt/models/weights.txt', 'w')").error)

# prints:
# ['0.5', '1.5', '2.0']
# OSError: [Errno 30] Read-only file system: '/mnt/models/weights.txt'
