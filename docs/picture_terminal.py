"""Draw docs/pictures/terminal-light.svg and terminal-dark.svg: what commands print, run here."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI
from rich.text import Text

COMMANDS = (
    """run 'sum(range(10))'""",
    """run --file sales.csv 'import csv; [*csv.DictReader(open("sales.csv"))][-1]'""",
    """run 'open("/etc/shadow").read()'""",
    """run 'import urllib.request as web; web.urlopen("https://example.org")' 2>&1 | tail -2""",
    """run --timeout 1 'while True: pass'""",
)
FOLDER = Path(__file__).parent / "pictures"


def main() -> None:
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sales.csv").write_text("month,sold\n2026-01,120\n2026-02,135\n")
        for command in COMMANDS:
            # `script` runs it at a terminal, so that colours are printed.
            run = ["/usr/bin/script", "-qec", f"{sys.executable} -m aca_sessions.cli.main {command}", "/dev/null"]
            printed = subprocess.run(run, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False).stdout.decode()
            shown.append((command, re.sub(r"[^\n]*\r(?!\n)", "", printed).replace("\r", "")))
    for name, theme in (("light", DEFAULT_TERMINAL_THEME), ("dark", MONOKAI)):
        with open("/dev/null", "w") as nowhere:
            console = Console(record=True, width=100, file=nowhere, force_terminal=True)
            for command, printed in shown:
                console.print(Text.assemble(("$ ", "bold green"), (f"aca-sessions {command}", "bold")))
                console.print(Text.from_ansi(printed.rstrip("\n")))
            (FOLDER / f"terminal-{name}.svg").write_text(console.export_svg(title="aca-sessions", theme=theme))


if __name__ == "__main__":
    main()
