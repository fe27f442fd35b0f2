"""Run every example of llm-sandbox's page on interactive sessions with only its import changed."""

import dataclasses
import gc
import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aca_sessions.compat.llm_sandbox import (
    ConsoleOutput,
    InteractiveSandboxSession,
    InteractiveSettings,
    KernelType,
    Options,
    SandboxSession,
)
from aca_sessions.errors import ACASessionsError, ExecutionError, InvalidArgumentError, NotSupportedError


@pytest.fixture
def session() -> Iterator[InteractiveSandboxSession]:
    with InteractiveSandboxSession(lang="python") as opened:
        yield opened


def test_quick_start(session: InteractiveSandboxSession) -> None:
    session.run("value = 21 * 2")
    assert session.run("print(f'Result: {value}')").stdout == "Result: 42\n"


def test_a_session_from_keyword_arguments() -> None:
    with InteractiveSandboxSession(lang="python", kernel_type="ipython", history_size=200, timeout=300) as session:
        assert session.settings == InteractiveSettings(kernel_type="ipython", history_size=200, timeout=300)
        assert session.run("1").success()


def test_running_cells(session: InteractiveSandboxSession) -> None:
    session.run("import pandas as pd")
    session.run("import numpy as np")
    session.run("\ndata = pd.DataFrame({\n    'x': np.random.randn(100),\n    'y': np.random.randn(100)\n})\n")
    result = session.run("""
print(f"Shape: {data.shape}")
print(f"Mean of x: {data['x'].mean():.2f}")
print(f"Mean of y: {data['y'].mean():.2f}")
""")
    assert result.stdout.startswith("Shape: (100, 2)\nMean of x: ")


@pytest.mark.long
def test_installing_libraries(session: InteractiveSandboxSession) -> None:
    code = """
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 10, 100)
y = np.sin(x)

plt.plot(x, y)
plt.title("Sine Wave")
print("Plot created")
"""
    assert session.run(code, libraries=["matplotlib", "numpy"]).stdout.startswith("Plot created\n")


def test_libraries_that_cannot_be_installed_are_an_error_and_leave_nothing_open() -> None:
    session = InteractiveSandboxSession(libraries=["no such name"])
    with pytest.raises(ExecutionError, match="InvalidRequirementError"):
        session.open()
    with pytest.raises(ACASessionsError, match="use 'with"):
        session.run("1")


def test_settings_as_one_object() -> None:
    settings = InteractiveSettings(kernel_type=KernelType.IPYTHON, max_memory="2GB", history_size=500, timeout=600, poll_interval=0.1)
    with InteractiveSandboxSession(lang="python", interactive_settings=settings) as session:
        assert session.run("6 * 7").stdout == "42\n"


@pytest.mark.parametrize("settings", [{"max_memory": "4GB", "timeout": 600, "history_size": 100}, {"timeout": 900}, {"max_memory": "8GB"}])
def test_settings_for_more_memory_and_time(settings: dict[str, Any]) -> None:
    with InteractiveSandboxSession(lang="python", interactive_settings=InteractiveSettings(**settings)) as session:
        assert session.run("6 * 7").stdout == "42\n"


def test_a_capitalised_language_and_memory_without_a_limit() -> None:
    with InteractiveSandboxSession(lang="PYTHON", max_memory=None) as session:
        assert session.settings.max_memory is None
        assert session.run("6 * 7").stdout == "42\n"


@pytest.mark.parametrize("kind", [InteractiveSandboxSession, SandboxSession])
def test_errors_and_warnings_name_the_users_class(kind: type[InteractiveSandboxSession]) -> None:
    with pytest.raises(ACASessionsError, match=f"use 'with {kind.__name__}"):
        kind().run("1")
    with pytest.warns(ResourceWarning, match=f"<{kind.__name__} open> made at {re.escape(__file__)}"):
        _forget(kind)


def _forget(kind: type[InteractiveSandboxSession]) -> None:
    session = kind()
    session.open()
    del session
    gc.collect()


@pytest.mark.parametrize("kind", [InteractiveSandboxSession, SandboxSession])
def test_every_argument_and_method_is_shown_by_help_and_type_checkers(kind: type[InteractiveSandboxSession]) -> None:
    settings = {field.name for field in dataclasses.fields(InteractiveSettings)}
    assert settings | {"libraries", "image", "backend"} <= typing.get_type_hints(Options).keys()
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext).replace("(\n |      self", "(self")  # Python 3.13 breaks long signatures
    for name in ("open", "close", "run", "install", "execute_command", "execute_commands", "copy_to_runtime", "copy_from_runtime"):
        assert inspect.getdoc(inspect.getattr_static(kind, name))
        assert f" {name}(self" in shown


def test_both_time_limits_of_llm_sandbox_are_accepted() -> None:
    InteractiveSandboxSession(execution_timeout=5.0, default_timeout=6.0)


def test_the_documented_defaults() -> None:
    assert InteractiveSettings() == InteractiveSettings(
        kernel_type=KernelType.IPYTHON, max_memory="1GB", history_size=1000, timeout=300, poll_interval=0.1
    )


def test_magic_commands(session: InteractiveSandboxSession) -> None:
    session.run("found = 1; open('here.txt', 'w').close()")
    result = session.run("%who")
    assert "found" in result.stdout
    result = session.run("%pwd")
    assert result.stdout == "'/sandbox'\n"
    result = session.run("!ls -la /sandbox")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["0", ".", "..", "here.txt"]


@pytest.mark.long  # timeit measures for up to ten seconds
def test_a_cell_is_timed(session: InteractiveSandboxSession) -> None:
    result = session.run("""
%%timeit
sum(range(1000))
""")
    assert "loop" in result.stdout


def test_the_working_directory_has_its_name_wherever_it_is_shown(session: InteractiveSandboxSession) -> None:
    assert session.run("!pwd").stdout == "/sandbox\n"
    assert session.execute_command("pwd; ls -ld /sandbox").stdout.splitlines()[1].startswith("drwx")
    session.run("import os; os.mkdir('below')\n%cd -q below")
    assert session.run("%pwd").stdout == "'/sandbox/below'\n"
    session.run("%cd -q /tmp")
    assert (session.run("%pwd").stdout, session.run("!pwd").stdout) == ("'/tmp'\n", "/tmp\n")


def test_the_working_directory_keeps_its_name_when_the_interpreter_is_replaced(session: InteractiveSandboxSession) -> None:
    session.run("open('here.txt', 'w').close()")
    session.run("import os; os._exit(1)")
    assert session.run("%pwd").stdout == "'/sandbox'\n"
    assert "here.txt" in session.run("!ls -la /sandbox").stdout


@pytest.mark.long
def test_multi_step_data_analysis(session: InteractiveSandboxSession) -> None:
    created = session.run(
        """
import pandas as pd
import numpy as np

data = pd.DataFrame({
    'date': pd.date_range('2024-01-01', periods=100),
    'value': np.random.randn(100).cumsum() + 100,
    'category': np.random.choice(['A', 'B', 'C'], 100)
})
""",
        libraries=["pandas", "numpy"],
    )
    assert created.success(), created.stderr
    session.run("""
# Remove outliers
q1 = data['value'].quantile(0.25)
q3 = data['value'].quantile(0.75)
iqr = q3 - q1
data_clean = data[
    (data['value'] >= q1 - 1.5*iqr) &
    (data['value'] <= q3 + 1.5*iqr)
]
""")
    result = session.run("""
summary = data_clean.groupby('category')['value'].agg(['mean', 'std', 'count'])
print("Summary by Category:")
print(summary)
""")
    assert result.stdout.startswith("Summary by Category:\n")
    assert "count" in result.stdout


def test_function_definitions(session: InteractiveSandboxSession) -> None:
    session.run("""
def fibonacci(n):
    if n <= 1:
        return n
    return fibonacci(n-1) + fibonacci(n-2)

def factorial(n):
    if n <= 1:
        return 1
    return n * factorial(n-1)
""")
    result = session.run('\nprint(f"Fibonacci(10): {fibonacci(10)}")\nprint(f"Factorial(5): {factorial(5)}")\n')
    assert result.stdout == "Fibonacci(10): 55\nFactorial(5): 120\n"


def test_class_definitions(session: InteractiveSandboxSession) -> None:
    session.run("""
class DataProcessor:
    def __init__(self):
        self.data = []

    def add(self, value):
        self.data.append(value)

    def get_stats(self):
        return {
            'count': len(self.data),
            'sum': sum(self.data),
            'mean': sum(self.data) / len(self.data) if self.data else 0
        }

processor = DataProcessor()
""")
    session.run("\nfor i in range(1, 11):\n    processor.add(i * 2)\n")
    result = session.run("""
stats = processor.get_stats()
print(f"Count: {stats['count']}")
print(f"Sum: {stats['sum']}")
print(f"Mean: {stats['mean']}")
""")
    assert result.stdout == "Count: 10\nSum: 110\nMean: 11.0\n"


def test_an_agent_explores(session: InteractiveSandboxSession) -> None:
    current_dir = session.run("%pwd").stdout.strip()
    assert "/sandbox" in current_dir
    created = session.run(f"""
import os
print(f"Working in: {current_dir}")

# Create some data
data = [1, 2, 3, 4, 5]
print(f"Created data: {{data}}")
""")
    assert created.stdout == f"Working in: {current_dir}\nCreated data: [1, 2, 3, 4, 5]\n"
    result = session.run("""
# Analyze the data
total = sum(data)
avg = total / len(data)
print(f"Total: {total}")
print(f"Average: {avg}")
""")
    assert result.stdout == "Total: 15\nAverage: 3.0\n"


def test_errors_keep_the_state(session: InteractiveSandboxSession) -> None:
    session.run("x = 10")
    result = session.run("y = x / 0")
    assert result.exit_code != 0
    assert "ZeroDivisionError" in result.stderr
    assert session.run("print(f'x is still: {x}')").stdout == "x is still: 10\n"


def test_managing_the_state(session: InteractiveSandboxSession) -> None:
    session.run("some_large_variable = [0] * 1000")
    assert "some_large_variable" in session.run("%who").stdout
    session.run("del some_large_variable")
    session.run("x = 100")
    session.run("%reset -f")
    assert "NameError" in session.run("print(x)").stderr


@pytest.mark.parametrize(
    ("memory", "size"), [("1GB", 1 << 30), ("512MB", 512 << 20), ("0.5g", 1 << 29), ("8GiB", 8 << 30), ("1048576", 1 << 20)]
)
def test_sizes_are_read_as_people_write_them(memory: str, size: int) -> None:
    from aca_sessions.compat.llm_sandbox import _parse_size

    assert _parse_size(memory) == size


@pytest.mark.slow
def test_memory_is_limited_as_the_settings_say() -> None:
    with InteractiveSandboxSession(max_memory="200MB") as session:
        assert "MemoryError" in session.run("x = bytearray(400 << 20)").stderr
        assert session.run("print('alive')").stdout == "alive\n"


@pytest.mark.long
def test_a_cell_stops_at_the_timeout_of_the_settings_and_the_state_is_kept() -> None:
    with InteractiveSandboxSession(timeout=4) as session:
        session.run("x = 1", timeout=120)
        assert "TimeoutError" in session.run("import time; time.sleep(60)").stderr
        assert session.run("print(x)", timeout=120).stdout == "1\n"


def test_the_one_shot_form_starts_afresh_and_keeps_files(tmp_path: Path) -> None:
    with SandboxSession(lang="python") as session:
        session.run("x = 1; open('/sandbox/kept.txt', 'w').write('here')")
        assert "NameError" in session.run("print(x)").stderr
        assert session.run("print(open('/sandbox/kept.txt').read())").stdout == "here\n"


def test_files_are_copied_in_and_out(session: InteractiveSandboxSession, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    session.copy_to_runtime(str(tmp_path / "in.csv"), "/sandbox/in.csv")
    session.run("open('/sandbox/out.csv', 'w').write(open('/sandbox/in.csv').read().upper())")
    session.copy_from_runtime("/sandbox/out.csv", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "A,B\n1,2\n"


def test_files_stay_below_the_working_directory(session: InteractiveSandboxSession, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="below /sandbox"):
        session.copy_from_runtime("/etc/passwd", str(tmp_path / "x"))


def test_commands_run_in_the_given_folder(session: InteractiveSandboxSession) -> None:
    assert session.execute_command("pwd", workdir="/tmp").stdout == "/tmp\n"
    assert session.execute_commands(["mkdir -p d", ("touch f", "d"), "ls d"]).stdout == "f\n"
    assert session.execute_commands(["false", "echo no"]) == ConsoleOutput(exit_code=1, stdout="", stderr="")


def test_output_is_passed_on_while_it_is_written(session: InteractiveSandboxSession) -> None:
    seen: list[str] = []
    session.run("print('live')", on_stdout=seen.append)
    assert seen == ["live\n"]


def test_options_about_containers_warn_that_they_have_no_effect() -> None:
    with pytest.warns(UserWarning, match="image, keep_template: this has no effect, because sessions run without containers"):
        InteractiveSandboxSession(image="python:3.11", keep_template=True)


def test_invalid_options_are_refused() -> None:
    with pytest.raises(NotSupportedError, match="got 'java'"):
        InteractiveSandboxSession(lang="java")
    with pytest.raises(TypeError, match="colour"):
        InteractiveSandboxSession(colour="red")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgumentError, match="max_memory"):
        InteractiveSandboxSession(max_memory="much")
    with pytest.raises(ValueError, match="xeus"):
        InteractiveSandboxSession(kernel_type="xeus")


def test_a_result_is_serialized_as_json(session: InteractiveSandboxSession) -> None:
    result = session.run("print('a')")
    assert (result.text(), result.to_json()) == ("a\n", '{"exit_code": 0, "stdout": "a\\n", "stderr": ""}')
