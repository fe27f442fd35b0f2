"""The HTTP server, which offers sessions through Azure's API and this project's extensions. Sessions run in sandboxes on this machine."""
