"""Two agents over one plugin, each with a session of its own: neither sees the other's variables."""

import asyncio

from openai import AsyncOpenAI
from scripted_model import ScriptedModel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion

from aca_sessions import PythonCodeInterpreterPlugin


def agent(client: AsyncOpenAI, name: str, plugin: PythonCodeInterpreterPlugin) -> ChatCompletionAgent:
    service = OpenAIChatCompletion(ai_model_id="scripted", async_client=client)
    return ChatCompletionAgent(service=service, name=name, plugins=[plugin.for_session(name)])


def call(code: str) -> list[tuple[str, dict[str, object]]]:
    return [("PythonCodeInterpreterPlugin-execute_python", {"code": code})]


def last_answer(messages: list[dict]) -> str:
    return [message["content"] for message in messages if message["role"] == "tool"][-1]


async def main() -> None:
    script = [call("secret = 'plum'"), "noted", call("'secret' in globals()"), last_answer, call("secret"), last_answer]
    with ScriptedModel(script) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as client, PythonCodeInterpreterPlugin() as plugin:
            alice, bob = agent(client, "alice", plugin), agent(client, "bob", plugin)
            await alice.get_response("Keep a secret.")
            print("bob knows a secret:", await bob.get_response("Do you know a secret?"))
            print("alice's secret:", await alice.get_response("What was it?"))


if __name__ == "__main__":
    asyncio.run(main())
