"""The MCP server, which offers sessions to clients as tools and resources of the Model Context Protocol."""
