"""Our Python as a kernel of programs that have another one."""

import json
import sys
from pathlib import Path


def kernel_environment(folder: Path) -> dict[str, str]:
    """Write a kernel named `python3`, which uses our Python, to a folder. Return the environment variables that make Jupyter find it."""
    kernel = folder / "share" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": start, "display_name": "Python 3", "language": "python"}))
    places = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    return {**places, "JUPYTER_PATH": str(folder / "share")}
