"""An MCP server: sessions for any client that speaks the Model Context Protocol, each client with sessions of its own."""
