"""Modules that are sent as text to sessions without events, never imported on the host. They need only Python 3.9 and IPython."""
