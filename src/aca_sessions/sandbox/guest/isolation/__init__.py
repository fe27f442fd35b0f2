"""The steps that isolate a session inside the guest: namespaces, root, Landlock and seccomp."""
