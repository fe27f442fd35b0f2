"""`await tools.x(...)`, although a plain call answers a plain value: in a cell's syntax tree it becomes a call in a thread."""

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
        """Only calls of what hangs on our names: everything else is awaited as it was."""
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
    """What a call outside answers, while other tasks go on. The user may have another object of that name: it is called as usual."""
    if getattr(function, "is_outside", False) or getattr(type(getattr(function, "__self__", None)), "is_outside", False):
        return await in_thread(lambda: function(*arguments, **named))
    answer = function(*arguments, **named)
    return await answer if inspect.isawaitable(answer) else answer
