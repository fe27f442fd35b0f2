"""The interpreter of a session: IPython, its displays, variables and streams."""
