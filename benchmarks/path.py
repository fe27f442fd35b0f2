"""How many of our files and functions one cell enters on the host's side, through `PythonCodeInterpreterPlugin.execute_python`.

python benchmarks/path.py [--list]
"""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

import aca_sessions
from aca_sessions import PythonCodeInterpreterPlugin, Settings

SOURCE = Path(aca_sessions.__file__).parent


async def entered(code: str) -> set[CodeType]:
    """Return the functions of ours that a cell enters in a session that is already warm."""
    found: set[CodeType] = set()

    def enter(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            found.add(frame.f_code)

    alone = Settings(Sandbox={"Preload": [], "Spares": 0})  # no spare is made in the background while the cell runs
    async with PythonCodeInterpreterPlugin(settings=alone) as python:
        for _ in range(3):
            await python.execute_python("1")
        sys.setprofile(enter)
        await python.execute_python(code)
        sys.setprofile(None)
    return found


def main() -> None:
    functions = asyncio.run(entered("x = 20\nx + 22"))
    files = Counter(str(Path(code.co_filename).relative_to(SOURCE)) for code in functions)
    if "--list" in sys.argv:
        for file, number in sorted(files.items()):
            names = sorted(code.co_qualname for code in functions if code.co_filename.endswith(f"/{file}"))
            print(f"{file} ({number}): {', '.join(names)}")
    print(f"one cell enters {len(files)} files and {len(functions)} functions on the host's side")


if __name__ == "__main__":
    main()
