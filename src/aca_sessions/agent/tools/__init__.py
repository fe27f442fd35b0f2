"""The kinds of tools of the host that cells can call. Each kind has a module."""
