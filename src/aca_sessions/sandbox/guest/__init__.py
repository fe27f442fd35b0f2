"""Their side of the wall: imports the standard library, IPython, ..wire and ..syscalls, and nothing else."""
