"""Skills, artifacts and dependencies, which outlive an agent's session: their classes, the storages that keep them, and text search."""
