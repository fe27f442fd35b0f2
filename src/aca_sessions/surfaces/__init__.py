"""The integrations: adapters for frameworks and tools. Each is thin: it translates a call, makes it, and translates the result."""
