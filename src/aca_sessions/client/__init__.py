"""The client of the HTTP API. Read the modules in this order: auth → http → interpreter → session → pool."""
