"""The interpreter of a session: an IPython shell that collects a cell's value, displays, error, and changed variables and files."""
