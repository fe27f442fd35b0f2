"""Skills, artifacts and dependencies, which outlive a session, and the storages that keep them."""
