"""Classes with the names and arguments of other projects' public classes: to use them, a script changes only its import."""
