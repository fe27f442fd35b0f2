"""The modules that run inside the sandbox: in the zygote (the guest half of the fork server) and in sessions.

The host trusts nothing that a session sends. The modules import only the standard library, IPython, `..wire` and `..syscalls`; the shell
also imports `bridge.guest`.
"""
