"""Adapters for agent frameworks. Each offers one session in the form that its framework expects."""
