"""What a session installed, for the Python programs that it starts: behind their own path, unlike what PYTHONPATH names."""

import os
import site

for path in os.environ.get("ACA_SESSIONS_PACKAGES", "").split(os.pathsep):
    if path:
        site.addsitedir(path)
