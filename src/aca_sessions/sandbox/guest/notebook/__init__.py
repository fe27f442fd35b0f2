"""The interpreter of a session: IPython, and what it collects of a cell: value, displays, errors, changed variables and files."""
