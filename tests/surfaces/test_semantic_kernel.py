"""The plugin as Semantic Kernel and a model see it; the connector is real, the model is a script on loopback."""

import json
from contextlib import asynccontextmanager

import pytest
from openai import AsyncOpenAI
from samples.scripted_model import ScriptedModel
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory

from aca_sessions import PythonCodeInterpreterPlugin, SessionPool


@pytest.fixture
async def plugin():
    async with PythonCodeInterpreterPlugin() as opened:
        yield opened


@asynccontextmanager
async def conversation(plugin: PythonCodeInterpreterPlugin, *script: object):
    """A model that follows the script, with the plugin as its tools; answers what it was told in the end."""
    with ScriptedModel([*script, "done"]) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            kernel = Kernel(services=[OpenAIChatCompletion(ai_model_id="scripted", async_client=client)])
            kernel.add_plugin(plugin, "PythonInterpreter")
            settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())
            history = ChatHistory()
            history.add_user_message("go")
            await kernel.get_service().get_chat_message_content(history, settings, kernel=kernel)
            yield model


def execute(code: object) -> tuple[str, dict]:
    return "PythonInterpreter-execute_python", {"code": code}


async def test_the_schema_that_a_model_sees(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin) as model:
        tools = {tool["function"]["name"]: tool["function"] for tool in model.requests[0]["tools"]}
    assert set(tools) == {"PythonInterpreter-execute_python", "PythonInterpreter-execute_python_with_files"}
    plain, with_files = tools["PythonInterpreter-execute_python"], tools["PythonInterpreter-execute_python_with_files"]
    assert plain["parameters"]["required"] == ["code"]
    assert plain["parameters"]["properties"]["code"]["type"] == "string"
    assert with_files["parameters"]["required"] == ["code", "files"]
    assert with_files["parameters"]["properties"]["files"] | {"description": ""} == {
        "type": "object", "additionalProperties": {"type": "string"}, "description": ""
    }  # fmt: skip
    for tool in tools.values():
        assert "\n  " not in tool["description"]
        assert all(parameter["description"] for parameter in tool["parameters"]["properties"].values())


async def test_state_is_kept_from_turn_to_turn(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("x = 20")], [execute("x + 22")]) as model:
        assert model.tool_messages() == ["(no output)", "42"]


async def test_both_functions_may_be_called_in_one_turn(plugin: PythonCodeInterpreterPlugin) -> None:
    with_files = (
        "PythonInterpreter-execute_python_with_files",
        {"code": "import data; sum(data.values)", "files": {"data.py": "values = [1, 2]"}},
    )
    async with conversation(plugin, [execute("6 * 7"), with_files]) as model:
        assert model.tool_messages() == ["42", "3"]


async def test_an_error_is_something_a_model_can_correct(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("valeu = 1\nvalue")], [execute("valeu")]) as model:
        failed, corrected = model.tool_messages()
    assert "NameError: name 'value' is not defined" in failed
    assert corrected == "1"


async def test_an_image_is_told_and_not_sent(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")]) as model:
        (message,) = model.tool_messages()
    assert "1 image" in message
    assert len(message) < 200
    assert "iVBO" not in json.dumps(model.requests)


async def test_fences_are_removed(plugin: PythonCodeInterpreterPlugin) -> None:
    async with conversation(plugin, [execute("```python\n6 * 7\n```")]) as model:
        assert model.tool_messages() == ["42"]


@pytest.mark.parametrize("files", [None, "x", 3, ["a"], {"a": 1}, {"../a": "x"}, {"a\n": "x"}])
async def test_files_that_cannot_be_written_are_something_a_model_can_correct(plugin: PythonCodeInterpreterPlugin, files: object) -> None:
    call = ("PythonInterpreter-execute_python_with_files", {"code": "print('ran')", "files": files})
    async with conversation(plugin, [call]) as model:
        (message,) = model.tool_messages()
    assert "ran" not in message.splitlines()
    assert "file" in message


async def test_files_may_come_as_json_text(plugin: PythonCodeInterpreterPlugin) -> None:
    result = await plugin.execute_python_with_files("open('a').read()", '{"a": "text"}')  # type: ignore[arg-type]
    assert result.value == "text"


async def test_the_documented_example(plugin: PythonCodeInterpreterPlugin) -> None:
    code = "import data\nprint(f'Loaded data: {data.values}')\nprint(f'Sum: {sum(data.values)}')"
    result = await plugin.execute_python_with_files(code, {"data.py": "values = [1, 2, 3, 4, 5]"})
    assert (result.success, result.output) == (True, "Loaded data: [1, 2, 3, 4, 5]\nSum: 15\n")


async def test_a_plugin_may_use_a_pool_and_a_session_of_the_hosts(pool: SessionPool) -> None:
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


async def test_a_filter_gets_the_whole_result(plugin: PythonCodeInterpreterPlugin) -> None:
    kernel = Kernel()
    kernel.add_plugin(plugin, "py")
    answer = await kernel.invoke(plugin_name="py", function_name="execute_python", code="6 * 7")
    assert (answer.value.value, str(answer)) == (42, "42")
