"""What agents add to a session: tools of the host, and skills, artifacts and dependencies that outlive the session."""
