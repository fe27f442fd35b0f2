"""The kinds of tools on the host that code in a session can call, one module for each kind."""
