"""Tools of the host that code in a session may call, one file for each kind."""
