"""The untrusted side of the sandbox. Its modules import only the standard library, IPython, `..wire` and `..syscalls`."""
