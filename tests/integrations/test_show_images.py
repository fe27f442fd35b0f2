"""Test images in a chat: they follow the answers of their own turn, and reach no other history. The kernel is a real one."""

import asyncio
import base64
import gc

import pytest
from semantic_kernel import Kernel
from semantic_kernel.contents import ChatHistory, ChatMessageContent, FunctionCallContent, ImageContent
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.filters import FilterTypes
from semantic_kernel.functions import kernel_function

from aca_sessions import CodeExecutionResult
from aca_sessions.integrations.semantic_kernel import PythonResult, ShowImages
from aca_sessions.models import Display

PNG = b"\x89PNG\r\n\x1a\n"


class Artist:
    """A plugin whose one function draws, or waits until it is released."""

    def __init__(self) -> None:
        self.waiting, self.go_on = asyncio.Event(), asyncio.Event()

    @kernel_function
    async def draw(self, what: str) -> CodeExecutionResult:
        if what == "slow":
            self.waiting.set()
            await self.go_on.wait()
        picture = base64.b64encode(PNG + what.encode()).decode()
        return PythonResult(displays=(Display({"image/png": picture}),))


async def turn(kernel: Kernel, history: ChatHistory, *drawn: str) -> None:
    """Run the calls of one answer of a model, as a connector does."""
    calls = [FunctionCallContent(id=what, name="artist-draw", arguments={"what": what}) for what in drawn]
    history.add_message(ChatMessageContent(role=AuthorRole.ASSISTANT, items=[*calls]))
    await asyncio.gather(*(kernel.invoke_function_call(call, history) for call in calls))


async def seen(history: ChatHistory) -> list[bytes]:
    """Return what was drawn in the images of a history."""
    await asyncio.sleep(0)
    images = [item for message in history.messages for item in message.items if isinstance(item, ImageContent)]
    return [image.data.removeprefix(PNG) for image in images]


@pytest.fixture
def artist() -> tuple[Artist, Kernel]:
    artist, kernel = Artist(), Kernel()
    kernel.add_plugin(artist, "artist")
    kernel.add_filter(FilterTypes.AUTO_FUNCTION_INVOCATION, ShowImages())
    return artist, kernel


async def cancelled_turn(artist: Artist, kernel: Kernel, history: ChatHistory) -> None:
    """Answer one call of the turn, and never the other."""
    artist.waiting.clear()
    going = asyncio.create_task(turn(kernel, history, "secret", "slow"))
    await artist.waiting.wait()
    going.cancel()
    await asyncio.wait({going})


@pytest.mark.long
async def test_images_of_a_cancelled_turn_reach_no_other_history(artist: tuple[Artist, Kernel]) -> None:
    """A later history may get the id() of an earlier one that was deleted."""
    history = ChatHistory()
    await cancelled_turn(*artist, history)
    number = id(history)
    del history
    gc.collect()
    assert [image for image in gc.get_objects() if isinstance(image, ImageContent)] == []
    histories = [ChatHistory()]
    while id(histories[-1]) != number and len(histories) < 2000:
        histories.append(ChatHistory())
    await turn(artist[1], histories[-1], "own")
    assert await seen(histories[-1]) == [b"own"]


async def test_a_history_continues_after_a_cancelled_turn(artist: tuple[Artist, Kernel]) -> None:
    history = ChatHistory()
    await cancelled_turn(*artist, history)
    history.add_user_message("draw two others")
    await turn(artist[1], history, "one", "other")
    assert await seen(history) == [b"one", b"other"]
    await turn(artist[1], history, "last")
    assert await seen(history) == [b"one", b"other", b"last"]


async def test_parallel_histories_see_their_own_images(artist: tuple[Artist, Kernel]) -> None:
    histories = [ChatHistory() for _ in range(5)]
    await asyncio.gather(*(turn(artist[1], history, f"{n}", f"{n}+") for n, history in enumerate(histories)))
    assert [await seen(history) for history in histories] == [[f"{n}".encode(), f"{n}+".encode()] for n in range(5)]
