"""Test Microsoft Agent Framework with its own client and a scripted model."""

import pytest
from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient
from openai import AsyncOpenAI
from samples.scripted_model import ScriptedModel

from aca_sessions import SessionPool
from aca_sessions.integrations.agent_framework import PythonSessionProvider, execute_tool
from aca_sessions.integrations.model_session import ModelSession

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
async def test_a_result_is_content_with_its_images(pool: SessionPool) -> None:
    tool = execute_tool(ModelSession(pool))
    text, image = await tool.invoke(arguments={"code": "import matplotlib.pyplot as plt; plt.plot([1]); plt.title('Sales'); plt.show()"})
    assert text.text == "[images] 1 image, not in this text: Figure Sales"
    assert (image.type, image.media_type) == ("data", "image/png")
    assert image.uri.startswith("data:image/png;base64,iVBO")


async def test_each_conversation_has_a_session_of_its_own_and_finds_it_again(pool: SessionPool) -> None:
    def call(code: str) -> list:
        return [("execute_python", {"code": code})]

    script = [call("x = 1"), "done", call("x"), "done", call("'x' in globals()"), "done"]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as connection:
            client = OpenAIChatCompletionClient("scripted", async_client=connection)
            agent = Agent(client, context_providers=[PythonSessionProvider(pool)])
            one, other = agent.create_session(), agent.create_session()
            await agent.run("go", session=one)
            restored = type(one).from_dict(one.to_dict())
            await agent.run("go", session=restored)
            assert str(model.tool_messages()[-1]) == "1"
            await agent.run("go", session=other)
            assert str(model.tool_messages()[-1]) == "False"
    assert [tool["function"]["name"] for tool in model.requests[0]["tools"]] == ["execute_python"]


def test_an_unknown_option_is_refused_in_the_name_of_the_provider() -> None:
    with pytest.raises(TypeError, match=r"^PythonSessionProvider\(\) got an unexpected keyword argument 'foo': its options are "):
        PythonSessionProvider(foo=1)  # type: ignore[call-arg]
