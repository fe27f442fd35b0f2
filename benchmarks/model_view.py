"""What a model reads: characters of the tool message, and which facts survive in it, on 30 fixed cells.

Beside ours stand the formats of Semantic Kernel's SessionsPythonTool and of LangChain's SessionsPythonREPLTool, each applied to what
Azure's own body says of the same execution (their text layouts are written down here; the tools themselves are not run).
"""

import asyncio
import json
import re
from dataclasses import dataclass

from aca_sessions import CodeExecutionResult, Session, open_pool
from aca_sessions.contract import flat
from aca_sessions.contract.records import ExecutionResponse

BUDGET = 10_000
FRAME = "import pandas as pd, numpy as np; df = pd.DataFrame({'city': ['Oslo', 'Bergen', 'Tromsø'], 'people': [709, 291, 77]})"
PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 2, 3]); plt.title('Sales per month'); plt.xlabel('month'); plt.ylabel('sold')"


@dataclass(frozen=True)
class Cell:
    """A cell, and what a model should know after it."""

    kind: str
    code: str
    facts: tuple[str, ...]


CELLS = [
    Cell("value", "6 * 7", ("42",)),
    Cell("value", "'a' * 3", ("aaa",)),
    Cell("value", "{'a': 1, 'b': [2, 3]}", ("'b': \\[2, 3\\]",)),
    Cell("value", "import numpy as np; np.float64(1) / 4", ("0\\.25",)),
    Cell("value", "print('printed'); 'valued'", ("printed", "valued")),
    Cell("value", "import sys; print('warned', file=sys.stderr); 1", ("warned", "1")),
    Cell("table", f"{FRAME}; df", ("Oslo", "709")),
    Cell("table", "df.describe()", ("mean", "359")),
    Cell("table", "df.sort_values('people').head(1)", ("Tromsø", "77")),
    Cell("table", "pd.DataFrame(np.arange(4000).reshape(1000, 4), columns=list('abcd'))", ("1000 rows x 4 columns",)),
    Cell("table", "df.groupby('city').people.sum().to_dict()", ("'Oslo': 709",)),
    Cell("plot", PLOT, ("Sales per month", "sold")),
    Cell("plot", "df.plot.bar(x='city', y='people', title='People by city')", ("People by city",)),
    Cell("plot", "fig, axes = plt.subplots(1, 2); axes[0].set_title('left'); axes[1].set_title('right'); plt.show()", ("left", "right")),
    Cell("plot", "plt.plot([1]); plt.title('one'); plt.show(); plt.plot([2]); plt.title('two'); plt.show()", ("one", "two")),
    Cell("plot", "print('drawn'); plt.plot([3]); plt.title('third'); plt.savefig('third.png')", ("drawn", "third\\.png", "third")),
    Cell("traceback", "valeu = 1\nvalue", ("NameError", "name 'value' is not defined", "line 2")),
    Cell("traceback", "df['population']", ("KeyError", "population", "df\\['population'\\]")),
    Cell(
        "traceback",
        "import json\ndef load(text):\n    return json.loads(text)\nload('{')",
        ("JSONDecodeError", "return json.loads", "load\\('\\{'\\)"),
    ),
    Cell("traceback", "x = (1,\ny = 2", ("SyntaxError", r"x = \(1,")),
    Cell("traceback", "print('before'); 1 / 0", ("before", "ZeroDivisionError")),
    Cell("traceback", "def f(n): return f(n + 1)\nf(0)", ("RecursionError",)),
    Cell("traceback", "pd.read_csv('missing.csv')", ("FileNotFoundError", "missing\\.csv", "read_csv")),
    Cell("flood", "for n in range(20_000): print('line', n)", ("line 0\\b", "line 19999")),
    Cell("flood", "'x' * 300_000 + 'the end'", ("xxxx", "the end")),
    Cell(
        "flood",
        "import sys\nfor n in range(5_000): print('warning', n, file=sys.stderr)\n'result'",
        ("warning 0\\b", "warning 4999", "result"),
    ),
    Cell("file", "df.to_csv('cities.csv', index=False)", ("cities\\.csv",)),
    Cell("file", "open('cities.csv', 'a').write('Bodø,53\\n'); len(open('cities.csv').readlines())", ("cities\\.csv", "5")),
    Cell("file", "import os; os.remove('cities.csv'); os.listdir('.')", ("cities\\.csv deleted|\\['third.png'\\]",)),
    Cell("state", "import os; os._exit(1)", ("lost|aborted", "gone|lost|aborted")),
]


def sessions_python_tool(result: CodeExecutionResult) -> str:
    body = _azure(result)
    status = "Success" if result.success else "Failure"
    return f"Status:\n{status}\nResult:\n{body['executionResult']}\nStdout:\n{body['stdout']}\nStderr:\n{body['stderr']}"


def langchain(result: CodeExecutionResult) -> str:
    body = _azure(result)
    value = body["executionResult"]
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "base64_data"}
    return json.dumps({"result": value, "stdout": body["stdout"], "stderr": body["stderr"]}, indent=2)


def _azure(result: CodeExecutionResult) -> dict:
    status = "Succeeded" if result.success else "Failed"
    execution = ExecutionResponse(id="e", identifier="s", status=status, result=result)
    return flat.encode_execution(execution, 1 << 30, rich=False)["result"]


FORMATS = {"ours": str, "SessionsPythonTool": sessions_python_tool, "LangChain": langchain}


async def results(session: Session) -> list[tuple[Cell, CodeExecutionResult]]:
    return [(cell, await session.run(cell.code)) for cell in CELLS]


async def main() -> None:
    assert len(CELLS) == 30
    async with open_pool() as pool, pool.session() as session:
        measured = await results(session)
    kinds = list(dict.fromkeys(cell.kind for cell in CELLS))
    print(f"{'kind':<10} {'cells':>5}" + "".join(f" {name:>19} chars {'facts':>7}" for name in FORMATS))
    for kind in [*kinds, "all"]:
        rows = [(cell, result) for cell, result in measured if kind in (cell.kind, "all")]
        line = f"{kind:<10} {len(rows):>5}"
        for show in FORMATS.values():
            texts = [(cell, show(result)) for cell, result in rows]
            kept = sum(bool(re.search(fact, text)) for cell, text in texts for fact in cell.facts)
            line += f" {sum(len(text) for _, text in texts):>25} {kept:>3}/{sum(len(cell.facts) for cell, _ in texts):<3}"
        print(line)
    over = {name: sum(len(show(result)) > BUDGET * 1.05 for _, result in measured) for name, show in FORMATS.items()}
    print(f"messages over {BUDGET} characters: " + ", ".join(f"{name} {count}" for name, count in over.items()))


if __name__ == "__main__":
    asyncio.run(main())
