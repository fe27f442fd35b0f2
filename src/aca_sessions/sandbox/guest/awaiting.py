"""`await tools.x(...)` although a plain call returns a plain value: the cell's syntax tree is changed to make the call in a thread."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from .calls import in_thread

NAMES = ("tools", "skills", "artifacts", "deps")
AWAITED = "__call_outside__"


class Awaiting(ast.NodeTransformer):
    """Rewrites `await tools.x(1)` to `await __call_outside__(tools.x, 1)`."""

    def visit_Await(self, node: ast.Await) -> ast.Await:
        """Replace an awaited call of `tools` and its siblings. Leave every other `await` as it is."""
        self.generic_visit(node)
        called = node.value
        if isinstance(called, ast.Call) and isinstance(called.func, ast.Attribute) and _root(called.func) in NAMES:
            outside = ast.Name(AWAITED, ast.Load())
            node.value = ast.Call(outside, [called.func, *called.args], called.keywords)
            ast.fix_missing_locations(ast.copy_location(node.value, called))
        return node


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


async def call_outside(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Make a host call in a thread and return its value, so that other tasks of the loop continue."""
    if getattr(function, "is_outside", False) or getattr(type(getattr(function, "__self__", None)), "is_outside", False):
        return await in_thread(lambda: function(*arguments, **named))
    # The user may have another object of that name: call and await it as usual.
    answer = function(*arguments, **named)
    return await answer if inspect.isawaitable(answer) else answer
