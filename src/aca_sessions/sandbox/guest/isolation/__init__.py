"""Namespaces, root, Landlock and seccomp: the steps that shut a session in."""
