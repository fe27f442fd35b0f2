"""The MCP server: sessions as tools and resources of the Model Context Protocol."""
