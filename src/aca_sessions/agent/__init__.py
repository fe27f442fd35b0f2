"""Sessions for agents: cells can call tools of the host, and keep skills, artifacts and dependencies that outlive the session."""
