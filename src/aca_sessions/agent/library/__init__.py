"""What outlives a session: skills, artifacts and dependencies. Also the storages that keep them, and the search in them."""
