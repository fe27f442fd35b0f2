"""The data that outlives an agent's session: skills, artifacts, dependencies. Also the storages that keep it, and the search in it."""
