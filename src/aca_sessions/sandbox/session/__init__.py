"""One session of the sandbox: its interpreters, processes, files and checkpoints."""
