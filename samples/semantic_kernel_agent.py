"""A Semantic Kernel agent analyses a CSV file and draws a chart, in an isolated Python session.

Without a key it runs against a scripted model on this machine: everything else is real. With OPENAI_API_KEY, or AZURE_OPENAI_ENDPOINT,
AZURE_OPENAI_API_KEY and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME, it asks a real one.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from openai import AsyncOpenAI
from scripted_model import ScriptedModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
from semantic_kernel.connectors.ai.open_ai import AzureChatCompletion, OpenAIChatCompletion
from semantic_kernel.filters import FilterTypes, FunctionInvocationContext

from aca_sessions import PythonCodeInterpreterPlugin, open_pool

SALES = """month,product,sold
2026-01,lamp,120
2026-01,chair,80
2026-02,lamp,135
2026-02,chair,95
2026-03,lamp,180
2026-03,chair,60
"""
QUESTION = "sales.csv is in the working directory. Which product sold best, and how did it develop? Draw a chart of both."
ANALYSE = """import pandas as pd
sales = pd.read_csv("sales.csv")
sales.groupby("product").sold.sum().sort_values(ascending=False)"""
DRAW = """ax = sales.pivot(index="month", columns="product", values="sold").plot(marker="o", title="Sold per month")
best = sales[sales["product"] == "lamp"].sold
print(f"lamps grew by {best.iloc[-1] / best.iloc[0] - 1:.0%}")"""


async def main() -> list[bytes]:
    images: list[bytes] = []
    async with model() as service, open_pool() as pool, pool.session("sales") as session:
        await session.upload_file("sales.csv", SALES)
        kernel = Kernel(services=[service])
        kernel.add_plugin(PythonCodeInterpreterPlugin(pool, "sales"), "PythonInterpreter")

        @kernel.filter(FilterTypes.FUNCTION_INVOCATION)
        async def keep_images(context: FunctionInvocationContext, next) -> None:
            await next(context)
            print(f"> {context.function.name}\n{context.arguments['code']}\n< {context.result}\n")
            images.extend(context.result.value.images)

        agent = ChatCompletionAgent(kernel=kernel, name="Analyst", instructions="Answer by running Python code.")
        print(await agent.get_response(QUESTION))
    return images


@asynccontextmanager
async def model() -> AsyncIterator[ChatCompletionClientBase]:
    if os.environ.get("AZURE_OPENAI_ENDPOINT"):
        yield AzureChatCompletion()
    elif os.environ.get("OPENAI_API_KEY"):
        yield OpenAIChatCompletion(ai_model_id=os.environ.get("OPENAI_CHAT_MODEL_ID", "gpt-4o-mini"))
    else:
        with ScriptedModel([call(ANALYSE), call(DRAW), conclusion]) as scripted:
            async with AsyncOpenAI(base_url=scripted.base_url, api_key="none", max_retries=0) as client:
                yield OpenAIChatCompletion(ai_model_id="scripted", async_client=client)


def call(code: str) -> list[tuple[str, dict[str, object]]]:
    return [("PythonInterpreter-execute_python", {"code": code})]


def conclusion(messages: list[dict]) -> str:
    """What a model would make of its tools' answers: it has only what they said."""
    totals, growth = (message["content"] for message in messages if message["role"] == "tool")
    best, sold = totals.splitlines()[1].split()
    return f"The {best} sold best: {sold} pieces in all. Month by month, {growth.splitlines()[0]}; the chart shows both products."


if __name__ == "__main__":
    drawn = asyncio.run(main())
    if not drawn:
        raise SystemExit("The model drew no chart: ask it again.")
    Path("chart.png").write_bytes(drawn[-1])
    print(f"\nThe chart is in chart.png ({len(drawn[-1])} bytes).")
