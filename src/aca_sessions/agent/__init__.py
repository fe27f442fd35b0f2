"""Sessions for agents: cells can call tools of the host, and save functions (skills), data (artifacts) and packages for later sessions."""
