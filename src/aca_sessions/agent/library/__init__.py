"""Skills, artifacts and dependencies, which outlive a session, the storages that keep them, and the search in them."""
