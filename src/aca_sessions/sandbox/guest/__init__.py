"""The code that runs in the fork server and in sessions, so it is untrusted. It imports only the standard library, IPython, `..wire`
and `..syscalls`.
"""
