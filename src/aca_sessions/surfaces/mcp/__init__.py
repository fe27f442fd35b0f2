"""An MCP server: sessions for any client that speaks the Model Context Protocol, and none in another's way."""
