"""Start-up code of Python programs in a session. It adds the session's packages to the end of `sys.path`, and refuses `pip install`.

PYTHONPATH is not used for this, because its folders come before the program's own packages.
"""

import os
import site
import sys

for path in os.environ.get("ACA_SESSIONS_PACKAGES", "").split(os.pathsep):
    if path:
        site.addsitedir(path)

try:
    with open("/proc/self/cmdline") as _file:  # sys.argv is not complete yet, and sys.orig_argv is new in Python 3.10
        _words = getattr(sys, "orig_argv", _file.read().split("\0")[:-1])[1:]
except OSError:
    _words = getattr(sys, "orig_argv", [])[1:]
while _words[:1] and _words[0].startswith("-") and _words[0] != "-m":
    _words = _words[1:]
if _words[:2] == ["-m", "pip"] or (_words and os.path.basename(_words[0]).startswith("pip")):
    import no_pip  # type: ignore[import-not-found]

    no_pip.refuse(_words[2:] if _words[0] == "-m" else _words[1:])
