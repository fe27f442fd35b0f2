"""What agents add to a session: tools of the host, skills, artifacts and dependencies that outlive it."""
