"""The server: it serves sessions over HTTP, by Azure's API and this project's extensions, in sandboxes of this machine."""
