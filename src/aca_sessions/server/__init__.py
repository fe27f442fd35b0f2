"""The HTTP server: it offers sessions through Azure's API and this project's extensions. The sessions run in sandboxes of this machine."""
