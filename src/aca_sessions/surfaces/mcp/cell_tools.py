"""Tools that run code. Their docstrings are sent to models."""

from functools import partial
from typing import Annotated

from pydantic import Field

from ...models import CodeExecutionRequest
from .calls import Call
from .cells import CellAnswer, answer_cell, run_cell
from .tool import SessionName, tool

Code = Annotated[str, Field(description="Python source, as in a notebook cell; plain text without Markdown fences.", max_length=1_000_000)]
Seconds = Annotated[float | None, Field(description="Interrupt it after so many seconds.", gt=0, le=86_400)]

Transactional = Annotated[bool, Field(description="If it fails, variables and files are as they were before.")]


async def run_python_code(
    call: Call, code: Code, session_id: SessionName = None, timeout: Seconds = None, transactional: Transactional = False
) -> CellAnswer:
    """Run Python in a session: an isolated Linux process with IPython, whose variables, imports and files stay for the next call.

    You get what it printed, the value of its last expression, its figures as images, and the error if it failed. Files are in /mnt/data,
    the working directory. What is written below outputs/ is there for your other sessions too.
    """
    named = call.client.find(session_id)
    request = CodeExecutionRequest(session_id=named.id, code=code, timeout=timeout, transactional=transactional)
    return await run_cell(call, named, request, partial(answer_cell, call, named))


TOOLS = (tool(run_python_code, "Run Python", "destroys", outside=True),)
