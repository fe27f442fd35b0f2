"""Test the executor for smolagents: by the tests of smolagents' own executors, by agents with a scripted model, and by what can be lost."""

import contextvars
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("smolagents", reason="make test-integrations installs it")

from samples.scripted_model import ScriptedModel
from smolagents import CodeAgent, FinalAnswerTool, LogLevel, OpenAIModel, Tool
from smolagents.serialization import SerializationError
from smolagents.utils import AgentError

from aca_sessions import InteractiveSession, Settings
from aca_sessions.integrations.smolagents import SessionExecutor

from ..cli.test_cli import Server
from .pages import run_example
from .sources import load_tests

pytestmark = pytest.mark.long

_MARKERS = ModuleType("markers")  # the release lacks this file, which skips tests of other executors
_MARKERS.require_run_all = pytest.mark.skip(reason="tests another executor")
_SUITE = load_tests("smolagents", "tests/test_remote_executors.py", utils=ModuleType("utils"), utils__markers=_MARKERS)


@pytest.fixture
def executor() -> Iterator[SessionExecutor]:
    with SessionExecutor() as executor:
        yield executor


class TestSmolagentsOwn(_SUITE.CommonDockerExecutorIntegration):
    @pytest.fixture
    def custom_executor(self, executor: SessionExecutor) -> SessionExecutor:
        return executor


def a_tool(function: Callable[..., object], name: str = "ask") -> Tool:
    """Return a tool that takes anything and returns anything."""

    class Asked(Tool):
        description, output_type, skip_forward_signature_validation = "Asks.", "any", True
        inputs = {"value": {"type": "any", "description": "A value."}}  # noqa: RUF012

        def forward(self, *values: object, **named: object) -> object:
            return function(*values, **named)

    Asked.name = name
    return Asked()


def test_the_example_of_the_page_prints_its_output(tmp_path: Path) -> None:
    code = "import statistics\nwarm = temperature('Oslo')\nfinal_answer(warm * 9 / 5 + 32)"
    model = run_example("smolagents.md", [f"Thought: I ask.\n<code>\n{code}\n</code>"], tmp_path)
    assert "You can import from any package you want" in str(model.requests[0]["messages"])


def test_a_tool_runs_on_the_host_and_gets_its_arguments_as_they_are(executor: SessionExecutor) -> None:
    variable = contextvars.ContextVar("variable", default="")
    variable.set("of the caller")
    seen = []
    executor.send_tools({"ask": a_tool(lambda *values, **named: seen.append((values, named, variable.get())) or {"pair": (1, b"\0")})})
    output = executor("import numpy as np\nask({1: {2}}, ('a', None))['pair'], ask(value=np.array([1, 2]))['pair']")
    assert output.output == "((1, b'\\x00'), (1, b'\\x00'))"
    assert seen[0] == (({1: {2}}, ("a", None)), {}, "of the caller")
    assert seen[1][1]["value"].tolist() == [1, 2]


def test_large_values_reach_tools_and_come_back(executor: SessionExecutor) -> None:
    executor.send_tools({"ask": a_tool(lambda value: value * 2)})
    executor.send_variables({"text": "é" * 3_000_000})
    assert executor("len(ask(text))").output == 6_000_000


def test_tools_run_beside_each_other_when_threads_of_a_cell_call_them(executor: SessionExecutor) -> None:
    both = threading.Barrier(2, timeout=60)
    executor.send_tools({"ask": a_tool(lambda value: both.wait() is None or value)})
    code = "from concurrent.futures import ThreadPoolExecutor as T\nwith T(2) as t: values = [*t.map(ask, [1, 2])]\nvalues"
    assert executor(code).output == "[1, 2]"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda value: {}[value], "ToolError: 'x'"),
        (lambda value: exit(3), "the tool called sys.exit()"),
        (lambda value: object(), "Cannot safely serialize object of type object"),
    ],
)
def test_an_error_of_a_tool_is_an_error_in_the_cell(executor: SessionExecutor, function: Callable[..., object], told: str) -> None:
    executor.send_tools({"ask": a_tool(function)})
    with pytest.raises(AgentError) as raised:
        executor("print('before')\nask('x')")
    assert "before" in str(raised.value)
    assert told in str(raised.value)
    assert executor("try:\n    ask('x')\nexcept Exception as error:\n    print('caught')").logs == "caught\n"


def test_a_tool_that_was_taken_away_cannot_be_called(executor: SessionExecutor) -> None:
    executor.send_tools({"ask": a_tool(lambda value: value)})
    executor("ask(1)")
    executor.send_tools({"other": a_tool(lambda value: value, "other")})
    with pytest.raises(AgentError, match="no tool named 'ask'"):
        executor("ask(1)")


def test_a_final_answer_that_is_caught_is_not_final(executor: SessionExecutor) -> None:
    executor.send_tools({"final_answer": FinalAnswerTool()})
    output = executor("try:\n    final_answer(1)\nexcept BaseException:\n    pass\n'went on'")
    assert (output.is_final_answer, output.output) == (False, "went on")
    with pytest.raises(AgentError, match="FinalAnswerException"):
        executor("class FinalAnswerException(BaseException): pass\nraise FinalAnswerException('forged')")


def test_variables_that_need_pickle_are_refused(executor: SessionExecutor) -> None:
    with pytest.raises(SerializationError, match="Cannot safely serialize"):
        executor.send_variables({"lock": threading.Lock()})


def test_a_lost_session_is_told_and_its_tools_are_defined_again(executor: SessionExecutor) -> None:
    executor.send_tools({"ask": a_tool(lambda value: value)})
    executor("kept = 1; open('file.txt', 'w').write('x')")
    with pytest.raises(AgentError, match=r"\[state\] lost: exit; variables from before are gone, files are kept"):
        executor("import os; os._exit(3)")
    assert executor("ask('again')").output == "again"
    assert executor("print('[state] lost: forged')").logs != "[state] lost: forged\n"


def test_the_session_of_a_caller_stays_open() -> None:
    with InteractiveSession() as session:
        session.upload_file("data.csv", "a,b\n1,2\n")
        with SessionExecutor(session) as executor:
            assert executor("print(open('data.csv').read(), end='')").logs == "a,b\n1,2\n"
        assert session.run("1 + 1").value == 2


def test_an_endpoint_without_events_calls_tools_of_the_host_too() -> None:
    with Server("--port", "0", "--plain", "--api-key", "key") as server:
        settings = Settings(SessionsHttpClient={"Endpoint": server.endpoint, "ApiKey": "key"})
        with SessionExecutor(settings=settings) as executor:
            executor.send_tools({"ask": a_tool(lambda value: value + 1), "final_answer": FinalAnswerTool()})
            output = executor("final_answer(ask(41))")
            assert (output.is_final_answer, output.output) == (True, 42)


def test_an_executor_can_be_used_again_after_its_cleanup(executor: SessionExecutor) -> None:
    executor.send_tools({"ask": a_tool(lambda value: value)})
    executor("x = ask(1)")
    executor.cleanup()
    executor.cleanup()
    assert executor("'x' in globals(), ask(2)").output == "(False, 2)"


def test_a_step_that_takes_too_long_is_ended_and_keeps_its_variables() -> None:
    with SessionExecutor(timeout=1) as executor:
        executor("x = 5")
        with pytest.raises(AgentError, match="TimeoutError"):
            executor("while True: pass")
        assert executor("x").output == 5


def test_ctrl_c_interrupts_a_step_and_keeps_its_variables(executor: SessionExecutor) -> None:
    main = threading.main_thread().ident  # which a terminal's signal reaches: tools run in another
    executor.send_tools({"ask": a_tool(lambda value: signal.pthread_kill(main, signal.SIGINT))})
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes of pytest-xdist ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            executor("x = 5\nask(1)\nimport time; time.sleep(600)")
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert executor("x").output == 5


def test_a_managed_agent_is_called_from_the_code_of_its_manager() -> None:
    script = ["<code>\nfinal_answer(asked := sums(task='2 + 3'))\n</code>", "<code>\nfinal_answer(2 + 3)\n</code>"]
    with ScriptedModel(script) as model, SessionExecutor() as outer, SessionExecutor() as inner:
        openai = OpenAIModel("scripted", api_base=model.base_url, api_key="none")
        sums = CodeAgent([], openai, executor=inner, name="sums", description="Adds.", verbosity_level=LogLevel.OFF)
        manager = CodeAgent([], openai, executor=outer, managed_agents=[sums], verbosity_level=LogLevel.OFF)
        assert "5" in str(manager.run("Add 2 and 3."))
