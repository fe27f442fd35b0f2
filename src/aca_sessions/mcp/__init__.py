"""The MCP server, which offers sessions to clients as tools and resources of the Model Context Protocol."""

from ..errors import imports_of

with imports_of("mcp"):
    import mcp  # noqa: F401
