"""Run the example of a page, whose model is a script."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from samples.scripted_model import ScriptedModel, Step

_FOLDER = Path(__file__).parent.parent.parent / "docs" / "integrations"
_EXAMPLE = re.compile(r"```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)


def run_example(page: str, script: Sequence[Step], folder: Path) -> ScriptedModel:
    """Run the example of a page as a program in a folder, and check what it prints. The script answers as OpenAI's API: return it."""
    [(code, output)] = _EXAMPLE.findall((_FOLDER / page).read_text())
    program = folder / "example.py"
    program.write_text(code)
    with ScriptedModel(script) as model:
        environment = os.environ | {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "scripted"}
        run = subprocess.run(
            [sys.executable, program], capture_output=True, text=True, timeout=240, check=False, cwd=folder, env=environment
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout == output
    return model
