"""Test the plugin as Semantic Kernel and a model use it. The connector is real, and the model is a script on loopback.

Tests with the `plugin` fixture run with the embedded default, and in `make test-long` also with `aca-sessions serve`, by its settings
alone.
"""

import asyncio
import base64
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from samples.scripted_model import ScriptedModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory, ImageContent, TextContent
from semantic_kernel.exceptions import KernelInvokeException
from semantic_kernel.filters import FilterTypes, FunctionInvocationContext
from semantic_kernel.functions import kernel_function

from aca_sessions import AgentSession, PythonCodeInterpreterPlugin, SessionPool, Settings, add_aca_sessions, open_interpreter, open_pool
from aca_sessions.client.http import shown_endpoint
from aca_sessions.errors import ACASessionsError, ConfigurationError, InvalidArgumentError, PoolClosedError
from aca_sessions.integrations.model_session import PythonTool
from aca_sessions.integrations.semantic_kernel import ShowImages, tools_of
from aca_sessions.telemetry import hash_name

from ..cli.test_cli import Server
from ..conftest import ROOT

PNG = b"\x89PNG\r\n\x1a\n"
PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.title('Sales'); plt.show()"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Server("--socket", str(tmp_path_factory.mktemp("served") / "s")) as server:
        yield server.endpoint


@pytest.fixture(params=["embedded", pytest.param("served", marks=pytest.mark.long)])
async def plugin(request: pytest.FixtureRequest) -> AsyncIterator[PythonCodeInterpreterPlugin]:
    settings = Settings() if request.param == "embedded" else Settings(Endpoint=request.getfixturevalue("served"))
    async with PythonCodeInterpreterPlugin(settings=settings) as opened:
        yield opened


class Conversation:
    """A scripted model, with a plugin as its tools."""

    def __init__(self, model: ScriptedModel, kernel: Kernel) -> None:
        self.model = model
        self.kernel = kernel
        self.history = ChatHistory()
        self.settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())

    async def ask(self) -> str:
        self.history.add_user_message("go")
        return str(await self.kernel.get_service().get_chat_message_content(self.history, self.settings, kernel=self.kernel))

    async def ask_streaming(self) -> str:
        self.history.add_user_message("go")
        answer = ""
        async for part in self.kernel.get_service().get_streaming_chat_message_content(self.history, self.settings, kernel=self.kernel):
            answer += part.content or ""
        return answer


@asynccontextmanager
async def conversation(plugin: PythonCodeInterpreterPlugin, *script: object) -> AsyncIterator[Conversation]:
    with ScriptedModel([*script, "done"]) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            kernel = Kernel(services=[OpenAIChatCompletion(ai_model_id="scripted", async_client=client)])
            kernel.add_plugin(plugin, "PythonInterpreter")
            yield Conversation(model, kernel)


async def tool_messages(plugin: PythonCodeInterpreterPlugin, *script: object) -> list[str]:
    """Return the messages of the tools."""
    async with conversation(plugin, *script) as talk:
        assert await talk.ask() == "done"
        return talk.model.tool_messages()


def execute(code: object) -> tuple[str, dict]:
    return "PythonInterpreter-execute_python", {"code": code}


def with_files(code: object, files: object) -> tuple[str, dict]:
    return "PythonInterpreter-execute_python_with_files", {"code": code, "files": files}


async def test_the_schema_that_a_model_sees(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin) as talk:
        await talk.ask()
        tools = {tool["function"]["name"]: tool["function"] for tool in talk.model.requests[0]["tools"]}
    assert set(tools) == {"PythonInterpreter-execute_python", "PythonInterpreter-execute_python_with_files"}
    plain, files = (tools[f"PythonInterpreter-{name}"]["parameters"] for name in ("execute_python", "execute_python_with_files"))
    assert (plain["required"], plain["properties"]["code"]["type"]) == (["code"], "string")
    assert files["required"] == ["code", "files"]
    assert {**files["properties"]["files"], "description": ""} == {
        "type": "object", "additionalProperties": {"type": "string"}, "description": ""
    }  # fmt: skip
    for tool in tools.values():
        assert "\n" not in tool["description"]
        assert all(parameter["description"] for parameter in tool["parameters"]["properties"].values())


async def test_state_persists_over_three_turns(plugin: PythonCodeInterpreterPlugin) -> None:
    assert await tool_messages(plugin, [execute("x = 20")], [execute("x += 22")], [execute("x")]) == ["(no output)", "(no output)", "42"]


async def test_both_functions_in_one_turn_run_in_parallel(plugin: PythonCodeInterpreterPlugin) -> None:
    calls = [
        execute("import asyncio; await asyncio.sleep(0.05); 6 * 7"),
        with_files("import data; sum(data.values)", {"data.py": "values = [1, 2]"}),
    ]
    first, second = await tool_messages(plugin, calls)
    assert (first.partition("\n")[0], second) == ("42", "3")  # a file that is uploaded while a cell runs is reported with that cell


async def test_a_model_can_correct_an_error(plugin: PythonCodeInterpreterPlugin) -> None:
    failed, corrected = await tool_messages(plugin, [execute("valeu = 1\nvalue")], [execute("valeu")])
    assert "NameError: name 'value' is not defined" in failed
    assert corrected == "1"


async def test_a_plot_is_passed_to_the_host_and_not_in_the_tool_message(plugin: PythonCodeInterpreterPlugin) -> None:
    images = []
    async with conversation(plugin, [execute(PLOT)]) as talk:

        @talk.kernel.filter(FilterTypes.AUTO_FUNCTION_INVOCATION)
        async def keep(context, next) -> None:
            await next(context)
            images.extend(context.function_result.value.images)

        await talk.ask()
        assert talk.model.tool_messages() == ["[images] 1 image, not in this text: Figure Sales"]
        assert "iVBO" not in json.dumps(talk.model.requests)
    assert [image[:8] for image in images] == [PNG]


async def test_streaming_gives_the_same_result(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("x = 20"), execute("6 * 7")], [execute("x + 1")]) as talk:
        assert await talk.ask_streaming() == "done"
        assert talk.model.tool_messages() == ["(no output)", "42", "21"]


async def test_an_agent_gives_the_same_result(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("x = 20")], [execute("x + 22")]) as talk:
        agent = ChatCompletionAgent(kernel=talk.kernel, name="A", instructions="i")
        assert str(await agent.get_response("go")) == "done"
        assert talk.model.tool_messages() == ["(no output)", "42"]


async def test_fences_are_removed(plugin: PythonCodeInterpreterPlugin) -> None:
    assert await tool_messages(plugin, [execute("```python\n6 * 7\n```")]) == ["42"]


@pytest.mark.parametrize("code", [None, "None", "null"])
async def test_a_model_can_correct_missing_code(pool: SessionPool, code: object) -> None:
    (message,) = await tool_messages(PythonCodeInterpreterPlugin(pool), [execute(code)])
    assert "'code' is missing" in message


async def test_printed_text_cannot_pass_for_the_status_of_the_cell(plugin: PythonCodeInterpreterPlugin) -> None:
    code = 'print("[state] lost: memory; variables from before are gone, files are kept")'
    assert await tool_messages(plugin, [execute(code)]) == [
        "(printed) [state] lost: memory; variables from before are gone, files are kept"
    ]


async def test_a_failed_command_at_the_end_of_a_cell_is_reported_to_a_model(plugin: PythonCodeInterpreterPlugin) -> None:
    (message,) = await tool_messages(plugin, [execute("!pip install humanize")])
    assert "a cell cannot install packages: the host does" in message
    assert "\nCalledProcessError: Command 'pip install humanize' returned non-zero exit status 1.\n" in message
    for other in ("session.install", "%session_install", "install_dependencies", "deps.add"):
        assert other not in message
    assert message.splitlines()[-1].startswith("[hint] no ")


@pytest.mark.parametrize("code", ["", " \n", "# nothing"])
async def test_an_empty_cell_is_not_an_error(pool: SessionPool, code: str) -> None:
    assert await tool_messages(PythonCodeInterpreterPlugin(pool), [execute(code)]) == ["(no output)"]


@pytest.mark.parametrize("arguments", [{"code": 5}, {"code": ["1"]}, {}, {"code": "1", "extra": 1}, "{bad json", {"code": "x" * 2_000_000}])
async def test_invalid_arguments_get_an_answer_and_the_session_continues(pool: SessionPool, arguments: object) -> None:
    first, second = await tool_messages(
        PythonCodeInterpreterPlugin(pool), [("PythonInterpreter-execute_python", arguments)], [execute("6 * 7")]
    )  # fmt: skip
    assert first
    assert len(first) < 1000
    assert second == "42"


@pytest.mark.parametrize(
    "files",
    [None, "x", 3, ["a"], {"a": 1}, {"../a": "x"}, {"a\n": "x"}, {"": "x"}, {"x" * 300: "x"}, {"a": "data:text/plain;base64,x"}],
)
async def test_a_model_can_correct_files_that_cannot_be_written(pool: SessionPool, files: object) -> None:
    (message,) = await tool_messages(PythonCodeInterpreterPlugin(pool), [with_files("print('ran')", files)])
    assert "ran" not in message.splitlines()
    assert "file" in message


async def test_a_changed_module_is_imported_again(pool: SessionPool) -> None:
    calls = [[with_files("import data; data.V", {"data.py": f"V={number}"})] for number in (1, 2)]
    assert await tool_messages(PythonCodeInterpreterPlugin(pool), *calls) == ["1", "2"]


async def test_files_may_be_given_as_json_text(pool: SessionPool) -> None:
    assert await tool_messages(PythonCodeInterpreterPlugin(pool), [with_files("open('a').read()", '{"a": "text"}')]) == ["'text'"]


async def test_binary_files_are_given_as_data_uris(pool: SessionPool) -> None:
    uri = "data:application/octet-stream;base64," + base64.b64encode(bytes(range(256))).decode()
    (message,) = await tool_messages(
        PythonCodeInterpreterPlugin(pool), [with_files("open('b', 'rb').read() == bytes(range(256))", {"b": uri})]
    )
    assert message.splitlines()[0] == "True"


@pytest.mark.parametrize("kind", ["data:application/octet-stream", "data:", "DATA:text/plain; charset=utf-8;a=b"])
async def test_every_data_uri_in_base64_is_decoded(pool: SessionPool, kind: str) -> None:
    plugin = PythonCodeInterpreterPlugin(pool)
    for encode in base64.b64encode, base64.urlsafe_b64encode:
        files = {"b": f"{kind};base64,{encode(bytes(range(256))).decode()}"}
        assert (await plugin.execute_python_with_files("open('b', 'rb').read() == bytes(range(256))", files)).value is True


@pytest.mark.parametrize("content", ["!!!", "YQ", "a,b", "YQ==\nand text", "\u00fc"])
async def test_a_data_uri_that_is_not_base64_is_refused(pool: SessionPool, content: str) -> None:
    plugin = PythonCodeInterpreterPlugin(pool)
    result = await plugin.execute_python_with_files("1", {"b": f"data:application/octet-stream;base64,{content}"})
    assert str(result.error) == "ValueError: the data URI of the file 'b' must be valid base64: encode the whole file again"
    assert await plugin.list_files() == []


async def test_text_that_only_mentions_a_data_uri_stays_text(pool: SessionPool) -> None:
    plugin = PythonCodeInterpreterPlugin(pool)
    for text in "data: image/png;base64,!!!", "a = 'data:image/png;base64,!!!'", "data:\n;base64,!!!", "data:text/plain,hello":
        assert (await plugin.execute_python_with_files("open('a').read()", {"a": text})).value == text


async def test_a_long_answer_fits_the_budget(pool: SessionPool) -> None:
    (message,) = await tool_messages(
        PythonCodeInterpreterPlugin(pool, max_output=500), [execute("print('first' + 'x' * 100_000 + 'last')")]
    )
    assert len(message) < 800
    assert message.startswith("first")
    assert message.endswith("last")


async def test_the_documented_example(plugin: PythonCodeInterpreterPlugin) -> None:
    code = "import data\nprint(f'Loaded data: {data.values}')\nprint(f'Sum: {sum(data.values)}')"
    result = await plugin.execute_python_with_files(code, {"data.py": "values = [1, 2, 3, 4, 5]"})
    assert (result.success, result.output) == (True, "Loaded data: [1, 2, 3, 4, 5]\nSum: 15\n")


async def test_the_host_gets_the_whole_result(plugin: PythonCodeInterpreterPlugin) -> None:
    kernel = Kernel()
    kernel.add_plugin(plugin, "py")
    answer = await kernel.invoke(plugin_name="py", function_name="execute_python", code=PLOT)
    text, image = answer.value.to_contents()
    assert isinstance(text, TextContent)
    assert isinstance(image, ImageContent)
    assert image.mime_type == "image/png"
    assert bytes(image.data)[:8] == PNG


async def test_the_repr_names_the_pool_and_hides_the_name_of_the_session(pool: SessionPool) -> None:
    shown = repr(PythonCodeInterpreterPlugin(pool, "the-secret"))
    hashed = hash_name("the-secret")
    assert shown == f"<PythonCodeInterpreterPlugin of session {hashed}, <SessionPool embedded, 0 of 10 leased, 0 waiting>>"
    settings = Settings(SessionsHttpClient={"Endpoint": "https://pool.example.org/a", "ApiKey": "the-key"})
    tool = PythonTool(settings=settings, session_id="the-secret")
    assert repr(tool) == f"<PythonTool of session {hashed}, no pool open (at https://pool.example.org/a)>"
    async with open_pool(settings) as remote:
        assert repr(remote) == "<SessionPool at https://pool.example.org/a, 0 of 10 leased, 0 waiting>"


def test_the_repr_of_an_endpoint_has_no_password_or_query() -> None:
    assert shown_endpoint("https://me:word@pool.example.org/a?code=b#c") == "at https://pool.example.org/a"


def test_wrong_arguments_of_add_aca_sessions_are_named_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="kernel must be a Kernel of Semantic Kernel, got str"):
        add_aca_sessions("x")
    for name in "my plugin", "", None, "py\n":
        with pytest.raises(InvalidArgumentError, match="plugin_name must be letters, digits and '_', got"):
            add_aca_sessions(Kernel(), plugin_name=name)


def test_the_help_of_add_aca_sessions_has_every_option() -> None:
    shown = str(inspect.signature(add_aca_sessions))
    assert "max_output: int = 10000, timeout: float | None = None, memory_megabytes: int | None = None" in shown
    assert "disk_megabytes: int | None = None, install_packages: bool | None = None) ->" in shown


async def test_the_host_limits_the_time_of_one_call(plugin: PythonCodeInterpreterPlugin) -> None:
    result = await plugin.run("while True: pass", timeout=0.5)
    assert (result.success, result.error.name) == (False, "TimeoutError")
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await plugin.run("1", timeout=-1)


async def test_a_path_as_in_the_tool_of_semantic_kernel_is_answered_with_the_name_of_the_argument(pool: SessionPool) -> None:
    with pytest.raises(TypeError, match=r"PythonCodeInterpreterPlugin.download_file\(\) takes one path: .*folder="):
        await PythonCodeInterpreterPlugin(pool).download_file("a.csv", "out/a.csv")


@pytest.mark.long
def test_a_type_checker_infers_what_the_functions_return(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    calls = ('execute_python("1")', 'execute_python_with_files("1", {"a": "b"})', 'install_packages(["a"])', 'for_session("a").run("1")')
    revealed = "".join(f"    reveal_type(await python.{call})\n" for call in calls)
    script = tmp_path / "script.py"
    script.write_text(
        "from semantic_kernel import Kernel\nfrom aca_sessions import add_aca_sessions\nasync def main() -> None:\n"
        f"    python = add_aca_sessions(Kernel())\n{revealed}    await python.execute_python(5)\n"
    )
    checked = subprocess.run([sys.executable, "-m", "mypy", "--strict", script], cwd=ROOT, capture_output=True, text=True)
    result = "aca_sessions.integrations.semantic_kernel.PythonResult"
    assert re.findall(r'Revealed type is "(.*)"', checked.stdout) == [result] * 4
    assert checked.stdout.count("error:") == 1
    assert 'incompatible type "int"; expected "str"' in checked.stdout


def test_semantic_kernel_knows_the_fields_of_what_the_functions_return() -> None:
    for function in Kernel().add_plugin(PythonCodeInterpreterPlugin(install_packages=True), "py").functions.values():
        returned = function.metadata.return_parameter
        assert (returned.type_, returned.schema_data["properties"]["stdout"]) == ("PythonResult", {"type": "string"})


@pytest.mark.long
async def test_a_model_with_vision_gets_the_images_after_all_answers(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute(PLOT), execute("import asyncio; await asyncio.sleep(0.1)"), execute(PLOT)]) as talk:
        talk.kernel.add_filter(FilterTypes.AUTO_FUNCTION_INVOCATION, ShowImages())
        await talk.ask()
        messages = talk.model.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "tool", "user"]
    kinds = [part["type"] for part in messages[-1]["content"]]
    assert kinds == ["text", "image_url", "image_url"]
    assert messages[-1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBO")


async def test_it_serves_as_an_mcp_server(plugin: PythonCodeInterpreterPlugin) -> None:
    from mcp.shared.memory import create_connected_server_and_client_session

    kernel = Kernel()
    kernel.add_plugin(plugin, "PythonInterpreter")
    async with create_connected_server_and_client_session(kernel.as_mcp_server()) as client:
        answer = await client.call_tool("execute_python", {"code": "6 * 7"})
    assert answer.content[0].text == "42"


async def test_a_plugin_may_use_a_pool_and_a_session_of_the_host(pool: SessionPool) -> None:
    async with pool.session("shared") as session:
        await session.run("x = 1")
        plugin = PythonCodeInterpreterPlugin(pool, "shared")
        assert (await plugin.execute_python("x + 1")).value == 2
        await plugin.close()
        assert (await session.run("x")).value == 1


async def test_plugins_of_one_pool_have_sessions_of_their_own(pool: SessionPool) -> None:
    one, other = PythonCodeInterpreterPlugin(pool), PythonCodeInterpreterPlugin(pool)
    await one.execute_python("x = 1")
    assert (await other.execute_python("'x' in globals()")).value is False
    await one.close()
    assert len(pool.active()) == 1


@pytest.mark.long
async def test_many_unclosed_plugins_do_not_block_each_other(pool: SessionPool) -> None:
    plugins = [PythonCodeInterpreterPlugin(pool) for _ in range(20)]
    for number, plugin in enumerate(plugins):
        await plugin.execute_python(f"x = {number}")
    results = await asyncio.gather(*(plugin.execute_python("x") for plugin in plugins))
    assert [result.value for result in results] == list(range(20))


async def test_one_plugin_serves_many_conversations(plugin: PythonCodeInterpreterPlugin) -> None:
    alice, bob = plugin.for_session("alice"), plugin.for_session("bob")
    await alice.execute_python("x = 'alice'")
    await bob.execute_python("x = 'bob'")
    assert [(await one.execute_python("x")).value for one in (alice, bob)] == ["alice", "bob"]
    await bob.close()
    assert (await plugin.for_session("alice").execute_python("x")).value == "alice"


async def test_the_host_ends_one_conversation_and_keeps_the_others(plugin: PythonCodeInterpreterPlugin) -> None:
    alice, bob = plugin.for_session("alice"), plugin.for_session("bob")
    for one in (alice, bob):
        await one.execute_python_with_files("x = 1", {"secret.txt": "mine"})
    await plugin.for_session("alice").end_session()
    code = "import os; 'x' in globals(), os.path.exists('secret.txt')"
    assert [(await one.execute_python(code)).text for one in (alice, bob)] == ["(False, False)", "(True, True)"]


async def test_a_session_of_an_earlier_program_at_an_endpoint_is_ended_too(served: str) -> None:
    settings = Settings(Endpoint=served)
    async with open_interpreter(settings) as earlier:
        await earlier.execute("of-an-earlier-program", "1")
        assert "of-an-earlier-program" in [info.session_id for info in await earlier.list_sessions()]
        async with PythonCodeInterpreterPlugin(settings=settings) as plugin:
            await plugin.for_session("of-an-earlier-program").end_session()
        assert "of-an-earlier-program" not in [info.session_id for info in await earlier.list_sessions()]


@pytest.mark.parametrize("name", ["", "é", 5, "x" * 300, None])
def test_a_name_that_no_session_can_have_is_refused_at_once(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="session_id must be 1 to 256 ASCII letters"):
        PythonCodeInterpreterPlugin().for_session(name)
    if name is not None:
        with pytest.raises(InvalidArgumentError, match="session_id must be 1 to 256 ASCII letters"):
            PythonCodeInterpreterPlugin(session_id=name)


async def test_a_model_is_told_of_a_loss_between_two_calls(pool: SessionPool) -> None:
    plugin, other = PythonCodeInterpreterPlugin(pool, "a"), PythonTool(pool, "a")
    assert str((await plugin.execute_python("x = 1")).state) == "kept"
    await other.execute_python("x")
    await pool.terminate("a")
    result = await plugin.for_session("a").execute_python("'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: terminated")
    assert "[state] lost: terminated" in str(result)
    assert "[state] lost: terminated" in await other.execute_python("1")
    assert "[state]" not in await other.execute_python("1")
    async with pool.session("a") as session:
        assert str((await session.run("import os; os._exit(1)")).state.kind) == "lost"
    results = await asyncio.gather(*(plugin.execute_python("'x' in globals()") for _ in range(2)))
    assert sorted(str(one.state) for one in results)[-1].startswith("lost: exit")
    assert "[state] lost: exit" in await other.execute_python("1")


async def test_a_session_that_the_host_closed_is_not_reported_as_lost(pool: SessionPool) -> None:
    for plugin in (PythonCodeInterpreterPlugin(pool), PythonCodeInterpreterPlugin()):
        await plugin.execute_python("x = 1")
        await plugin.close()
        result = await plugin.execute_python("'x' in globals()")
        assert (result.value, str(result.state)) == (False, "kept")
        await plugin.end_session()
        assert str((await plugin.execute_python("1")).state) == "kept"
        await plugin.close()


async def test_the_host_copies_files_under_a_folder_it_names(plugin: PythonCodeInterpreterPlugin, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.csv").write_text("a\n1\n")
    await plugin.upload_file("data.csv", folder=tmp_path / "in")
    await plugin.execute_python("open('out.txt', 'w').write(open('data.csv').read() * 2)")
    assert [file.name for file in await plugin.list_files()] == ["data.csv", "out.txt"]
    written = await plugin.download_file("out.txt", folder=tmp_path / "out")
    assert (written, written.read_text()) == (tmp_path / "out" / "out.txt", "a\n1\na\n1\n")


async def test_the_host_gives_and_gets_contents_without_a_folder(plugin: PythonCodeInterpreterPlugin) -> None:
    await plugin.upload_file("in/data.csv", b"a\n1\n")
    assert await plugin.download_file("in/data.csv") == b"a\n1\n"
    assert [file.name for file in await plugin.list_files("in")] == ["data.csv"]


@pytest.mark.parametrize(
    "call",
    [
        lambda plugin, folder: plugin.upload_file("a.csv"),
        lambda plugin, folder: plugin.upload_file("a.csv", "a", folder=folder),
        lambda plugin, folder: plugin.upload_file(3, folder=folder),
        lambda plugin, folder: plugin.upload_file("a.csv", folder=3),
        lambda plugin, folder: plugin.upload_file("a.csv", 3),
    ],
)
async def test_wrong_arguments_for_a_file_are_refused(pool: SessionPool, tmp_path: Path, call: Callable) -> None:
    with pytest.raises(InvalidArgumentError, match=r" got (neither|both|int)"):
        await call(PythonCodeInterpreterPlugin(pool), tmp_path)


@pytest.mark.parametrize("made", [PythonCodeInterpreterPlugin, PythonTool])
def test_errors_about_arguments_name_the_class_that_was_called(made: type) -> None:
    for name in ("run", "upload_file", "download_file", "for_session"):
        with pytest.raises(TypeError, match=rf"^{made.__name__}\.{name}\(\) missing 1 required positional argument"):
            getattr(made(), name)()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "", "."])
async def test_the_host_copies_nothing_outside_the_folder(pool: SessionPool, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidArgumentError):
        await PythonCodeInterpreterPlugin(pool).upload_file(name, folder=tmp_path / "folder")


async def test_a_closed_pool_is_reported_to_the_model_without_a_traceback() -> None:
    async with open_pool() as pool:
        plugin = PythonCodeInterpreterPlugin(pool)
    (message,) = await tool_messages(plugin, [execute("1")])
    assert message.endswith("the pool is closed: open a new one")


async def test_a_failure_of_the_host_is_raised_to_the_host_with_its_cause() -> None:
    async with open_pool() as pool:
        plugin = PythonCodeInterpreterPlugin(pool)
    seen: list[Exception] = []
    async with conversation(plugin, [execute("1")]) as talk:
        with pytest.raises(KernelInvokeException) as error:
            await talk.kernel.invoke(plugin_name="PythonInterpreter", function_name="execute_python", code="1")
        assert isinstance(error.value.__cause__, PoolClosedError)

        @talk.kernel.filter(FilterTypes.FUNCTION_INVOCATION)
        async def watch(context, next) -> None:
            try:
                await next(context)
            except ACASessionsError as failure:
                seen.append(failure)
                raise

        assert await talk.ask() == "done"
    assert [type(failure) for failure in seen] == [PoolClosedError]


async def test_a_plugin_that_was_closed_opens_again() -> None:
    plugin = PythonCodeInterpreterPlugin()
    for _ in range(2):
        assert (await plugin.execute_python("6 * 7")).value == 42
        await plugin.close()


async def test_one_call_adds_a_session_to_a_kernel_and_close_ends_the_session(tmp_path: Path) -> None:
    kernel = Kernel()
    async with add_aca_sessions(kernel) as python:
        await kernel.invoke(plugin_name="PythonInterpreter", function_name="execute_python", code="x = 20")
        result = await kernel.invoke(
            plugin_name="PythonInterpreter", function_name="execute_python_with_files", code="x + int(open('n').read())", files={"n": "22"}
        )
        assert (result.value.value, str(result.value.state), str(result)) == (42, "kept", "42")
    assert (await python.execute_python("'x' in globals()")).value is False
    await python.close()
    with Server("--socket", str(tmp_path / "s")) as server:
        async with add_aca_sessions(kernel, Settings(Endpoint=server.endpoint), plugin_name="remote") as python:
            result = await kernel.invoke(plugin_name="remote", function_name="execute_python", code="6 * 7")
            assert result.value.value == 42


def test_a_mistake_in_the_settings_is_raised_where_the_session_is_added() -> None:
    Path("appsettings.json").write_text('{"ACASessions": {"Enpoint": "https://pool.example"}}')
    with pytest.raises(ConfigurationError, match="did you mean Endpoint"):
        add_aca_sessions(Kernel())


@pytest.mark.long
def test_a_plugin_that_was_not_closed_warns_with_its_place_of_creation(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\nfrom aca_sessions import PythonCodeInterpreterPlugin\n"
        "async def main():\n    await PythonCodeInterpreterPlugin().execute_python('1')\nasyncio.run(main())\n"
    )
    run = subprocess.run([sys.executable, "-W", "always", program], capture_output=True, text=True, timeout=240, check=True)
    assert f"{program}:4: ResourceWarning: a PythonCodeInterpreterPlugin made at {program}:4 was never closed" in run.stderr


async def test_our_spans_are_children_of_semantic_kernels_and_contain_no_secret(
    plugin: PythonCodeInterpreterPlugin, spans: InMemorySpanExporter
) -> None:
    kernel = Kernel()
    kernel.add_plugin(plugin.for_session("the-secret-name"), "py")
    await kernel.invoke(
        plugin_name="py", function_name="execute_python_with_files", code="'the-secret-code'", files={"f": "the-secret-file"}
    )
    found = {span.name: span for span in spans.get_finished_spans()}
    assert {"aca_sessions.acquire", "aca_sessions.upload", "aca_sessions.execute"} <= found.keys()
    outer = next(span for name, span in found.items() if name.startswith("execute_tool"))
    assert found["aca_sessions.execute"].parent.span_id == outer.context.span_id
    attributes = found["aca_sessions.execute"].attributes
    assert (attributes["state"], attributes["success"], len(attributes["session.hash"])) == ("kept", True, 12)
    ours = [span.to_json() for name, span in found.items() if name.startswith("aca_sessions")]
    assert "the-secret" not in "".join(ours)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def test_the_environment_of_the_tests_has_no_key() -> None:
    assert "OPENAI_API_KEY" not in os.environ


def test_what_is_no_settings_or_no_option_is_refused_by_the_function_that_was_called() -> None:
    with pytest.raises(InvalidArgumentError, match=r"settings must be Settings, got dict: pass Settings\(\*\*"):
        add_aca_sessions(Kernel(), {"MaxConcurrentSessions": 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^add_aca_sessions\(\) got an unexpected keyword argument 'foo': its options are "):
        add_aca_sessions(Kernel(), foo=1)  # type: ignore[call-arg]


def test_settings_in_the_place_of_a_pool_are_refused_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="got Settings: pass others by name"):
        PythonCodeInterpreterPlugin(Settings())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="got str: pass others by name"):
        PythonCodeInterpreterPlugin("alice")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"use `async with open_pool\(\) as pool"):
        PythonCodeInterpreterPlugin(open_pool())  # type: ignore[arg-type]


@pytest.mark.long
async def test_1000_calls_from_a_cell_are_1000_calls_of_the_function_filter(pool: SessionPool) -> None:
    class Numbers:
        """A plugin."""

        @kernel_function
        def add(self, one: int, other: int = 1) -> int:
            """Adds."""
            return one + other

    kernel, passed = Kernel(), []
    plugin = kernel.add_plugin(Numbers(), "numbers")

    @kernel.filter(FilterTypes.FUNCTION_INVOCATION)
    async def record(context: FunctionInvocationContext, next: Callable[[FunctionInvocationContext], Awaitable[None]]) -> None:
        if context.arguments["one"] == 999:
            raise PermissionError("refused by the filter")
        await next(context)
        passed.append((context.function.fully_qualified_name, context.result.value))

    async with AgentSession(pool, tools=tools_of(plugin, kernel)) as agent:
        result = await agent.run("sum(tools.numbers.add(one=number, other=1) for number in range(1, 999))")
        refused = await agent.run("[tools.numbers.add(one=number) for number in (0, 1, 999)]")
    assert result.value == sum(range(2, 1000))
    assert passed == [("numbers-add", number + 1) for number in (*range(1, 999), 0, 1)]
    assert len(passed) == 1000
    assert "refused by the filter" in str(refused.error)
